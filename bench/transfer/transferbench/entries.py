"""Builds the entries of a case from the options."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from common.unavailable import Unavailable

from .case import Entry
from .systems import SYSTEMS
from .systems.potluck import Potluck
from .transfer import TransferEntry


def potluck_builds(options: argparse.Namespace) -> list[dict[str, str]]:
    """The settings of each build of Potluck that takes part."""
    return options.potluck or [{}]


def transfers(names: tuple[str, ...]) -> Callable[[argparse.Namespace], list[Entry]]:
    """An entry for each of these systems, in this order, with one entry per build of Potluck."""

    def entries(options: argparse.Namespace) -> list[Entry]:
        found: list[Entry] = []
        for name in names:
            if name not in SYSTEMS or not is_selected(options, name):
                continue
            system = SYSTEMS[name]
            for settings in potluck_builds(options) if name == "potluck" else [options.settings.get(name, {})]:
                called = label(settings) if name == Potluck.name else name
                with skipping_absent(called):
                    found.append(TransferEntry(lambda system=system, settings=settings: system(settings), called, system.version(settings)))
        return found

    return entries


@contextmanager
def skipping_absent(name: str) -> Iterator[None]:
    """Reports a program that is not installed, and continues."""
    try:
        yield
    except Unavailable as error:
        print(f"{name} is skipped: {error}", file=sys.stderr)


def is_selected(options: argparse.Namespace, name: str) -> bool:
    return not options.systems or name in options.systems


def for_each_build(entry: Callable[[dict[str, str], str, str], Entry]) -> Callable[[argparse.Namespace], list[Entry]]:
    """An entry for each build of Potluck; `entry` makes it from settings, name and version."""

    def entries(options: argparse.Namespace) -> list[Entry]:
        found: list[Entry] = []
        if is_selected(options, Potluck.name):
            for settings in potluck_builds(options):
                with skipping_absent(label(settings)):
                    found.append(entry(settings, label(settings), Potluck.version(settings)))
        return found

    return entries


def label(settings: dict[str, str]) -> str:
    """The name of a build of Potluck."""
    return "-".join(filter(None, [Potluck.name, settings.get("label")]))
