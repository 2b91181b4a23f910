"""Potluck: an index, one `potluck-peer` per node, and `potluck get` for each sink, as a user runs
them."""

from __future__ import annotations

import json
import time
from pathlib import Path

from common import potluck
from common.processes import TrialError

from ..trial import Child, Trial
from .base import System, Unavailable

INDEX_PORT = 1313
PEER_PORT = 12349
READY_TIMEOUT = 60.0
"""Seconds for the daemons to come up and the sources to be registered."""


class Potluck(System):
    """Options: `bin=DIR` (where the binaries are), `log=FILTER` (RUST_LOG of the daemons)."""

    name = "potluck"

    def __init__(self, options: dict[str, str]):
        super().__init__(options)
        self._bin = potluck.binaries(options)
        self._sources: list[Child] = []
        self._gets: list[Child] = []
        self._files: list[Path] = []
        self._endings: dict[int, dict] = {}
        self._id = ""

    @classmethod
    def version(cls, options: dict[str, str]) -> str:
        return potluck.version(potluck.binaries(options))

    def launch(self, trial: Trial) -> None:
        if trial.scenario.origin:
            raise Unavailable("no peer has the file")
        node = trial.infrastructure
        index = f"http://{node.address}:{INDEX_PORT}"
        up = trial.gate(1)
        trial.spawn(node, "index", [str(self._bin / "potluck-index"), "--listen", f"{node.address}:{INDEX_PORT}",
                                    "--data-dir", str(node.home / "index")], potluck.when_listening(up), potluck.environment(self.options))
        up.wait(READY_TIMEOUT)
        up = trial.gate(len(trial.sources) + len(trial.sinks))

        def daemon(node, role: str, host: str, *args: str) -> Child:
            return trial.spawn(node, role, [str(self._bin / "potluck-peer"), "--listen", f"{host}:{PEER_PORT}",
                                            "--home", str(node.home / "peer"), "--index", index, *args],
                               potluck.when_listening(up), potluck.environment(self.options))

        for number, (node, source) in enumerate(zip(trial.sources, trial.scenario.sources)):
            address = f"{node.address}:{PEER_PORT}"
            host, reached = node.address, []
            if source.corrupt:
                host, reached = "127.0.0.1", ["--advertise", address]
                trial.spawn_liar(node, "http2", PEER_PORT, source.corrupt, number)
            self._sources.append(daemon(node, "source", host, "--share", str(trial.payload), *reached))
        for node in trial.sinks:
            daemon(node, "sink", node.address)
        self._id = potluck.ask(self._bin, "id", str(trial.payload))["id"]
        up.wait(READY_TIMEOUT)
        self._wait_registered(trial, index)
        for number, node in enumerate(trial.sinks):
            self._files.append(node.home / trial.payload.name)
            get = [str(self._bin / "potluck"), "--index", index, "--peer", f"unix:{node.home}/peer/control.sock", "--json",
                   "get", self._id, "-o", str(self._files[number])]
            # Started beforehand, waiting for a line of input, so that all downloads begin at the
            # same moment.
            gate = ["sh", "-c", 'read -r _ && exec "$@" </dev/null', "get", *get]
            self._gets.append(trial.spawn(node, "get", gate, self._on_line(trial, number), potluck.environment(self.options),
                                          on_exit=self._on_exit(trial, number)))

    def begin(self, trial: Trial, sink: int) -> None:
        self._gets[sink].tell("")

    def source_pid(self, source: int) -> int:
        return self._sources[source].pid

    def arriving(self, sink: int) -> Path:
        part = self._files[sink].with_name(self._files[sink].name + ".part")
        return part if part.exists() else self._files[sink]

    def arrived(self, sink: int) -> Path:
        return self._files[sink]

    def sent_by_sources(self, trial: Trial) -> int | None:
        addresses = {f"{node.address}:{PEER_PORT}" for node in trial.sources}
        return sum(
            source["bytes"]
            for ending in self._endings.values()
            for source in ending["sources"]
            if source["address"] in addresses
        )

    def describe(self, trial: Trial) -> dict:
        return {"endings": self._endings}

    def _wait_registered(self, trial: Trial, index: str) -> None:
        deadline = time.monotonic() + READY_TIMEOUT
        while potluck.providers(self._bin, self._id, "--index", index, within=trial.infrastructure.command()) < len(trial.sources):
            if time.monotonic() > deadline:
                raise TrialError(f"the sources did not register in {READY_TIMEOUT:.0f} s")
            time.sleep(0.1)

    def _on_line(self, trial: Trial, sink: int):
        def on_line(line: str, _: Child) -> None:
            now = time.monotonic()
            event = json.loads(line)
            if event.get("event") == "progress":
                trial.progress(sink, now, event["bytes"])
            elif event.get("event") == "done":
                self._endings[sink] = event
                trial.progress(sink, now, event["size"])
                trial.done(sink, now)

        return on_line

    def _on_exit(self, trial: Trial, sink: int):
        def on_exit(code: int, child: Child) -> None:
            if sink not in self._endings:
                trial.failed(sink, f"potluck get ended with {code}: {child.log_tail()}")

        return on_exit
