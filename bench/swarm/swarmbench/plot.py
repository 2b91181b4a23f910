"""Completion curves of every peer of every run, both systems against the bound."""

from __future__ import annotations

from pathlib import Path

from .units import MIB

COLOURS = {"potluck": "#0b6e4f", "libtorrent": "#c8553d"}
"""Far apart for most eyes, and in grey."""


def curves(runs: list[dict], scenario: str, target: Path) -> None:
    """Draws the scenario's last round without failure into `target` (SVG or PNG by its name). Needs matplotlib."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    good = [run for run in runs if run["scenario"] == scenario and "error" not in run]
    if not good:
        return
    figure, axes = plt.subplots(figsize=(8, 4.5), constrained_layout=True)
    size, bound = good[0]["size"], good[0]["bound"]
    last = {run["name"]: run for run in good}
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
    axes.grid(alpha=0.25)
    axes.legend(frameon=False)
    figure.savefig(target)
    plt.close(figure)
