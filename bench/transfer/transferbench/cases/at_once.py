"""A download right after `share`: the background work of the sources must not slow it down."""

from __future__ import annotations

import argparse
import threading

from common.processes import TrialError

from ..bench import Bench, sha256, wait_until
from ..case import Case, Entry, Outcome
from ..entries import for_each_build
from ..systems.potluck import READY_TIMEOUT, Potluck
from ..transfer import Shape, Transfer, require_memory, values
from .daemons import follow
from .files import GIB, size_name

CALM = 1.0
"""Seconds without any processor time after which a source counts as idle."""


class AfterShare(Entry):
    """Downloads a file from sources that have just hashed it: immediately, or after they have
    become idle."""

    def __init__(self, settings: dict[str, str], name: str, version: str, idle: bool):
        self._settings, self.version, self._idle = settings, version, idle
        self.name = f"{name} {'once idle' if idle else 'at once'}"

    def measure(self, bench: Bench, variant: Shape) -> Outcome:
        require_memory(bench, variant)
        payload = bench.payload(variant.size)
        system = Potluck(self._settings)
        with bench.folder() as folder:
            target = folder / "target"
            target.mkdir()
            transfer = Transfer(bench, variant, payload, folder, target)
            try:
                # Each round has its own homes: a peer does not hash a file again that it has shared
                # before.
                homes = [folder / f"s{number}" for number in range(variant.sources)]
                system.start_index(transfer)
                sources = [system.start_peer(transfer, "source", home)[0] for home in homes]
                system.start_sinks(transfer, system.ask(homes[0], "id", str(payload.path))["id"])
                transfer.prepare()
                share_at_all(system, homes, str(payload.path))
                system.wait_registered(system.id, variant.sources)
                if self._idle:
                    pids = [source.pid for source in sources]
                    wait_until(lambda: sum(follow(pids, CALM)) == 0, READY_TIMEOUT, "the sources do not become idle")
                seconds, usages = transfer.run(lambda: system.begin(transfer), at_once=True)
                for path in system.arrived(transfer):
                    if sha256(path) != payload.sha256:
                        raise TrialError(f"{path.name} differs from the original")
            finally:
                transfer.stop()
        numbers = values(variant, seconds, usages, transfer.meter.others_cpu())
        return Outcome({name: numbers[name] for name in ("seconds", "MiB/s", "CPU s/GiB", "others' CPUs")})


def share_at_all(system: Potluck, homes: list, path: str) -> None:
    """Shares a path at all sources at the same time."""
    failed: list[Exception] = []

    def share(home) -> None:
        try:
            system.ask(home, "share", path)
        except TrialError as error:
            failed.append(error)

    threads = [threading.Thread(target=share, args=(home,)) for home in homes]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if failed:
        raise failed[0]


def entries(options: argparse.Namespace) -> list[Entry]:
    """Two entries for each build: immediately, and when idle."""
    pairs = for_each_build(lambda *of: [AfterShare(*of, idle=idle) for idle in (False, True)])(options)
    return [entry for pair in pairs for entry in pair]


CASES = (
    Case(
        "at-once",
        "one file from 4 sources, right after they have hashed it, and when they are idle",
        lambda options: {size_name(options.size or GIB): Shape(4, options.size or GIB)},
        entries,
        compare=("MiB/s",),
    ),
)
