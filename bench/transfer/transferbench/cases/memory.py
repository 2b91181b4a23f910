"""Memory of daemons under unusual load."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from common.processes import TrialError
from common.unavailable import Unavailable
from common.units import MIB

from .. import slow_readers
from ..bench import Bench, Payload, sha256
from ..case import Case, Entry, Outcome
from ..entries import for_each_build
from ..systems.potluck import Potluck
from ..transfer import Shape, Transfer
from .files import GIB, size_name

READERS = 1_000
CONNECTIONS = 10
"""A hundred streams each, within a peer's limit per connection."""
BYTES_PER_SECOND = 4
BEFORE_GET = 10.0
"""Seconds of slow reading before the `get` starts."""
AFTER_GET = 2.0
SAMPLE_INTERVAL = 0.1
"""Seconds between two memory samples."""


class SlowReaders(Entry):
    """A thousand readers that each take a few bytes per second, and then a plain `get` of the same
    file from the same peer."""

    def __init__(self, settings: dict[str, str], name: str, version: str):
        self._settings, self.name, self.version = settings, name, version

    def measure(self, bench: Bench, variant: int) -> Outcome:
        if not importlib.util.find_spec("h2"):
            raise Unavailable("h2 is not installed: pip install -r requirements.txt")
        payload = bench.payload(variant)
        with bench.folder() as folder:
            transfer = Transfer(bench, Shape(0, variant), payload, folder, folder)
            system, outcomes = Potluck(self._settings), {}
            try:
                system.start_index(transfer)
                _, port = system.start_peer(transfer, "source", folder / "s0", "--share", str(payload.path))
                system.start_peer(transfer, "downloader", folder / "p0")
                file = system.ask(folder / "s0", "id", str(payload.path))
                system.wait_registered(file["id"], 1)
                follow = MemoryLog(transfer, "source")
                before = self._get(transfer, system, file["id"], folder / "before.bin")
                follow.sample()
                config = {"port": port, "file": file["id"], "size": variant, "readers": READERS, "connections": CONNECTIONS,
                          "bytes_per_second": BYTES_PER_SECOND}
                ready = transfer.gate(1)

                def on_line(line: str, _) -> None:
                    if line == "ready":
                        ready.one()
                    else:
                        outcomes.update(json.loads(line))

                transfer.spawn("readers", [sys.executable, "-P", slow_readers.__file__, json.dumps(config)], on_line)
                calm = follow.peak
                ready.wait()
                follow.until(time.monotonic() + BEFORE_GET)
                system.ask(folder / "p0", "unshare", file["id"])
                (folder / "before.bin").unlink()
                meanwhile = self._get(transfer, system, file["id"], folder / "meanwhile.bin")
                follow.until(time.monotonic() + AFTER_GET)
            finally:
                transfer.stop()
        return Outcome({"get alone MiB/s": before, "get meanwhile MiB/s": meanwhile, "anon before MiB": calm / MIB, "peak anon MiB": follow.peak / MIB,
                        "readers served": outcomes.get("answered", 0) - sum(n for key, n in outcomes.items() if key.startswith("status"))},
                       {"source anon MiB": [(t, size / MIB) for t, size in follow.seen]}, {"readers": outcomes})

    @staticmethod
    def _get(transfer: Transfer, system: Potluck, file: str, target: Path) -> float:
        start = time.monotonic()
        system.ask(target.parent / "p0", "get", file, "-o", str(target))
        took = time.monotonic() - start
        if sha256(target) != transfer.payload.sha256:
            raise TrialError("the file differs from the original")
        return transfer.payload.size / MIB / took


@dataclass(frozen=True)
class Holes:
    """A file that consists of holes, and takes no memory at its sources."""

    size: int
    sources: int = 1
    get: int = 2 * GIB
    """Bytes that are downloaded: these take memory."""

    def name(self) -> str:
        return f"{size_name(self.size)} from {self.sources}"


class Sparse(Entry):
    """Shares a sparse file that is larger than memory, and downloads a part of it."""

    TIMEOUT = 150.0

    def __init__(self, settings: dict[str, str], name: str, version: str):
        self._settings, self.name, self.version = settings, name, version

    def measure(self, bench: Bench, variant: Holes) -> Outcome:
        size = variant.size
        with bench.folder() as folder, room(folder / "room", size + GIB) as target:
            path = folder / "sparse.img"
            with path.open("wb") as file:
                file.truncate(size)
            transfer = Transfer(bench, Shape(0, size), Payload(path, size), folder, folder)
            system = Potluck(self._settings)
            shared, got = [], []
            try:
                system.start_index(transfer)
                for source in range(variant.sources):
                    system.start_peer(transfer, "source", folder / f"s{source}")
                system.start_peer(transfer, "downloader", folder / "p0")
                sharing = MemoryLog(transfer, "source")
                start = time.monotonic()
                share = transfer.hold("command", system.command(folder / "s0", "share", str(path)),
                                      lambda line, _: shared.append(json.loads(line)), on_exit=lambda *_: None)
                share.tell("")
                sharing.until(start + self.TIMEOUT, lambda: shared)
                if not shared:
                    raise TrialError(f"not shared after {self.TIMEOUT:.0f} s")
                share_seconds = time.monotonic() - start
                for source in range(1, variant.sources):
                    system.ask(folder / f"s{source}", "share", str(path))
                system.wait_registered(shared[0]["id"], variant.sources)
                source, downloader = MemoryLog(transfer, "source"), MemoryLog(transfer, "downloader")
                start = time.monotonic()
                get = transfer.hold("command", system.command(folder / "p0", "get", shared[0]["id"], "-o", str(target / "arrived.img")),
                                    lambda line, _: got.append(json.loads(line)), on_exit=lambda *_: None)
                get.tell("")

                def bytes_there() -> int:
                    return max((event["bytes"] for event in got if event.get("event") == "progress"), default=0)

                while bytes_there() < min(variant.get, size) and time.monotonic() < start + self.TIMEOUT and get.process.returncode is None:
                    source.sample()
                    downloader.sample()
                    time.sleep(SAMPLE_INTERVAL)
                get_seconds, arrived = time.monotonic() - start, bytes_there()
                if not arrived:
                    raise TrialError(f"nothing arrived: {get.log_tail()}")
            finally:
                transfer.stop()
        return Outcome({
            "share s": share_seconds, "share MiB/s": size / MIB / share_seconds, "sharing anon MiB": sharing.peak / MIB,
            "get MiB/s": arrived / MIB / get_seconds, "source anon MiB": source.peak / variant.sources / MIB, "downloader anon MiB": downloader.peak / MIB,
        }, {"sharing anon MiB": [(t, size / MIB) for t, size in sharing.seen]})


@contextmanager
def room(folder: Path, size: int) -> Iterator[Path]:
    """A tmpfs that reports more space than there is memory, because a peer does not start a
    download that does not fit."""
    folder.mkdir()
    if os.geteuid() != 0:
        raise Unavailable("it mounts a tmpfs: run it as root")
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "potluck-transfer", str(folder)], check=True)
    try:
        yield folder
    finally:
        subprocess.run(["umount", str(folder)], check=True)


class MemoryLog:
    """The anonymous memory of a role over time."""

    def __init__(self, transfer: Transfer, role: str):
        self._transfer, self._role, self._start = transfer, role, time.monotonic()
        self.seen: list[tuple[float, int]] = []
        self.sample()

    @property
    def peak(self) -> int:
        return max(size for _, size in self.seen)

    def sample(self) -> None:
        self._transfer.raise_failure()
        self.seen.append((time.monotonic() - self._start, self._transfer.meter.anonymous(self._role)))

    def until(self, end: float, enough=lambda: False) -> None:
        """Samples until the time `end`, or until `enough()`."""
        while time.monotonic() < end and not enough():
            self.sample()
            time.sleep(SAMPLE_INTERVAL)


CASES = (
    Case("slow-readers", f"{READERS:,} readers of one peer that each take {BYTES_PER_SECOND} bytes per second, and a plain `get` from the same peer meanwhile",
         lambda options: {size_name(options.size or 512 * MIB): options.size or 512 * MIB}, for_each_build(SlowReaders),
         compare=("get meanwhile MiB/s", "peak anon MiB"), plot="series"),
    Case("sparse", "a sparse file is shared, and a part of it downloaded",
         lambda options: {holes.name(): holes for holes in (Holes(options.size or 100 * GIB), Holes(options.size or 16 * GIB, 4, 12 * GIB))}, for_each_build(Sparse),
         compare=("share MiB/s", "get MiB/s"), plot="series"),
)
