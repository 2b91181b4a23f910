"""Plots completion curves of every peer of both systems against the bound."""

from __future__ import annotations

from pathlib import Path

from common.plot import COLOURS, figure
from common.units import MIB


def curves(runs: list[dict], scenario: str, target: Path) -> None:
    """Plots the scenario's last round without failures to `target` (SVG or PNG, by its suffix).
    Needs matplotlib."""
    good = [run for run in runs if run["scenario"] == scenario and "error" not in run]
    if not good:
        return
    size, bound = good[0]["size"], good[0]["bound"]
    last = {run["name"]: run for run in good}
    with figure(target) as axes:
        for name, run in last.items():
            for number, sink in enumerate(run["sinks"]):
                if not sink["curve"]:
                    continue
                points = [(sink["arrival"], 0), *((t, b) for t, b in sink["curve"])]
                if sink["seconds"] is not None:
                    points.append((sink["arrival"] + sink["seconds"], size))
                axes.plot([t for t, _ in points], [b / MIB for _, b in points], color=COLOURS.get(name), linewidth=1, alpha=0.8,
                          label=name if number == 0 else None)
        axes.plot([0, bound], [0, size / MIB], color="black", linestyle="--", linewidth=1.2, label=f"bound, {bound:.2f} s")
        for run in last.values():
            for event in run["events"]:
                axes.axvline(event["at"], color=COLOURS.get(run["name"]), linestyle=":", linewidth=1)
                axes.annotate(f"source {event['act'].lower()}s", (event["at"], 0), fontsize=7, rotation=90, va="bottom", ha="right")
        axes.set(xlabel="seconds", ylabel="MiB verified", title=f"{scenario}: every peer, last round", xlim=(0, None), ylim=(0, None))
