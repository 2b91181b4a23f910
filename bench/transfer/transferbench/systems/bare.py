"""A bare stream of the same gRPC library: the cost of Potluck's transport alone.

`--bare BIN` names the program. `BIN serve --listen ADDR --file F` prints `listening on ADDR`; `BIN
fetch --out PATH --source ADDR...` exits with 0 when the file is complete. `BIN hash FOLDER` only
reads files and hashes leaves, for the case `share`.
"""

from __future__ import annotations

from pathlib import Path

from common.potluck import when_listening
from common.unavailable import Unavailable

from ..bench import free_port
from ..transfer import Transfer
from .base import System, require_one_sink


class Bare(System):
    """Options: `bin=BIN`."""

    name = "bare"

    @classmethod
    def version(cls, options: dict[str, str]) -> str:
        if "bin" not in options or not Path(options["bin"]).exists():
            raise Unavailable("give its program with --bare BIN")
        return "bare stream"

    def launch(self, transfer: Transfer) -> None:
        require_one_sink(transfer, self.name)
        program = Path(self.options["bin"]).resolve()
        sources = []
        up = transfer.gate(transfer.shape.sources)
        for _ in range(transfer.shape.sources):
            port = free_port()
            transfer.spawn("source", [program, "serve", "--listen", f"127.0.0.1:{port}", "--file", transfer.payload.path], when_listening(up))
            sources += ["--source", f"127.0.0.1:{transfer.reach(port)}"]
        up.wait()
        self._fetch = transfer.hold("downloader", [program, "fetch", "--out", self.arrived(transfer)[0], *sources], on_exit=transfer.done_at_exit())

    def begin(self, transfer: Transfer) -> None:
        self._fetch.tell("")

    def arrived(self, transfer: Transfer) -> list[Path]:
        return [transfer.target / "arrived.bin"]
