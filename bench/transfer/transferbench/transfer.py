"""One transfer: the clock, the bill, and the look at what arrived."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from common.measure import Meter
from common.processes import DIE_WITH_PARENT, Child, Processes, TrialError
from common.unavailable import Unavailable
from common.units import MIB

from .bench import Bench, Payload, free_port, sha256
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

LINGER = 0.05
"""Seconds after the end that are still on the bill: helpers of some programs are only counted once they have ended."""

LINK = "link"
"""Role of the proxy that is the link; not on the bill."""

HELD = 'read -r _ && exec "$@" </dev/null'
"""Holds a command until a line comes, so that nothing but the command is in the time."""


@dataclass(frozen=True)
class Shape:
    """Who sends how much to how many."""

    sources: int
    size: int
    sinks: int = 1
    files: int = 1
    """More than one: a folder of so many, all of a size."""
    on_disk: bool = False
    """On the disk of `--disk-dir`, read cold and synced at the end; else in memory."""
    link: "Link | None" = None
    """Between the sources and the sinks; else only the loopback."""


@dataclass(frozen=True)
class Link:
    """A link with a rate in bits a second and a delay in seconds each way."""

    rate: float
    delay: float
    queue: float = 0.05
    """Length of the queue before it, as time at its rate."""


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
        self.delivered: list[tuple[float, int]] = []
        """What came out of the link: (monotonic seconds, bytes so far)."""
        self._finished = threading.Condition()
        self._done: dict[int, float] = {}

    # What systems call.

    def spawn(self, role: str, command: list[str], on_line=lambda *_: None, on_exit=None, environment=None) -> Child:
        """Starts a process that is on the bill. `role` is `source` or `downloader` for those whose memory is told."""
        return self.start([*DIE_WITH_PARENT, *map(str, command)], role, self.folder, on_line, environment, on_exit)

    def reach(self, port: int) -> int:
        """Where the sinks reach what listens on a port: behind the link, where there is one."""
        link = self.shape.link
        if not link:
            return port
        outer = free_port()
        up = self.gate(1)

        def on_line(line: str, _: Child) -> None:
            if line.startswith("listening on "):
                up.one()
            else:
                self.delivered.append((time.monotonic(), int(line.split()[1])))

        self.spawn(LINK, [link_program(self.bench), f"127.0.0.1:{outer}", f"127.0.0.1:{port}", link.rate, link.delay * 1e3, link.queue * 1e3], on_line)
        up.wait()
        return outer

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

    def prepare(self) -> None:
        """Makes the memory be there that the result takes."""
        touch(self.target, self.shape.size * self.shape.sinks)

    def run(self, begin: Callable[[], None], arriving: tuple[Path, ...] = (), at_once: bool = False) -> tuple[float, list]:
        """Seconds from `begin` until the last sink had its file, and what each process used. `arriving` must be on the disk in the end.
        `at_once`: nothing is waited for, as `prepare` was called before."""
        deadline = PATIENCE + self.shape.size * self.shape.sinks / SLOWEST
        if arriving:
            os.sync()
            drop_caches()
        elif not at_once:
            self.prepare()
        if not at_once:
            time.sleep(SETTLE)
        self.raise_failure()
        self.meter.forget_peaks()
        self.meter.start()
        self.meter.mark()
        self.started = start = time.monotonic()
        begin()
        with self._finished:
            while len(self._done) < self.shape.sinks:
                self.raise_failure()
                left = deadline - (time.monotonic() - start)
                if left < 0:
                    raise TrialError(f"given up after {deadline:.0f} s")
                self._finished.wait(left)
        end = max(self._done.values())
        for path in arriving:
            with path.open("rb") as file:
                os.fsync(file.fileno())
            end = time.monotonic()
        time.sleep(LINGER)
        return end - start, [usage for usage in self.meter.finish() if usage.role != LINK]


def touch(folder: Path, size: int) -> None:
    """Makes memory that is about to be written be there: to a virtual machine whose host takes back what is free, the first touch costs more
    than all else, and to whom it falls is chance."""
    path = folder / "touched"
    zeros = bytes(4 * MIB)
    with path.open("wb") as file:
        for _ in range(min(size, available() // 2) // len(zeros)):
            file.write(zeros)
    path.unlink()


def drop_caches() -> None:
    """What was read before is read from the disk again. Only root can; else what is in memory stays there."""
    try:
        Path("/proc/sys/vm/drop_caches").write_text("3")
    except PermissionError:
        print("not root: files in the page cache stay there", file=sys.stderr)


def link_program(bench: Bench) -> Path:
    """The proxy that is the link, compiled when it is first needed."""
    program = bench.scratch / "link"
    if not program.exists():
        if not shutil.which("rustc"):
            raise Unavailable("no rustc for the link")
        subprocess.run(["rustc", "-O", "--edition", "2024", "-o", program, Path(__file__).with_name("link.rs")], check=True)
    return program


class TransferEntry(Entry):
    """A system as an entry of the cases in which a file is moved."""

    def __init__(self, make: Callable[[], "System"], name: str, version: str):
        self._make = make
        self.name = name
        self.version = version

    def measure(self, bench: Bench, variant: Shape) -> Outcome:
        shape = variant
        need_room(bench, shape)
        if shape.files > 1:
            payload = bench.tree(shape.files, shape.size // shape.files)
        else:
            payload = bench.payload(shape.size, bench.options.disk_dir if shape.on_disk else None)
        expected = payload.sha256
        system = self._make()
        with bench.folder() as folder:
            target = bench.options.disk_dir / f"target-{os.getpid()}" if shape.on_disk else folder / "target"
            transfer = Transfer(bench, shape, payload, folder, target)
            target.mkdir()
            try:
                system.launch(transfer)
                seconds, usages = transfer.run(lambda: system.begin(transfer), tuple(system.arrived(transfer)) if shape.on_disk else ())
                for path in system.arrived(transfer):
                    if sha256(path) != expected:
                        raise TrialError(f"{path.name} ended with other bytes than were shared")
            finally:
                transfer.stop()
                shutil.rmtree(target)
            numbers, series = values(shape, seconds, usages, transfer.meter.others_cpu()), {}
            if shape.link:
                points = [(at - transfer.started, count) for at, count in transfer.delivered]
                numbers["share of link"] = share_of_link(points, seconds, shape.link)
                series["MiB/s"] = [(t, rate / MIB) for t, rate in rates(points, seconds)]
            return Outcome(numbers, series, {
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


WARM = 2.0
"""Seconds after which a transfer should fill its link."""


def share_of_link(points: list[tuple[float, int]], seconds: float, link: Link) -> float:
    """What came through of what could have, between `WARM` and the end; `points` are (seconds, bytes so far). Pure."""
    inside = [(t, count) for t, count in points if WARM <= t <= seconds]
    if len(inside) < 2:
        return 0.0
    (start, before), (end, after) = inside[0], inside[-1]
    return (after - before) * 8 / ((end - start) * link.rate)


def rates(points: list[tuple[float, int]], seconds: float) -> list[tuple[float, float]]:
    """Bytes a second between each two points of the transfer. Pure."""
    inside = [(t, count) for t, count in points if t <= seconds]
    return [(t, (count - before) / (t - since)) for (since, before), (t, count) in zip(inside, inside[1:]) if t > 0]


def need_room(bench: Bench, shape: Shape) -> None:
    """A transfer in memory needs room for what is shared, what arrives and the programs."""
    need = shape.size * (1 + shape.sinks) + RESERVE
    held = sum(payload.size for payload in bench.payloads)
    if not shape.on_disk and need > available() + held:
        raise Unavailable(f"it needs {need >> 20} MiB of memory, and {available() + held >> 20} are available")


RESERVE = 1 << 30
"""Bytes for the programs and everything else."""


def available() -> int:
    """Bytes of memory that can be had, and the folder for files in memory has."""
    for line in Path("/proc/meminfo").read_text().splitlines():
        if line.startswith("MemAvailable:"):
            return int(line.split()[1]) * 1024
    raise RuntimeError("no MemAvailable in /proc/meminfo")
