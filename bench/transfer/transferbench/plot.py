"""Plots made from the results: bars for each system, lines over sizes, or curves over time."""

from __future__ import annotations

from pathlib import Path

from common.plot import COLOURS, figure

from .report import good, medians

MORE = ("#3b6ea5", "#d8a03d", "#7b5ea7", "#8c8c8c", "#5aa9a3", "#b3577a", "#444444")


def draw(runs: list[dict], case: str, target: Path) -> None:
    """Plots the runs of a case in the form that the case chooses. Needs matplotlib."""
    own = [run for run in good(runs) if run["case"] == case]
    if not own:
        return
    kind = own[0]["plot"]
    {"bars": _bars, "lines": _lines, "series": _series}[kind](own, case, target)


def _bars(runs: list[dict], case: str, target: Path) -> None:
    """Bars of the medians of the first compared value, and a dot for each run."""
    value = next((name for name in runs[0]["compare"] if name in runs[0]["values"]), next(iter(runs[0]["values"])))
    rows = [(variant, name, values[value]) for (_, variant, name), values in medians(runs).items() if value in values]
    colours = _colours(runs)
    variants = list(dict.fromkeys(variant for variant, _, _ in rows))
    labels = [name if len(variants) == 1 else f"{name}, {variant}" for variant, name, _ in rows]
    with figure(target, height=0.8 + 0.35 * len(rows)) as axes:
        axes.barh(range(len(rows)), [v for _, _, v in rows], color=[colours[name] for _, name, _ in rows], height=0.7)
        for place, (variant, name, _) in enumerate(rows):
            dots = [run["values"][value] for run in runs if (run["variant"], run["name"]) == (variant, name) and value in run["values"]]
            axes.plot(dots, [place] * len(dots), "k.", markersize=4)
        axes.set_yticks(range(len(rows)), labels)
        axes.invert_yaxis()
        axes.set(xlabel=value, title=f"{case}{': ' + variants[0] if len(variants) == 1 else ''}", xlim=(0, None))


def _lines(runs: list[dict], case: str, target: Path) -> None:
    """Lines of the first compared value over the variants, which are sizes."""
    value = runs[0]["compare"][0]
    rows = medians(runs)
    variants = list(dict.fromkeys(run["variant"] for run in runs))
    with figure(target) as axes:
        for name, colour in _colours(runs).items():
            points = [(place, rows[case, variant, name][value]) for place, variant in enumerate(variants) if (case, variant, name) in rows]
            axes.plot(*zip(*points), marker="o", color=colour, label=name)
        axes.set_xticks(range(len(variants)), variants)
        axes.set(ylabel=value, title=case, ylim=(0, None))


def _series(runs: list[dict], case: str, target: Path) -> None:
    """Curves over time of each entry's last run."""
    last = {(run["variant"], run["name"]): run for run in runs if run["series"]}
    colours = _colours(runs)
    units = dict.fromkeys(unit for run in last.values() for unit in run["series"])
    with figure(target) as axes:
        for (_, name), run in last.items():
            for unit, style in zip(units, ("-", "--", ":")):
                if points := run["series"].get(unit):
                    axes.plot(*zip(*points), linestyle=style, color=colours[name], linewidth=1.2, label=name if len(units) == 1 else f"{name}: {unit}")
        axes.set(xlabel="seconds", ylabel=next(iter(units), "") if len(units) == 1 else "", title=f"{case}, last round", xlim=(0, None), ylim=(0, None))


def _colours(runs: list[dict]) -> dict[str, str]:
    names = list(dict.fromkeys(run["name"] for run in runs))
    spare = iter(MORE * (1 + len(names) // len(MORE)))
    return {name: COLOURS[name] if name in COLOURS else next(spare) for name in names}
