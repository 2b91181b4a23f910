"""aria2c: one file over many connections from several nginx servers, with a check of its SHA-256 at
the end."""

from __future__ import annotations

import subprocess
from pathlib import Path

from ..transfer import Transfer
from . import nginx, programs
from .base import System, require_one_sink

CONNECTIONS = 16


class Aria2(System):
    """Options: any option of aria2c by its long name."""

    name = "aria2"

    @classmethod
    def version(cls, options: dict[str, str]) -> str:
        programs.need("aria2c", "nginx")
        return subprocess.run(["aria2c", "--version"], capture_output=True, text=True, check=True).stdout.splitlines()[0]

    def launch(self, transfer: Transfer) -> None:
        require_one_sink(transfer, self.name)
        urls = nginx.serve(transfer, transfer.shape.sources)
        path = self.arrived(transfer)[0]
        options = {
            "split": CONNECTIONS, "max-connection-per-server": -(-CONNECTIONS // len(urls)), "min-split-size": "1M",
            "checksum": f"sha-256={transfer.payload.sha256}", "file-allocation": "none", "disk-cache": "64M", "no-conf": "true",
            "quiet": "true", "dir": path.parent, "out": path.name,
        } | self.options
        self._aria2 = transfer.hold("downloader", ["aria2c", *(f"--{name}={value}" for name, value in options.items()), *urls],
                                    on_exit=transfer.done_at_exit())

    def begin(self, transfer: Transfer) -> None:
        self._aria2.tell("")

    def arrived(self, transfer: Transfer) -> list[Path]:
        return [transfer.target / "arrived.bin"]
