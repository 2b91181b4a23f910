"""One run of one system in one scenario, from making the links to removing them."""

from __future__ import annotations

import filecmp
import json
import os
import shutil
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from common.measure import Meter
from common.processes import Child, Processes, TrialError, send

from .network import Network, Node
from .scenario import Act, Event, Link, Scenario, Trigger

if TYPE_CHECKING:
    from .systems import System

TICK = 0.02
"""Polling interval in seconds; events may be late by this much."""

TIMEOUT_IN_BOUNDS = 10.0
"""A run times out after this many times its bound, but not before `MIN_TIMEOUT` seconds."""
MIN_TIMEOUT = 60.0

BLOCK = 16 * 1024
"""Block size for detecting arrived bytes."""
PIECE = 256 * 1024
SAMPLE = 8
"""Bytes compared at the start of a block: the payload is random, so a match means that the block
has arrived."""

SETTLE = 0.3
"""Seconds between the arrival of all pieces and the departure of a source: written bytes may not be
verified yet."""


class Trial(Processes):
    """State of a run that the system and the driver share."""

    def __init__(self, scenario: Scenario, network: Network, folder: Path, payload: Path, nice: int):
        super().__init__(Meter())
        self.scenario = scenario
        self.folder = folder
        self.payload = payload
        self._nice = nice
        self._curves: dict[int, list[tuple[float, int]]] = {i: [] for i in range(len(scenario.sinks))}
        self._done: dict[int, float] = {}

        def node(name: str, link: Link) -> Node:
            node = network.add(name, link)
            node.home = folder / name
            node.home.mkdir()
            return node

        self.infrastructure = node("index", Link.even(100))
        self.sources = [node(f"s{i}", source.link) for i, source in enumerate(scenario.sources)]
        self.sinks = [node(f"p{i}", sink.link) for i, sink in enumerate(scenario.sinks)]

    # Called by systems.

    def spawn(
        self,
        node: Node,
        role: str,
        command: list[str],
        on_line: Callable[[str, Child], None],
        environment: dict[str, str] | None = None,
        on_exit: Callable[[int, Child], None] | None = None,
    ) -> Child:
        """Starts a process in the node. Call it from the main thread: the kernel ends the process
        with the thread that started it."""
        return self.start(["nice", "-n", str(self._nice), *node.command(*command)], role, node.home, on_line, environment, on_exit,
                          f" on {node.name}")

    def spawn_liar(self, node: Node, protocol: str, port: int, share: float, seed: int) -> None:
        """Starts a proxy on the node's address that corrupts a fraction `share` of the pieces that
        the peer on its loopback sends."""
        config = {"listen": [node.address, port], "forward": ["127.0.0.1", port], "protocol": protocol, "share": share,
                  "piece": PIECE, "seed": seed}
        script = Path(__file__).with_name("systems") / "corrupting_proxy.py"
        gate = self.gate(1)
        self.spawn(node, "liar", [sys.executable, "-P", str(script), json.dumps(config)], lambda *_: gate.one())
        gate.wait()

    def progress(self, sink: int, at: float, verified: int) -> None:
        """Records that `verified` bytes were complete at `at` on the monotonic clock."""
        with self._lock:
            self._curves[sink].append((at, verified))

    def done(self, sink: int, at: float) -> None:
        with self._lock:
            self._done.setdefault(sink, at)

    def failed(self, sink: int, message: str) -> None:
        self.fail(f"{self.sinks[sink].name}: {message}")

    # Called by the driver.

    def run(self, system: "System", network: Network) -> dict:
        scenario = self.scenario
        deadline_after = max(MIN_TIMEOUT, TIMEOUT_IN_BOUNDS * scenario.bound())
        system.launch(self)
        self.meter.start()
        before = {node.name: network.traffic(node) for node in network.nodes}
        waiting = sorted(range(len(self.sinks)), key=lambda i: scenario.sinks[i].arrival)
        events = _Events(self, system)
        self.meter.mark()
        start = time.monotonic()
        while not all(i in self._done for i in scenario.counted):
            self.raise_failure()
            now = time.monotonic() - start
            if now > deadline_after:
                raise TrialError(f"timed out after {now:.0f} s; {self._state()}")
            while waiting and scenario.sinks[waiting[0]].arrival <= now:
                system.begin(self, waiting.pop(0))
            events.look(now)
            time.sleep(TICK)
        usages = self.meter.finish()
        after = {node.name: network.traffic(node) for node in network.nodes}
        sent = system.sent_by_sources(self)
        self._check(system)
        self.stop()
        return {
            "bound": scenario.bound(),
            "sinks": [
                {
                    "node": self.sinks[i].name,
                    "arrival": sink.arrival,
                    "counted": sink.counted,
                    "own_bound": scenario.own_bound(i),
                    "seconds": self._done[i] - start - sink.arrival if i in self._done else None,
                    "curve": [(round(at - start, 4), verified) for at, verified in self._curves[i]],
                }
                for i, sink in enumerate(scenario.sinks)
            ],
            "events": events.fired,
            "sources_sent_payload": sent,
            "frames": {
                name: {"sent": after[name].sent - before[name].sent, "received": after[name].received - before[name].received}
                for name in after
            },
            "drops": network.drops(),
            "processes": [
                {"role": u.role, "cpu": round(u.cpu, 3), "peak_anonymous": u.peak_anonymous, "peak_resident": u.peak_resident}
                for u in usages
            ],
            "driver_cpu": round(self.meter.own_cpu, 3),
            "others_cpu": round(self.meter.others_cpu(), 3),
            "system": system.describe(self),
        }

    def first_progress(self) -> float:
        """Fraction of the file that the first counted sink has."""
        with self._lock:
            best = max((curve[-1][1] for i, curve in self._curves.items() if curve and self.scenario.sinks[i].counted), default=0)
        return best / self.scenario.size

    def _check(self, system: "System") -> None:
        for sink in self.scenario.counted:
            if not same(self.payload, system.arrived(sink)):
                raise TrialError(f"{self.sinks[sink].name} differs from the original")

    def _state(self) -> str:
        have = (f"{self.sinks[i].name} {curve[-1][1] * 100 // self.scenario.size if curve else 0} %"
                for i, curve in self._curves.items() if i not in self._done)
        return "unfinished: " + ", ".join(have)


class _Events:
    """Triggers the scenario's events when they are due."""

    def __init__(self, trial: Trial, system: "System"):
        self._trial = trial
        self._system = system
        self._left = list(trial.scenario.events)
        self._pieces = _Pieces(trial, system)
        self._ripe: dict[int, float] = {}
        self.fired: list[dict] = []

    def look(self, now: float) -> None:
        for event in list(self._left):
            if self._due(event, now):
                self._left.remove(event)
                pid = self._system.source_pid(event.source)
                self._trial.allow_exit(pid)
                send(pid, {Act.STALL: signal.SIGSTOP, Act.LEAVE: signal.SIGTERM, Act.DIE: signal.SIGKILL}[event.act])
                self.fired.append({"at": round(now, 3), "source": event.source, "act": event.act.name})

    def _due(self, event: Event, now: float) -> bool:
        if event.trigger is Trigger.AT_FRACTION:
            return self._trial.first_progress() >= event.fraction
        if not self._pieces.all_out(now):
            return False
        return now >= self._ripe.setdefault(id(event), now + SETTLE)


class _Pieces:
    """The blocks that are complete on the disk of any sink; works for every system."""

    INTERVAL = 0.1

    def __init__(self, trial: Trial, system: "System"):
        self._trial = trial
        self._system = system
        self._missing = list(range((trial.scenario.size + PIECE - 1) // PIECE))
        self._due = 0.0

    def all_out(self, now: float) -> bool:
        if now >= self._due and self._missing:
            self._due = now + self.INTERVAL
            with self._trial.payload.open("rb") as payload:
                for sink in range(len(self._trial.sinks)):
                    try:
                        file = self._system.arriving(sink).open("rb")
                    except FileNotFoundError:
                        continue
                    with file:
                        self._missing = [piece for piece in self._missing if not self._holds(file, payload, piece)]
        return not self._missing

    def _holds(self, file, payload, piece: int) -> bool:
        end = min(self._trial.scenario.size, (piece + 1) * PIECE)
        return all(
            os.pread(file.fileno(), SAMPLE, at) == os.pread(payload.fileno(), SAMPLE, at)
            for at in range(piece * PIECE, end, BLOCK)
        )


def same(one: Path, other: Path) -> bool:
    """Whether two files or two folder trees are equal."""
    if one.is_dir():
        names = sorted(path.name for path in one.iterdir())
        return other.is_dir() and names == sorted(path.name for path in other.iterdir()) and all(
            same(one / name, other / name) for name in names)
    return filecmp.cmp(one, other, shallow=False)


def run_trial(make: Callable[[], "System"], scenario: Scenario, scratch: Path, payload: Path, congestion_control: str | None,
              nice: int, keep: bool = False) -> dict:
    """One run. Always removes its processes, namespaces and files (`keep` leaves the files)."""
    folder = scratch / f"run-{os.getpid()}"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    trial = None
    try:
        with Network(congestion_control) as network:
            try:
                system = make()
                trial = Trial(scenario, network, folder, payload, nice)
                return trial.run(system, network)
            finally:
                if trial:
                    trial.stop()
    finally:
        if not keep:
            shutil.rmtree(folder, ignore_errors=True)
