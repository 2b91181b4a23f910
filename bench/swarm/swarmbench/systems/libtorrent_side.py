"""libtorrent (rasterbar) as the other side: one process a node, each a session of `libtorrent_node.py`."""

from __future__ import annotations

import json
import sys
import threading
from pathlib import Path

from ..trial import Child, Trial
from .base import System, Unavailable

PORT = 6881
PIECE = 256 * 1024
"""Piece size, the same as Potluck's for these files unless `--libtorrent piece=BYTES` says otherwise."""


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
        try:
            import libtorrent
        except ImportError as error:
            raise Unavailable("libtorrent is not installed: pip install -r requirements.txt") from error
        return f"libtorrent {libtorrent.version}"

    def launch(self, trial: Trial) -> None:
        torrent = trial.folder / "payload.torrent"
        _make_torrent(trial.payload, torrent, int(self.options.get("piece", PIECE)))
        settings = {k: v for k, v in self.options.items() if k not in ("piece", "super", "mesh")}
        ready = trial.gate(len(trial.sources) + len(trial.sinks))

        def start(node, role: str, host: str, folder: Path, number: int | None) -> Child:
            config = {
                "torrent": str(torrent),
                "folder": str(folder),
                "listen": f"{host}:{PORT}",
                "seed": number is None,
                "super": self.options.get("super", "0") == "1",
                "settings": settings,
            }

            def on_line(line: str, child: Child) -> None:
                self._on_line(trial, number, json.loads(line), child, ready)

            script = Path(__file__).with_name("libtorrent_node.py")
            return trial.spawn(node, role, [sys.executable, "-P", str(script), json.dumps(config)], on_line)

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
        # As a tracker would answer: everyone. Where both ends would dial, only the later one does.
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


def _make_torrent(payload: Path, torrent: Path, piece: int) -> None:
    import libtorrent as lt

    files = lt.file_storage()
    lt.add_files(files, str(payload))
    maker = lt.create_torrent(files, piece_size=piece, flags=lt.create_torrent.v2_only)
    lt.set_piece_hashes(maker, str(payload.parent))
    torrent.write_bytes(lt.bencode(maker.generate()))
