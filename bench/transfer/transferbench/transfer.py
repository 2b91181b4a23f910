"""One transfer: the clock, the bill, and the look at what arrived."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from common.measure import Meter
from common.processes import DIE_WITH_PARENT, Child, Processes, TrialError
from common.units import MIB

from .bench import Bench, Payload, sha256
from .case import Entry, Outcome

if TYPE_CHECKING:
    from .systems.base import System

SAMPLING = 0.02
"""Seconds between two looks at memory: a peak that a transfer of a second has must not be missed."""
MOST_SAMPLES = 600.0
"""Looks a second over all processes: each costs some 25 µs, and the looking should not be what is measured."""

SETTLE = 0.3
"""Seconds between the last preparation and the start."""

PATIENCE = 120.0
"""A transfer is given up after this many seconds, and one more for every `SLOWEST` bytes."""
SLOWEST = 20 * MIB

HELD = 'read -r _ && exec "$@" </dev/null'
"""Holds a command until a line comes, so that nothing but the command is in the time."""


@dataclass(frozen=True)
class Shape:
    """Who sends how much to how many."""

    sources: int
    size: int
    sinks: int = 1
    on_disk: bool = False
    """On the disk of `--disk-dir`, read cold and synced at the end; else in memory."""
    link: "Link | None" = None
    """Between the sources and the sinks; else only the loopback."""


@dataclass(frozen=True)
class Link:
    """A link with a rate in bits a second and a delay in seconds each way."""

    rate: float
    delay: float


class Transfer(Processes):
    """State of a transfer that the system and the driver share."""

    def __init__(self, bench: Bench, shape: Shape, payload: Payload, folder: Path, target: Path):
        processes = 2 + shape.sources + 2 * shape.sinks
        super().__init__(Meter(max(SAMPLING, processes / MOST_SAMPLES)))
        self.bench = bench
        self.shape = shape
        self.payload = payload
        self.folder = folder
        self.target = target
        self.reach: Callable[[int], int] = lambda port: port
        """Where the sinks reach what listens on a port: behind the link, where there is one."""
        self._finished = threading.Condition()
        self._done: dict[int, float] = {}

    # What systems call.

    def spawn(self, role: str, command: list[str], on_line=lambda *_: None, on_exit=None, environment=None) -> Child:
        """Starts a process that is on the bill. `role` is `source` or `downloader` for those whose memory is told."""
        return self.start([*DIE_WITH_PARENT, *map(str, command)], role, self.folder, on_line, environment, on_exit)

    def hold(self, role: str, command: list[str], on_line=lambda *_: None, on_exit=None, environment=None) -> Child:
        """A command that is ready to go, and goes when its child is told a line."""
        return self.spawn(role, ["sh", "-c", HELD, role, *command], on_line, on_exit, environment)

    def done(self, sink: int = 0) -> None:
        """The downloader says now that its file is complete, and verified if it verifies."""
        now = time.monotonic()
        with self._finished:
            self._done.setdefault(sink, now)
            self._finished.notify_all()

    def done_at_exit(self, sink: int = 0) -> Callable[[int, Child], None]:
        """Takes a command's success as its word."""

        def on_exit(code: int, child: Child) -> None:
            if code == 0:
                self.done(sink)
            else:
                self.fail(f"ended with {code}: {child.log_tail()}")

        return on_exit

    def fail(self, message: str) -> None:
        super().fail(message)
        with self._finished:
            self._finished.notify_all()

    # What the driver calls.

    def run(self, system: "System") -> tuple[float, list]:
        """Seconds until the last sink had its file, and what each process used."""
        deadline = PATIENCE + self.shape.size * self.shape.sinks / SLOWEST
        time.sleep(SETTLE)
        self.raise_failure()
        self.meter.forget_peaks()
        self.meter.start()
        self.meter.mark()
        start = time.monotonic()
        system.begin(self)
        with self._finished:
            while len(self._done) < self.shape.sinks:
                self.raise_failure()
                left = deadline - (time.monotonic() - start)
                if left < 0:
                    raise TrialError(f"given up after {deadline:.0f} s")
                self._finished.wait(left)
        if self.shape.on_disk:
            sync(system.arrived(self))
            self.done_at_last()
        usages = self.meter.finish()
        return max(self._done.values()) - start, usages

    def done_at_last(self) -> None:
        with self._finished:
            self._done[0] = time.monotonic()


def sync(files: list[Path]) -> None:
    """Until they are on the disk."""
    import os

    for path in files:
        with path.open("rb") as file:
            os.fsync(file.fileno())


class TransferEntry(Entry):
    """A system as an entry of the cases in which a file is moved."""

    def __init__(self, make: Callable[[], "System"], name: str, version: str):
        self._make = make
        self.name = name
        self.version = version

    def measure(self, bench: Bench, variant: Shape) -> Outcome:
        shape = variant
        payload = bench.payload(shape.size, bench.options.disk_dir if shape.on_disk else None)
        expected = payload.sha256
        system = self._make()
        with bench.folder() as folder:
            target = folder / "target"
            transfer = Transfer(bench, shape, payload, folder, target)
            target.mkdir()
            try:
                system.launch(transfer)
                seconds, usages = transfer.run(system)
                for path in system.arrived(transfer):
                    if sha256(path) != expected:
                        raise TrialError(f"{path.name} ended with other bytes than were shared")
            finally:
                transfer.stop()
            return Outcome(values(shape, seconds, usages, transfer.meter.others_cpu()), more={
                "processes": [{"role": u.role, "cpu": round(u.cpu, 3), "peak_anonymous": u.peak_anonymous} for u in usages],
                "driver_cpu": round(transfer.meter.own_cpu, 3),
            })


def values(shape: Shape, seconds: float, usages: list, others: float) -> dict[str, float]:
    """The numbers of a transfer. Pure."""
    moved = shape.size * shape.sinks

    def memory(role: str) -> float:
        return max((usage.peak_anonymous for usage in usages if usage.role == role), default=0) / MIB

    return {
        "seconds": seconds,
        "MiB/s": moved / MIB / seconds,
        "CPU s/GiB": sum(usage.cpu for usage in usages) / (moved / 2**30),
        "downloader anon MiB": memory("downloader"),
        "source anon MiB": memory("source"),
        "others' CPUs": others / seconds,
    }
