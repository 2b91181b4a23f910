"""What is measured: a case has variants (sizes, say), and entries, each a program that is put to each variant in turns."""

from __future__ import annotations

import argparse
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, field

from .bench import Bench


@dataclass
class Outcome:
    """What one run of one entry came to."""

    values: dict[str, float]
    """Numbers by their name in the table, unit included."""
    series: dict[str, list[tuple[float, float]]] = field(default_factory=dict)
    """Numbers over time, by their name and unit: (seconds, number)."""
    more: dict = field(default_factory=dict)
    """Anything else worth keeping with the results."""


class Entry(ABC):
    """One program in a case."""

    name: str
    version: str

    @abstractmethod
    def measure(self, bench: Bench, variant) -> Outcome:
        """One run. Raises `TrialError` if it came to nothing, `Unavailable` if this entry cannot do this variant."""


@dataclass(frozen=True)
class Case:
    """One chapter of the results."""

    name: str
    note: str
    variants: Callable[[argparse.Namespace], dict[str, object]]
    """What each entry is put to, by name, as the options say."""
    entries: Callable[[argparse.Namespace], list[Entry]]
    """Who takes part. Programs that are not here are told of and left out."""
    compare: tuple[str, ...] = ("MiB/s", "CPU s/GiB")
    """The values by which entries are set against each other."""
    plot: str = "bars"
    """`bars`, `lines` over the variants' sizes, or `series` over time."""
