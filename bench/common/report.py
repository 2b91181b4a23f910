"""Arithmetic and wording shared by the reports. Pure."""

from __future__ import annotations

from collections.abc import Hashable
from statistics import median


def ratios(values: dict[tuple[Hashable, int, str], float], first: str, second: str) -> dict[Hashable, list[float]]:
    """The ratio of `first` to `second` in each round, for each subject that both ran. The keys of
    `values` are (subject, round, system)."""
    found: dict[Hashable, list[float]] = {}
    for (subject, number, system), value in values.items():
        other = values.get((subject, number, second))
        if system == first and other:
            found.setdefault(subject, []).append(value / other)
    return found


def format_ratios(values: list[float]) -> str:
    """Formats ratios: their median, then all of them."""
    return f"{median(values):.2f} ({', '.join(f'{v:.2f}' for v in values)})"


def failures(runs: list[dict], subject: str) -> list[str]:
    """One line for each failed run; `subject` is the field that names the scenario or case."""
    failed = [f"- {run[subject]}, {run['name']}, round {run['round']}: {run['error']}" for run in runs if "error" in run]
    return ["", "Runs that failed:", "", *failed] if failed else []
