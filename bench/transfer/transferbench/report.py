"""Summarizes a set of runs and formats the tables. Pure."""

from __future__ import annotations

from statistics import median

from common import report

OWN = "potluck"
"""The system that the others are compared with. The names of its builds begin with this."""


def medians(runs: list[dict]) -> dict[tuple[str, str, str], dict[str, float]]:
    """The median of each value for each case, variant and entry, in the order of their first
    runs."""
    groups: dict[tuple[str, str, str], list[dict]] = {}
    for run in good(runs):
        groups.setdefault((run["case"], run["variant"], run["name"]), []).append(run["values"])
    return {key: {name: median(value[name] for value in group if name in value) for name in _names(group)} for key, group in groups.items()}


def table(runs: list[dict]) -> str:
    """The report in Markdown: for each case a table, and the ratios within rounds."""
    lines: list[str] = []
    rows = medians(runs)
    for case in dict.fromkeys(run["case"] for run in runs):
        own = {key: values for key, values in rows.items() if key[0] == case}
        of_case = [run for run in runs if run["case"] == case]
        columns = _names(list(own.values()))
        lines += [f"## {case}", "", of_case[0]["note"][:1].upper() + of_case[0]["note"][1:] + ". Medians.", ""]
        if own:
            lines += [f"| variant | system | runs | {' | '.join(columns)} |", "|---" * (3 + len(columns)) + "|"]
        for (_, variant, name), values in own.items():
            count = sum(run["variant"] == variant and run["name"] == name for run in good(of_case))
            cells = [number(values[column]) if column in values else "" for column in columns]
            lines.append(f"| {variant} | {name} | {count} | {' | '.join(cells)} |")
        lines += [*_ratio_lines(of_case), *report.failures([{**run, "case": f"{case} {run['variant']}"} for run in of_case], "case"), ""]
    return "\n".join(lines)


def _ratio_lines(runs: list[dict]) -> list[str]:
    compare = runs[0]["compare"]
    lines: list[str] = []
    names = list(dict.fromkeys(run["name"] for run in runs))
    for first in [name for name in names if name.startswith(OWN)]:
        others = [name for name in names if name != first and (not name.startswith(OWN) or names.index(name) > names.index(first))]
        for second in others:
            found = {value: pair_ratios(runs, value, first, second) for value in compare}
            for variant in dict.fromkeys(variant for ratios in found.values() for variant in ratios):
                cells = [report.format_ratios(found[value][variant]) if variant in found[value] else "" for value in compare]
                lines.append(f"| {variant} | {first} / {second} | {' | '.join(cells)} |")
    if lines:
        lines = ["", "Ratios within a round: the median, and each round.", "",
                 f"| variant | pair | {' | '.join(compare)} |", "|---" * (2 + len(compare)) + "|", *lines]
    return lines


def pair_ratios(runs: list[dict], value: str, first: str, second: str) -> dict[str, list[float]]:
    """For each variant, the ratio of `first` to `second` in each round that both ran."""
    found = {(run["variant"], run["round"], run["name"]): run["values"][value] for run in good(runs) if value in run["values"]}
    return report.ratios(found, first, second)


def good(runs: list[dict]) -> list[dict]:
    return [run for run in runs if "error" not in run]


def number(value: float) -> str:
    """Three significant digits, as a median of a few runs is no more precise; whole numbers from
    100 on."""
    if value == 0 or abs(value) >= 100:
        return f"{value:,.0f}"
    return f"{value:.1f}" if abs(value) >= 10 else f"{value:.2f}" if abs(value) >= 1 else f"{value:.3f}"


def _names(groups: list[dict]) -> list[str]:
    return list(dict.fromkeys(name for group in groups for name in group))
