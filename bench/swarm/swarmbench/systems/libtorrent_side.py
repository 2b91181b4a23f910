"""libtorrent (rasterbar): one process per node, each a session of `common/libtorrent_node.py`.

The settings are the best found for a crowd on one switch; the README lists what was tried.
"""

from __future__ import annotations

import json
import sys
import threading
from pathlib import Path

from common import torrent

from ..trial import Child, Trial
from .base import System, Unavailable

PORT = 6881
PIECE = 256 * 1024
"""Piece size, the same as Potluck's for these files unless `--libtorrent piece=BYTES` says otherwise."""


SETTINGS = {
    # No discovery: it uses only the peers that it is given.
    "enable_dht": False, "enable_lsd": False, "enable_upnp": False, "enable_natpmp": False,
    "enable_incoming_utp": False, "enable_outgoing_utp": False,
    # No encryption: a peer of the same swarm on a LAN.
    "in_enc_policy": 2, "out_enc_policy": 2,
    # Every peer gets an upload slot at once, and connection attempts are not limited.
    "unchoke_slots_limit": -1, "connection_speed": 1000, "torrent_connect_boost": 255, "connections_limit": 1000,
    "smooth_connects": False, "unchoke_interval": 1, "optimistic_unchoke_interval": 2,
    "listen_queue_size": 200, "min_reconnect_time": 1, "peer_turnover": 0,
    # Enough requests in flight for the link, and a disk queue that matches them.
    "max_out_request_queue": 32, "max_allowed_in_request_queue": 4000, "request_queue_time": 1,
    "send_buffer_watermark": 1024 * 1024, "send_buffer_watermark_factor": 150, "send_buffer_low_watermark": 64 * 1024,
    "max_queued_disk_bytes": 64 * 1024 * 1024,
    # Rarest first from the first piece on, endgame without delay.
    "initial_picker_threshold": 0, "strict_end_game_mode": True, "piece_extent_affinity": False, "whole_pieces_threshold": 1,
    "prioritize_partial_pieces": False, "predictive_piece_announce": 0,
    "rate_limit_ip_overhead": False, "mixed_mode_algorithm": 0,
    "aio_threads": 2, "hashing_threads": 1, "close_redundant_connections": True,
}


class Libtorrent(System):
    """Options: `piece=BYTES`, `super=1` (super seeding), `mesh=all|lower`, and any session setting by its name."""

    name = "libtorrent"

    def __init__(self, options: dict[str, str]):
        super().__init__(options)
        self._sources: list[Child] = []
        self._sinks: list[Child] = []
        self._files: list[Path] = []
        self._reports: dict[int, dict] = {}
        self._reported = threading.Condition()

    @classmethod
    def version(cls, options: dict[str, str]) -> str:
        return torrent.version()

    def launch(self, trial: Trial) -> None:
        if trial.scenario.origin:
            raise Unavailable("no peer has the file")
        file = trial.folder / "payload.torrent"
        torrent.make(trial.payload, file, int(self.options.get("piece", PIECE)))
        overrides = {k: v for k, v in self.options.items() if k not in ("piece", "super", "mesh")}
        ready = trial.gate(len(trial.sources) + len(trial.sinks))

        def start(node, role: str, host: str, folder: Path, number: int | None) -> Child:
            config = {
                "torrent": str(file),
                "folder": str(folder),
                "listen": f"{host}:{PORT}",
                "seed": number is None,
                "super": self.options.get("super", "0") == "1",
                "settings": SETTINGS,
                "overrides": overrides,
            }

            def on_line(line: str, child: Child) -> None:
                self._on_line(trial, number, json.loads(line), child, ready)

            return trial.spawn(node, role, [sys.executable, "-P", str(torrent.NODE), json.dumps(config)], on_line)

        for number, (node, source) in enumerate(zip(trial.sources, trial.scenario.sources)):
            host = node.address
            if source.corrupt:
                host = "127.0.0.1"
                trial.spawn_liar(node, "bittorrent", PORT, source.corrupt, number)
            self._sources.append(start(node, "source", host, trial.payload.parent, None))
        for number, node in enumerate(trial.sinks):
            self._sinks.append(start(node, "sink", node.address, node.home, number))
            self._files.append(node.home / trial.payload.name)
        ready.wait()

    def begin(self, trial: Trial, sink: int) -> None:
        # The addresses of all nodes, as a tracker would return them. Of two nodes, only the later
        # one connects to the other.
        others = trial.sinks if self.options.get("mesh") == "all" else trial.sinks[:sink]
        peers = [[node.address, PORT] for node in [*trial.sources, *others] if node is not trial.sinks[sink]]
        self._sinks[sink].tell(json.dumps({"begin": peers}))

    def source_pid(self, source: int) -> int:
        return self._sources[source].pid

    def arriving(self, sink: int) -> Path:
        return self._files[sink]

    def arrived(self, sink: int) -> Path:
        return self._files[sink]

    def sent_by_sources(self, trial: Trial) -> int | None:
        for child in self._sources:
            child.tell(json.dumps({"report": True}))
        with self._reported:
            self._reported.wait_for(lambda: all(child.pid in self._reports for child in self._sources), timeout=2)
            return sum(self._reports.get(child.pid, {}).get("payload_sent", 0) for child in self._sources)

    def describe(self, trial: Trial) -> dict:
        return {"options": self.options}

    def _on_line(self, trial: Trial, sink: int | None, event: dict, child: Child, ready) -> None:
        match event["event"]:
            case "ready":
                ready.one()
            case "progress" if sink is not None:
                trial.progress(sink, event["t"], event["bytes"])
            case "done" if sink is not None:
                trial.done(sink, event["t"])
            case "failed":
                trial.failed(sink, event["message"])
            case "report":
                with self._reported:
                    self._reports[child.pid] = event
                    self._reported.notify_all()
