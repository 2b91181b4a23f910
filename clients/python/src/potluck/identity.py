"""Ids, the Merkle tree and the layout of files, as in docs/protocol.md. Pure.

The tree is that of BitTorrent v2 (BEP 52): SHA-256 over leaves of 16 KiB, padded with zero hashes
to a power of two. An id commits to the size and the root of a file.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import BinaryIO, Iterable, List, Sequence, Union

LEAF = 16 * 1024
"""Bytes that one leaf of the tree covers."""

MAX_SIZE = 16 << 40
"""Maximum size of a file: 16 TiB."""

MIN_PIECE = 128 * 1024
MAX_PIECE = 16 * 1024 * 1024

HASH_LEN = 32

_ZERO = bytes(HASH_LEN)


class FileId(bytes):
    """The id of a file or collection: 32 bytes, shown as 64 hex digits."""

    def __new__(cls, value: Union[bytes, str]) -> FileId:
        """Takes the bytes or the hex digits.

        Raises ValueError if the value is not an id.
        """
        raw = bytes.fromhex(value) if isinstance(value, str) else bytes(value)
        if len(raw) != HASH_LEN:
            raise ValueError(f"an id has {HASH_LEN} bytes, but this one has {len(raw)}")
        return super().__new__(cls, raw)

    def __str__(self) -> str:
        return self.hex()

    def __repr__(self) -> str:
        return f"FileId('{self.hex()}')"


def sha256(data: Union[bytes, bytearray, memoryview]) -> bytes:
    """The SHA-256 of bytes."""
    return hashlib.sha256(data).digest()


def file_id(size: int, root: bytes) -> FileId:
    """The id that commits to this size and root."""
    return FileId(sha256(b"potluck/file/v1\0" + size.to_bytes(8, "little") + root))


def peer_id(token: bytes) -> bytes:
    """The public id of the peer with this token, outside private networks."""
    return sha256(b"potluck/peer/v1\0" + token)


EMPTY_ROOT = sha256(b"")
EMPTY_FILE = file_id(0, EMPTY_ROOT)


def zero_hash(height: int) -> bytes:
    """The root of a subtree of 2^height missing leaves."""
    node = _ZERO
    for _ in range(height):
        node = sha256(node + node)
    return node


def fold(layer: Sequence[bytes], height: int = 0) -> bytes:
    """The node above a layer of nodes that each cover 2^height leaves."""
    if not layer:
        raise ValueError("a layer has at least one node")
    nodes = list(layer)
    padding = zero_hash(height)
    while len(nodes) > 1:
        if len(nodes) % 2:
            nodes.append(padding)
        nodes = [sha256(nodes[i] + nodes[i + 1]) for i in range(0, len(nodes), 2)]
        padding = sha256(padding + padding)
    return nodes[0]


def leaves(data: Union[bytes, bytearray, memoryview]) -> List[bytes]:
    """The hashes of the leaves of bytes. None for no bytes."""
    view = memoryview(data)
    return [sha256(view[at : at + LEAF]) for at in range(0, len(view), LEAF)]


def merkle_root(data: Union[bytes, bytearray, memoryview]) -> bytes:
    """The root of a file with these bytes."""
    return fold(leaves(data)) if len(data) else EMPTY_ROOT


def piece_size(size: int) -> int:
    """Bytes of a piece of a file of this size."""
    least = -(-size // 4096)
    power = 1 << max(least - 1, 0).bit_length()
    return min(max(power, MIN_PIECE), MAX_PIECE)


@dataclass(frozen=True)
class Layout:
    """The pieces of a file."""

    size: int

    def __post_init__(self) -> None:
        if not 0 <= self.size <= MAX_SIZE:
            raise ValueError(f"a file has at most {MAX_SIZE} bytes, but this one has {self.size}")

    @property
    def piece_size(self) -> int:
        """Bytes of each piece but the last."""
        return piece_size(self.size)

    @property
    def piece_count(self) -> int:
        """Number of pieces: 0 for an empty file."""
        return -(-self.size // self.piece_size)

    @property
    def piece_height(self) -> int:
        """Height of the subtree of a piece."""
        return (self.piece_size // LEAF).bit_length() - 1

    def piece_len(self, piece: int) -> int:
        """Bytes of a piece."""
        if not 0 <= piece < self.piece_count:
            raise ValueError(f"piece {piece} of a file with {self.piece_count} pieces")
        return min(self.piece_size, self.size - piece * self.piece_size)

    def piece_hash(self, data: Union[bytes, bytearray, memoryview]) -> bytes:
        """The hash of a piece with these bytes; the root if the file has one piece."""
        if self.piece_count <= 1:
            return merkle_root(data)
        return _subtree(leaves(data), self.piece_height)


def _subtree(nodes: List[bytes], height: int) -> bytes:
    """The root of the subtree of this height whose first leaves are given."""
    padding = _ZERO
    for _ in range(height):
        if len(nodes) % 2:
            nodes.append(padding)
        nodes = [sha256(nodes[i] + nodes[i + 1]) for i in range(0, len(nodes), 2)]
        padding = sha256(padding + padding)
    return nodes[0]


@dataclass(frozen=True)
class FileHashes:
    """The identity of bytes that were hashed."""

    size: int
    root: bytes
    sha256: bytes
    """The plain SHA-256 of all bytes."""

    @property
    def file_id(self) -> FileId:
        """The id."""
        return file_id(self.size, self.root)


def hash_chunks(chunks: Iterable[bytes]) -> FileHashes:
    """Hashes a file that comes in chunks of any length."""
    plain = hashlib.sha256()
    nodes: List[bytes] = []
    rest = b""
    size = 0
    for chunk in chunks:
        plain.update(chunk)
        size += len(chunk)
        data = rest + chunk
        whole = len(data) - len(data) % LEAF
        nodes.extend(leaves(memoryview(data)[:whole]))
        rest = data[whole:]
    if rest:
        nodes.append(sha256(rest))
    return FileHashes(size, fold(nodes) if nodes else EMPTY_ROOT, plain.digest())


def hash_file(file: BinaryIO) -> FileHashes:
    """Hashes an open file from its position to its end."""
    return hash_chunks(iter(lambda: file.read(1 << 20), b""))
