"""The definition of a case: its variants (sizes, for example), and its entries. Each entry is a
program that runs every variant."""

from __future__ import annotations

import argparse
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, field

from .bench import Bench


@dataclass
class Outcome:
    """The result of one run of one entry."""

    values: dict[str, float]
    """Numbers by column name, which includes the unit."""
    series: dict[str, list[tuple[float, float]]] = field(default_factory=dict)
    """Numbers over time, by name and unit: (seconds, number)."""
    more: dict = field(default_factory=dict)
    """Further fields for the results."""


class Entry(ABC):
    """One program in a case."""

    name: str
    version: str

    @abstractmethod
    def measure(self, bench: Bench, variant) -> Outcome:
        """Does one run. Raises `TrialError` if it fails, and `Unavailable` if this entry does not
        support the variant."""


@dataclass(frozen=True)
class Case:
    """A case: one section of the results."""

    name: str
    note: str
    variants: Callable[[argparse.Namespace], dict[str, object]]
    """The variants by name, as the options select them."""
    entries: Callable[[argparse.Namespace], list[Entry]]
    """The entries. Programs that are not installed are reported and skipped."""
    compare: tuple[str, ...] = ("MiB/s", "CPU s/GiB")
    """The values whose ratios are reported."""
    plot: str = "bars"
    """`bars`, `lines` over the variants' sizes, or `series` over time."""
