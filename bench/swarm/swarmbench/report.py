"""Summarizes a set of runs and formats the table. Pure."""

from __future__ import annotations

from dataclasses import dataclass
from statistics import median

from common import report
from common.units import MIB


@dataclass(frozen=True)
class Row:
    """One system in one scenario: medians over its runs."""

    scenario: str
    system: str
    runs: int
    bound: float
    median_peer: float
    slowest: float
    seed_payload: float | None
    """Payload that the sources sent, divided by the file's size."""
    seed_frames: float
    """Bytes of frames that the sources sent, divided by the file's size."""
    cpu: float
    """Processor time in seconds of all its processes per GiB delivered."""
    anonymous: float
    """Peak anonymous memory of any process of a peer, in MiB."""
    others: float
    """Number of processors that other work on the machine kept busy meanwhile."""


def times(run: dict) -> list[float]:
    """Times of the counted peers in seconds, sorted."""
    return sorted(sink["seconds"] for sink in run["sinks"] if sink["counted"])


def row(runs: list[dict]) -> Row:
    first = runs[0]
    size = first["size"]

    def of(value) -> float:
        return median(value(run) for run in runs)

    def sources(run: dict) -> int:
        return sum(frames["sent"] for name, frames in run["frames"].items() if name.startswith("s"))

    def delivered(run: dict) -> float:
        return sum(sink["curve"][-1][1] for sink in run["sinks"] if sink["curve"]) / 2**30

    payload = [run["sources_sent_payload"] / size for run in runs if run["sources_sent_payload"] is not None]
    return Row(
        scenario=first["scenario"],
        system=first["name"],
        runs=len(runs),
        bound=first["bound"],
        median_peer=of(lambda run: median(times(run))),
        slowest=of(lambda run: times(run)[-1]),
        seed_payload=median(payload) if payload else None,
        seed_frames=of(lambda run: sources(run) / size),
        cpu=of(lambda run: sum(p["cpu"] for p in run["processes"]) / delivered(run)),
        anonymous=of(lambda run: max(p["peak_anonymous"] for p in run["processes"])) / MIB,
        others=of(lambda run: run["others_cpu"] / max(times(run)[-1], 0.001)),
    )


def rows(runs: list[dict]) -> list[Row]:
    """One row per scenario and system, in the order of their first runs."""
    groups: dict[tuple[str, str], list[dict]] = {}
    for run in runs:
        if "error" not in run:
            groups.setdefault((run["scenario"], run["name"]), []).append(run)
    return [row(group) for group in groups.values()]


def table(runs: list[dict], compare_with: dict[str, str | None], first: str, second: str) -> str:
    """The table in Markdown. The last column says how many times as fast as `second` `first` is in
    the same rounds."""
    all_rows = rows(runs)
    by = {(r.scenario, r.system): r for r in all_rows}
    lines = [
        "| scenario | system | runs | bound s | median peer s (x bound) | slowest s (x bound) | x its base | sources sent, payload / frames (x F) "
        "| CPU s per GiB | peak anon MiB | others' CPUs |",
        "|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    for r in all_rows:
        base = by.get((compare_with.get(r.scenario) or "", r.system))
        against = f"{r.slowest / base.slowest:.2f} of {base.scenario}" if base else ""
        payload = "-" if r.seed_payload is None else f"{r.seed_payload:.2f}"
        lines.append(
            f"| {r.scenario} | {r.system} | {r.runs} | {r.bound:.2f} | {r.median_peer:.2f} ({r.median_peer / r.bound:.2f}) "
            f"| {r.slowest:.2f} ({r.slowest / r.bound:.2f}) | {against} | {payload} / {r.seed_frames:.2f} "
            f"| {r.cpu:.1f} | {r.anonymous:.0f} | {r.others:.1f} |"
        )
    ratios = pair_ratios(runs, first, second)
    if ratios:
        lines += ["", f"How many times faster {first} is than {second}, slowest peer, median of the rounds:", ""]
        lines += [f"- {scenario}: {report.format_ratios(values)}" for scenario, values in ratios.items()]
    lines += report.failures(runs, "scenario")
    return "\n".join(lines) + "\n"


def pair_ratios(runs: list[dict], first: str, second: str) -> dict[str, list[float]]:
    """For each scenario and each round of both: the slowest peer's time with `second` divided by
    that with `first`."""
    slowest = {(run["scenario"], run["round"], run["name"]): times(run)[-1] for run in runs if "error" not in run}
    return report.ratios(slowest, second, first)
