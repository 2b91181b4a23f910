"""Makes torrents with libtorrent."""

from __future__ import annotations

from pathlib import Path

from .unavailable import Unavailable

NODE = Path(__file__).with_name("libtorrent_node.py")
"""The program that runs one session."""


def version() -> str:
    try:
        import libtorrent
    except ImportError as error:
        raise Unavailable("libtorrent is not installed: pip install -r requirements.txt") from error
    return f"libtorrent {libtorrent.version}"


def make(payload: Path, torrent: Path, piece: int, v1: bool = False) -> None:
    """Makes a torrent of a file or folder: version 2 (SHA-256 over a tree), or version 1 (SHA-1) if
    `v1`."""
    import libtorrent as lt

    files = lt.file_storage()
    lt.add_files(files, str(payload))
    maker = lt.create_torrent(files, piece_size=piece, flags=lt.create_torrent.v1_only if v1 else lt.create_torrent.v2_only)
    lt.set_piece_hashes(maker, str(payload.parent))
    torrent.write_bytes(lt.bencode(maker.generate()))
