"""Helpers for all plots. Needs matplotlib."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

COLOURS = {"potluck": "#0b6e4f", "libtorrent": "#c8553d"}
"""Colours that most readers can tell apart, also in greyscale."""


@contextmanager
def figure(target: Path, **size) -> Iterator:
    """Axes to draw on, written to `target` at the end (SVG or PNG, by its suffix)."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(figsize=(size.get("width", 8), size.get("height", 4.5)), constrained_layout=True)
    yield axes
    axes.grid(alpha=0.25)
    if axes.get_legend_handles_labels()[0]:
        axes.legend(frameon=False)
    # The same runs produce identical bytes.
    figure.savefig(target, metadata={"Date": None} if target.suffix == ".svg" else None)
    plt.close(figure)
