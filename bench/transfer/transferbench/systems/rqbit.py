"""rqbit: one server per node, controlled over its HTTP API. Torrents are version 1 (SHA-1), the
only one that it supports."""

from __future__ import annotations

import json
import shutil
import subprocess
import threading
import time
import urllib.error
import urllib.parse
import urllib.request
from pathlib import Path

from common import torrent
from common.unavailable import Unavailable

from ..bench import free_port, wait_for_port, wait_until
from ..transfer import Transfer
from .base import System

PIECE = 1 << 20
POLL = 0.02
"""Polling interval in seconds; a measured time may be too long by this much."""


class Rqbit(System):
    """Options: `piece=BYTES`."""

    name = "rqbit"

    def __init__(self, options: dict[str, str]):
        super().__init__(options)
        self._ports: list[int] = []
        self._sinks: list[int] = []

    @classmethod
    def version(cls, options: dict[str, str]) -> str:
        if not program():
            raise Unavailable("no rqbit: cargo install rqbit --locked")
        return subprocess.run([program(), "--version"], capture_output=True, text=True, check=True).stdout.strip()

    def launch(self, transfer: Transfer) -> None:
        torrent.version()
        self._torrent = transfer.bench.kept(self.name) / "payload.torrent"
        if not self._torrent.exists():
            torrent.make(transfer.payload.path, self._torrent, int(self.options.get("piece", PIECE)), v1=True)
        for number in range(transfer.shape.sources):
            port, api = self._start(transfer, "source", transfer.payload.path.parent)
            self._ports.append(transfer.reach(port))
            self._add(api, transfer.payload.path.parent, [])
            wait_until(lambda: finished(api), 120, f"source {number} has not checked the file")
        for path in self.arrived(transfer):
            path.parent.mkdir()
            self._sinks.append(self._start(transfer, "downloader", path.parent)[1])

    def begin(self, transfer: Transfer) -> None:
        for number, api in enumerate(self._sinks):
            threading.Thread(target=self._fetch, args=(transfer, number, api), daemon=True).start()

    def arrived(self, transfer: Transfer) -> list[Path]:
        return [transfer.target / f"p{number}" / transfer.payload.path.name for number in range(transfer.shape.sinks)]

    @staticmethod
    def _start(transfer: Transfer, role: str, folder: Path) -> tuple[int, int]:
        port, api = free_port(), free_port()
        transfer.spawn(role, [
            program(), "-v", "error", "--disable-dht", "--disable-lsd", "--disable-trackers", "--disable-upnp-port-forward",
            "--listen-ip", "127.0.0.1", "--ipv4-only", "--listen-port", port, "--http-api-listen-addr", f"127.0.0.1:{api}",
            "server", "start", "--disable-persistence", folder,
        ])
        wait_for_port(api)
        return port, api

    def _add(self, api: int, folder: Path, peers: list[int]) -> None:
        query = {"overwrite": "true", "output_folder": str(folder)}
        if peers:
            query["initial_peers"] = ",".join(f"127.0.0.1:{port}" for port in peers)
        ask(api, f"/torrents?{urllib.parse.urlencode(query)}", self._torrent.read_bytes())

    def _fetch(self, transfer: Transfer, number: int, api: int) -> None:
        try:
            self._add(api, self.arrived(transfer)[number].parent, self._ports)
            while not finished(api):
                time.sleep(POLL)
            transfer.done(number)
        except (OSError, KeyError) as error:
            transfer.fail(f"rqbit: {error!r}")


def program() -> str | None:
    return shutil.which("rqbit") or shutil.which("rqbit", path=str(Path.home() / ".cargo/bin"))


def ask(api: int, path: str, body: bytes | None = None) -> dict:
    with urllib.request.urlopen(urllib.request.Request(f"http://127.0.0.1:{api}{path}", data=body), timeout=30) as answer:
        return json.load(answer)


def finished(api: int) -> bool:
    stats = ask(api, "/torrents/0/stats/v1")
    if stats["error"]:
        raise OSError(stats["error"])
    return stats["finished"]
