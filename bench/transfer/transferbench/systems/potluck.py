"""Potluck: an index, one `potluck-peer` per node, and `potluck get` for each sink, as a user runs
them."""

from __future__ import annotations

import json
from pathlib import Path

from common import potluck
from common.processes import Child

from ..bench import free_port, wait_until
from ..transfer import Transfer
from .base import System

READY_TIMEOUT = 300.0
"""Seconds that the sources may take to hash and register the file, or that daemons may take to
start."""


class Potluck(System):
    """Options: `bin=DIR` (where the binaries are), `label=NAME` (for several builds side by side), `log=FILTER` (RUST_LOG of the daemons)."""

    name = "potluck"

    def __init__(self, options: dict[str, str]):
        super().__init__(options)
        self.bin = potluck.binaries(options)
        self.index = ""
        self.id = ""
        self._gets: list[Child] = []

    @classmethod
    def version(cls, options: dict[str, str]) -> str:
        return potluck.version(potluck.binaries(options))

    def launch(self, transfer: Transfer) -> None:
        shape = transfer.shape
        self.start_index(transfer)
        self.id = potluck.ask(self.bin, "id", str(transfer.payload.path))["id"]
        for number in range(shape.sources):
            # The home is kept, so the file is hashed once and not in every round.
            home = transfer.bench.kept(f"{self.name}-{self.options.get('label', '')}-s{number}")
            self.start_peer(transfer, "source", home, "--share", str(transfer.payload.path), behind_link=True)
        self.start_sinks(transfer, self.id)
        self.wait_registered(self.id, shape.sources)

    def start_sinks(self, transfer: Transfer, file: str) -> None:
        """Starts the downloading peers and their waiting `get` commands."""
        self.id = file
        sinks = [transfer.folder / f"p{number}" for number in range(transfer.shape.sinks)]
        for home in sinks:
            self.start_peer(transfer, "downloader", home)
        for number, home in enumerate(sinks):
            get = self.command(home, "get", self.id, "-o", str(self.arrived(transfer)[number]))
            self._gets.append(transfer.hold("command", get, self._on_line(transfer, number), self._on_exit(transfer)))

    def begin(self, transfer: Transfer) -> None:
        for get in self._gets:
            get.tell("")

    def arrived(self, transfer: Transfer) -> list[Path]:
        return [transfer.target / f"arrived-{number}.bin" for number in range(transfer.shape.sinks)]

    # For cases that need only some of the processes.

    def start_index(self, transfer: Transfer) -> Child:
        port = free_port()
        self.index = f"http://127.0.0.1:{port}"
        up = transfer.gate(1)
        child = transfer.spawn("index", [self.bin / "potluck-index", "--listen", f"127.0.0.1:{port}", "--data-dir", transfer.folder / "index"],
                               potluck.when_listening(up), environment=potluck.environment(self.options))
        up.wait(READY_TIMEOUT)
        return child

    def start_peer(self, transfer: Transfer, role: str, home: Path, *args: str, behind_link: bool = False) -> tuple[Child, int]:
        """Starts a peer and waits until it listens; returns the peer and its port."""
        port = free_port()
        reached = transfer.reach(port) if behind_link else port
        advertise = ["--advertise", f"127.0.0.1:{reached}"] if reached != port else []
        up = transfer.gate(1)
        child = transfer.spawn(role, [self.bin / "potluck-peer", "--listen", f"127.0.0.1:{port}", "--home", home, "--index", self.index,
                                      *advertise, *args],
                               potluck.when_listening(up), environment=potluck.environment(self.options))
        up.wait(READY_TIMEOUT)
        return child, port

    def command(self, home: Path, *args: str) -> list[str]:
        """The command line for the peer in `home`."""
        return [str(self.bin / "potluck"), *self._endpoints(home), "--json", *args]

    def ask(self, home: Path, *args: str) -> dict:
        """Runs such a command; returns its last object."""
        return potluck.ask(self.bin, *self._endpoints(home), *args)

    def _endpoints(self, home: Path) -> list[str]:
        return ["--index", self.index, "--peer", f"unix:{home}/control.sock"]

    def wait_registered(self, file: str, count: int) -> None:
        wait_until(lambda: potluck.providers(self.bin, file, "--index", self.index) >= count, READY_TIMEOUT,
                   f"the index does not have all {count} sources")

    @staticmethod
    def _on_line(transfer: Transfer, sink: int):
        def on_line(line: str, _: Child) -> None:
            if json.loads(line).get("event") == "done":
                transfer.done(sink)

        return on_line

    @staticmethod
    def _on_exit(transfer: Transfer):
        def on_exit(code: int, child: Child) -> None:
            if code != 0:
                transfer.fail(f"potluck get ended with {code}: {child.log_tail()}")

        return on_exit
