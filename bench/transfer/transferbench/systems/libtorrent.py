"""libtorrent (rasterbar): one process per node, each a session of `common/libtorrent_node.py`,
torrents of version 2 (SHA-256).

The settings are the best found on loopback; the README lists what was tried.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from common import torrent
from common.processes import Child

from ..bench import free_port
from ..transfer import Transfer
from .base import System

PIECES = 256
SMALLEST_PIECE, LARGEST_PIECE = 1 << 18, 1 << 22
"""Pieces are the largest that give this many, within these bounds: large pieces are cheaper, but a
crowd needs enough of them to exchange."""

SETTINGS = {
    # No discovery: it uses only the peers that it is given.
    "enable_dht": False, "enable_lsd": False, "enable_upnp": False, "enable_natpmp": False,
    "enable_incoming_utp": False, "enable_outgoing_utp": False,
    # No encryption, and all nodes have one address.
    "in_enc_policy": 2, "out_enc_policy": 2, "allow_multiple_connections_per_ip": True,
    # Every peer gets an upload slot at once, and connection attempts are not limited.
    "unchoke_slots_limit": -1, "connection_speed": 1000, "torrent_connect_boost": 255, "connections_limit": 1000,
    "smooth_connects": False, "unchoke_interval": 1, "optimistic_unchoke_interval": 2,
    "listen_queue_size": 200, "min_reconnect_time": 1, "peer_turnover": 0,
    # Always enough in flight, on the wire and to the disk.
    "max_out_request_queue": 1500, "max_allowed_in_request_queue": 4000, "request_queue_time": 3,
    "send_buffer_watermark": 8 * 1024 * 1024, "send_buffer_watermark_factor": 200, "send_buffer_low_watermark": 1024 * 1024,
    "send_socket_buffer_size": 1024 * 1024, "recv_socket_buffer_size": 1024 * 1024,
    "max_queued_disk_bytes": 64 * 1024 * 1024,
    "piece_extent_affinity": True, "whole_pieces_threshold": 20, "initial_picker_threshold": 0,
    "rate_limit_ip_overhead": False, "mixed_mode_algorithm": 0,
    "aio_threads": 2, "hashing_threads": 2,
}


class Libtorrent(System):
    """Options: `piece=BYTES`, `v1=1` (SHA-1), and any session setting by its name."""

    name = "libtorrent"

    def __init__(self, options: dict[str, str]):
        super().__init__(options)
        self._ports: list[int] = []
        self._sinks: list[Child] = []

    @classmethod
    def version(cls, options: dict[str, str]) -> str:
        return torrent.version()

    def launch(self, transfer: Transfer) -> None:
        file = transfer.bench.kept(self.name) / "payload.torrent"
        if not file.exists():
            torrent.make(transfer.payload.path, file, int(self.options.get("piece", piece_size(transfer.payload.size))), self.options.get("v1") == "1")
        overrides = {k: v for k, v in self.options.items() if k not in ("piece", "v1")}
        shape = transfer.shape
        ready = transfer.gate(shape.sources + shape.sinks)

        def start(role: str, folder: Path, sink: int | None) -> tuple[Child, int]:
            port = free_port()
            config = {"torrent": str(file), "folder": str(folder), "listen": f"127.0.0.1:{port}", "seed": sink is None, "super": False,
                      "settings": SETTINGS, "overrides": overrides}

            def on_line(line: str, _: Child) -> None:
                match json.loads(line):
                    case {"event": "ready"}:
                        ready.one()
                    case {"event": "done"} if sink is not None:
                        transfer.done(sink)
                    case {"event": "failed", "message": message}:
                        transfer.fail(message)

            return transfer.spawn(role, [sys.executable, "-P", torrent.NODE, json.dumps(config)], on_line), port

        for _ in range(shape.sources):
            _, port = start("source", transfer.payload.path.parent, None)
            self._ports.append(transfer.reach(port))
        for number, path in enumerate(self.arrived(transfer)):
            path.parent.mkdir()
            child, port = start("downloader", path.parent, number)
            self._sinks.append(child)
            self._ports.append(port)
        ready.wait()

    def begin(self, transfer: Transfer) -> None:
        # The addresses of all nodes, as a tracker would return them. Of two nodes, only the later
        # one connects to the other.
        for number, sink in enumerate(self._sinks):
            peers = self._ports[:transfer.shape.sources + number]
            sink.tell(json.dumps({"begin": [["127.0.0.1", port] for port in peers]}))

    def arrived(self, transfer: Transfer) -> list[Path]:
        return [transfer.target / f"p{number}" / transfer.payload.path.name for number in range(transfer.shape.sinks)]


def piece_size(size: int) -> int:
    """A power of two."""
    wanted = 1 << max(0, (size // PIECES).bit_length() - 1)
    return min(max(wanted, SMALLEST_PIECE), LARGEST_PIECE)
