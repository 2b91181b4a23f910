"""One transfer: measures time and cost, and compares the result with the original."""

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
"""Seconds between two memory samples, short enough to see the peak of a transfer of one second."""
MAX_SAMPLES_PER_SECOND = 600.0
"""Maximum memory samples per second over all processes: each costs about 25 µs and must not distort
the result."""

SETTLE = 0.3
"""Seconds between the last preparation and the start."""

BASE_TIMEOUT = 120.0
"""A transfer times out after this many seconds, and one more for every `MIN_RATE` bytes."""
MIN_RATE = 20 * MIB

LINGER = 0.05
"""Seconds after the end whose processor time still counts: the kernel reports the time of some
child processes only after they end."""

LINK = "link"
"""Role of the proxy that simulates the link; its cost is not counted."""

WAIT_FOR_LINE = 'read -r _ && exec "$@" </dev/null'
"""Holds a command until it reads a line, so that only the command is timed."""


@dataclass(frozen=True)
class Shape:
    """Numbers of sources, sinks and files, and the size."""

    sources: int
    size: int
    sinks: int = 1
    files: int = 1
    """If more than one: a folder of this many files of equal size."""
    on_disk: bool = False
    """Whether the files are on the disk of `--disk-dir`, read cold and synced at the end; otherwise
    in memory."""
    link: "Link | None" = None
    """The link between the sources and the sinks; `None` is the plain loopback."""


@dataclass(frozen=True)
class Link:
    """A link with a rate in bits per second and a delay in seconds in each direction."""

    rate: float
    delay: float
    queue: float = 0.05
    """Length of the queue before the link, as time at its rate."""


class Transfer(Processes):
    """State of a transfer that the system and the driver share."""

    def __init__(self, bench: Bench, shape: Shape, payload: Payload, folder: Path, target: Path):
        processes = 2 + shape.sources + 2 * shape.sinks
        super().__init__(Meter(max(SAMPLING, processes / MAX_SAMPLES_PER_SECOND)))
        self.bench = bench
        self.shape = shape
        self.payload = payload
        self.folder = folder
        self.target = target
        self.delivered: list[tuple[float, int]] = []
        """Bytes delivered by the link: (monotonic seconds, bytes so far)."""
        self._finished = threading.Condition()
        self._done: dict[int, float] = {}

    # Called by systems.

    def spawn(self, role: str, command: list[str], on_line=lambda *_: None, on_exit=None, environment=None) -> Child:
        """Starts a process whose cost counts. The memory of the roles `source` and `downloader` is
        reported."""
        return self.start([*DIE_WITH_PARENT, *map(str, command)], role, self.folder, on_line, environment, on_exit)

    def reach(self, port: int) -> int:
        """The port on which the sinks reach a source's port: that of the link, if there is one."""
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
        """Starts a command that waits for a line of input."""
        return self.spawn(role, ["sh", "-c", WAIT_FOR_LINE, role, *command], on_line, on_exit, environment)

    def done(self, sink: int = 0) -> None:
        """Called when the downloader reports that its file is complete, and verified if it
        verifies."""
        now = time.monotonic()
        with self._finished:
            self._done.setdefault(sink, now)
            self._finished.notify_all()

    def done_at_exit(self, sink: int = 0) -> Callable[[int, Child], None]:
        """Treats the success of a command as the end of the download."""

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

    # Called by the driver.

    def prepare(self) -> None:
        """Warms the memory that the result will take."""
        touch(self.target, self.shape.size * self.shape.sinks)

    def run(self, begin: Callable[[], None], arriving: tuple[Path, ...] = (), at_once: bool = False) -> tuple[float, list]:
        """Returns the seconds from `begin` until the last sink has its file, and the usage of each
        process. `arriving` is synced to the disk before the end. With `at_once` it starts
        immediately: `prepare` was called before."""
        deadline = BASE_TIMEOUT + self.shape.size * self.shape.sinks / MIN_RATE
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
                    raise TrialError(f"timed out after {deadline:.0f} s")
                self._finished.wait(left)
        end = max(self._done.values())
        for path in arriving:
            with path.open("rb") as file:
                os.fsync(file.fileno())
            end = time.monotonic()
        time.sleep(LINGER)
        return end - start, [usage for usage in self.meter.finish() if usage.role != LINK]


def touch(folder: Path, size: int) -> None:
    """Warms memory that is about to be written. In a virtual machine whose host takes back free
    memory, the first touch of a page is slow, and would slow down one program by chance."""
    path = folder / "touched"
    zeros = bytes(4 * MIB)
    with path.open("wb") as file:
        for _ in range(min(size, available() // 2) // len(zeros)):
            file.write(zeros)
    path.unlink()


def drop_caches() -> None:
    """Empties the page cache, so that files are read from the disk. Needs root; otherwise it does
    nothing."""
    try:
        Path("/proc/sys/vm/drop_caches").write_text("3")
    except PermissionError:
        print("cannot empty the page cache: not root", file=sys.stderr)


def link_program(bench: Bench) -> Path:
    """The proxy that simulates the link, compiled on first use."""
    program = bench.scratch / "link"
    if not program.exists():
        if not shutil.which("rustc"):
            raise Unavailable("the link needs rustc")
        subprocess.run(["rustc", "-O", "--edition", "2024", "-o", program, Path(__file__).with_name("link.rs")], check=True)
    return program


class TransferEntry(Entry):
    """A system as an entry of the cases that move a file."""

    def __init__(self, make: Callable[[], "System"], name: str, version: str):
        self._make = make
        self.name = name
        self.version = version

    def measure(self, bench: Bench, variant: Shape) -> Outcome:
        shape = variant
        require_memory(bench, shape)
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
                        raise TrialError(f"{path.name} differs from the original")
            finally:
                transfer.stop()
                shutil.rmtree(target)
            numbers, series = values(shape, seconds, usages, transfer.meter.others_cpu()), {}
            if shape.link:
                points = [(at - transfer.started, count) for at, count in transfer.delivered]
                numbers["share of link"] = fraction_of_link(points, seconds, shape.link)
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


def fraction_of_link(points: list[tuple[float, int]], seconds: float, link: Link) -> float:
    """The fraction of the link's rate that was used between `WARM` and the end; `points` are
    (seconds, bytes so far). Pure."""
    inside = [(t, count) for t, count in points if WARM <= t <= seconds]
    if len(inside) < 2:
        return 0.0
    (start, before), (end, after) = inside[0], inside[-1]
    return (after - before) * 8 / ((end - start) * link.rate)


def rates(points: list[tuple[float, int]], seconds: float) -> list[tuple[float, float]]:
    """Bytes per second between successive points of the transfer. Pure."""
    inside = [(t, count) for t, count in points if t <= seconds]
    return [(t, (count - before) / (t - since)) for (since, before), (t, count) in zip(inside, inside[1:]) if t > 0]


def require_memory(bench: Bench, shape: Shape) -> None:
    """Raises `Unavailable` if memory cannot hold the payload, the downloads and the programs."""
    need = shape.size * (1 + shape.sinks) + RESERVE
    held = sum(payload.size for payload in bench.payloads)
    if not shape.on_disk and need > available() + held:
        raise Unavailable(f"it needs {need >> 20} MiB of memory, but only {available() + held >> 20} are available")


RESERVE = 1 << 30
"""Bytes for the programs and everything else."""


def available() -> int:
    """Available memory in bytes, which is also the space for files in memory."""
    for line in Path("/proc/meminfo").read_text().splitlines():
        if line.startswith("MemAvailable:"):
            return int(line.split()[1]) * 1024
    raise RuntimeError("no MemAvailable in /proc/meminfo")
