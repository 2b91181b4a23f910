"""The cost of idle daemons, and the time that they take to start."""

from __future__ import annotations

import argparse
import time
from pathlib import Path

from common.measure import threads
from common.units import MIB

from ..bench import Bench, wait_until
from ..case import Case, Entry, Outcome
from ..entries import for_each_build
from ..systems.potluck import Potluck
from ..transfer import Shape, Transfer

MANY = 100_000
SMALL = 4096
READY_TIMEOUT = 300.0
IDLE_SECONDS = 10.0
CALM_SECONDS = 3.0
"""Seconds between the start and the idle measurement: the work of the start is then done."""
POLL_INTERVAL = 0.02
"""Seconds between two checks whether a daemon is ready."""


class StartUp(Entry):
    """Restarts a peer with many unchanged files: measures the time until it listens, and until the
    index has all of them."""

    def __init__(self, settings: dict[str, str], name: str, version: str):
        self._settings, self.name, self.version = settings, name, version

    def measure(self, bench: Bench, variant: str) -> Outcome:
        content = bench.tree(MANY, SMALL)
        with bench.folder() as folder:
            transfer = Transfer(bench, Shape(0, content.size), content, folder, folder)
            system = Potluck(self._settings)
            home = bench.kept(f"{self.name}-{variant}")
            # The manifest counts as a file too.
            items, files = (content.count, content.count) if variant == LOOSE else (1, content.count + 1)
            try:
                system.start_index(transfer)
                if not (home / "state").exists():
                    self._share_first(transfer, system, home, content.path, variant, items, files)
                transfer.meter.start()
                transfer.meter.mark()
                start = time.monotonic()
                peer, _ = system.start_peer(transfer, "source", home)
                listening = time.monotonic() - start
                wait_ready(system, home, items, files)
                ready = time.monotonic() - start
                usages = transfer.meter.finish()
            finally:
                transfer.stop()
            [usage] = [usage for usage in usages if usage.pid == peer.pid]
            return Outcome({"listening s": listening, "ready s": ready, "CPU s": usage.cpu, "peak anon MiB": usage.peak_anonymous / MIB})

    @staticmethod
    def _share_first(transfer: Transfer, system: Potluck, home: Path, content: Path, variant: str, items: int, files: int) -> None:
        """Shares the files once, so that the measured start finds all of them stored, including
        their plain SHA-256s."""
        if variant == LOOSE:
            (home / "files").mkdir(parents=True)
            for path in content.rglob("*"):
                if path.is_file():
                    (home / "files" / path.name).hardlink_to(path)
        peer, _ = system.start_peer(transfer, "first", home, *([] if variant == LOOSE else ["--share", str(content)]))
        wait_ready(system, home, items, files)
        wait_until(lambda: sum(follow([peer.pid], 1.0)) == 0, READY_TIMEOUT, "the peer does not become idle")
        transfer.allow_exit(peer.pid)
        peer.process.terminate()
        wait_until(lambda: peer.process.returncode is not None, 30, "the peer does not end")


def wait_ready(system: Potluck, home: Path, items: int, files: int) -> None:
    """Waits until the peer shares `items` items and the index has `files` files."""

    def ready() -> bool:
        status = system.ask(home, "status")
        return status["peer"]["registered"] and status["peer"]["items"] >= items and status["index"]["registrations"] >= files

    wait_until(ready, READY_TIMEOUT, "the peer is not ready", POLL_INTERVAL)


class Idle(Entry):
    """An index and a peer without clients."""

    def __init__(self, settings: dict[str, str], name: str, version: str):
        self._settings, self.name, self.version = settings, name, version

    def measure(self, bench: Bench, variant: int) -> Outcome:
        payload = bench.payload(variant)
        with bench.folder() as folder:
            transfer = Transfer(bench, Shape(1, variant), payload, folder, folder)
            system = Potluck(self._settings)
            try:
                index = system.start_index(transfer)
                peer, _ = system.start_peer(transfer, "source", folder / "peer", "--share", str(payload.path))
                wait_ready(system, folder / "peer", 1, 1)
                time.sleep(CALM_SECONDS)
                used = follow([index.pid, peer.pid], IDLE_SECONDS)
                memory = [transfer.meter.anonymous(role) / MIB for role in ("index", "source")]
            finally:
                transfer.stop()
        return Outcome({"index anon MiB": memory[0], "peer anon MiB": memory[1], "index CPU ms": used[0] * 1e3, "peer CPU ms": used[1] * 1e3})


def follow(pids: list[int], seconds: float) -> list[float]:
    """Processor time in seconds of each process from now on. An ended thread counts with its last
    sample."""
    before = [threads(pid) for pid in pids]
    seen = [dict(own) for own in before]
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        time.sleep(0.25)
        for own, pid in zip(seen, pids):
            own.update(threads(pid))
    return [sum(used - start.get(thread, 0.0) for thread, used in own.items()) for start, own in zip(before, seen)]


FOLDER, LOOSE = "one folder", "loose files"


def _idle(options: argparse.Namespace) -> dict[str, object]:
    return {"1 MiB shared": MIB}


CASES = (
    Case("start-up", "restart of a peer that shares 100,000 unchanged files of 4 KiB",
         lambda _: {FOLDER: FOLDER, LOOSE: LOOSE}, for_each_build(StartUp), compare=("listening s", "ready s")),
    Case("idle", f"an index and a peer without clients, for {IDLE_SECONDS:.0f} s", _idle, for_each_build(Idle),
         compare=("peer anon MiB", "peer CPU ms")),
)
