"""iperf3: the TCP throughput of the machine, without files."""

from __future__ import annotations

import subprocess
from pathlib import Path

from ..bench import free_port, wait_until
from ..transfer import Transfer
from . import programs
from .base import System, require_one_sink


class Iperf3(System):
    """A reference: it reads, writes and verifies nothing."""

    name = "iperf3"

    @classmethod
    def version(cls, options: dict[str, str]) -> str:
        programs.need("iperf3")
        return " ".join(subprocess.run(["iperf3", "--version"], capture_output=True, text=True, check=True).stdout.split()[:2])

    def launch(self, transfer: Transfer) -> None:
        require_one_sink(transfer, self.name)
        port, lines = free_port(), []
        # It serves only one test, so do not probe its port.
        transfer.allow_exit(transfer.spawn("downloader", ["iperf3", "--server", "--one-off", "--forceflush", "--port", port],
                                        on_line=lambda line, _: lines.append(line)).pid)
        wait_until(lambda: any("listening" in line for line in lines), 20, "iperf3 does not listen")
        self._client = transfer.hold("source", ["iperf3", "--client", "127.0.0.1", "--port", transfer.reach(port), "--json",
                                                "--bytes", transfer.shape.size], on_exit=transfer.done_at_exit())

    def begin(self, transfer: Transfer) -> None:
        self._client.tell("")

    def arrived(self, transfer: Transfer) -> list[Path]:
        return []
