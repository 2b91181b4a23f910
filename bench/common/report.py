"""Arithmetic and words that every report needs. Pure."""

from __future__ import annotations

from collections.abc import Hashable
from statistics import median


def ratios(values: dict[tuple[Hashable, int, str], float], first: str, second: str) -> dict[Hashable, list[float]]:
    """`first` over `second` of the same round, for each subject in which both ran; keys of `values` are (subject, round, system)."""
    found: dict[Hashable, list[float]] = {}
    for (subject, number, system), value in values.items():
        other = values.get((subject, number, second))
        if system == first and other:
            found.setdefault(subject, []).append(value / other)
    return found


def told(values: list[float]) -> str:
    """The median of ratios and all of them."""
    return f"{median(values):.2f} ({', '.join(f'{v:.2f}' for v in values)})"


def failures(runs: list[dict], subject: str) -> list[str]:
    """Lines about the runs that failed; `subject` is the field that says what was run."""
    failed = [f"- {run[subject]}, {run['name']}, round {run['round']}: {run['error']}" for run in runs if "error" in run]
    return ["", "Runs that failed:", "", *failed] if failed else []
