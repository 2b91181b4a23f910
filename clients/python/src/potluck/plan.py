"""Divides a download into units, as in docs/protocol.md. Pure.

A unit is what one peer sends and what is verified before it counts: a piece of a file; or, of a
collection, a bundle of small files or a few pieces of a large one.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Dict, List, Optional, Sequence, Tuple

from .identity import HASH_LEN, FileId, Layout, fold, merkle_root, piece_size
from .identity import file_id as id_of
from .manifest import File, Manifest

BUNDLE_FILES = 1024

EXPANSION_FREE = 1 << 30
"""Bytes that any collection may write without consent."""

EXPANSION_RATIO = 10
"""Written bytes over distinct bytes that a larger collection may have without consent."""


@dataclass(frozen=True)
class Span:
    """A range of a file."""

    file_id: FileId
    offset: int
    length: int
    file_size: int
    is_whole_file: bool
    """Verified by its id. Otherwise it is one or several pieces, verified by the piece layer."""


@dataclass(frozen=True)
class LargeFile:
    """A file with units of its own."""

    file_id: FileId
    size: int


class Plan:
    """The units of a download. Each byte of each distinct file is in one unit."""

    def __init__(self, units: List[List[Span]], large_files: List[LargeFile]) -> None:
        self.units = units
        self.large_files = large_files
        self._layers: Dict[FileId, Sequence[bytes]] = {}

    @classmethod
    def of_file(cls, file_id: FileId, size: int, root: bytes) -> Plan:
        """The plan of a plain file: its units are its pieces."""
        layout = Layout(size)
        units = [
            [Span(file_id, piece * layout.piece_size, layout.piece_len(piece), size, False)]
            for piece in range(layout.piece_count)
        ]
        plan = cls(units, [LargeFile(file_id, size)] if size else [])
        if layout.piece_count == 1:
            plan.set_hashes([root])
        return plan

    @classmethod
    def of_collection(cls, manifest: Manifest) -> Plan:
        """The plan of a collection."""
        distinct = manifest.distinct_files()
        unit_size = piece_size(sum(file.size for file in distinct))
        small = [file for file in distinct if 0 < file.size <= unit_size]
        large = [file for file in distinct if file.size > unit_size]
        units = [
            [Span(file.file_id, 0, file.size, file.size, True) for file in bundle]
            for bundle in _bundles(small, unit_size)
        ]
        for file in large:
            for offset in range(0, file.size, unit_size):
                length = min(unit_size, file.size - offset)
                units.append([Span(file.file_id, offset, length, file.size, False)])
        return cls(units, [LargeFile(file.file_id, file.size) for file in large])

    @property
    def total(self) -> int:
        """Bytes of all units."""
        return sum(map(self.unit_len, range(len(self.units))))

    def unit_len(self, unit: int) -> int:
        """Bytes of a unit."""
        return sum(span.length for span in self.units[unit])

    @property
    def hash_count(self) -> int:
        """Number of hashes in the piece layers of all large files."""
        return sum(Layout(file.size).piece_count for file in self.large_files)

    @property
    def needs_hashes(self) -> bool:
        """Whether piece layers are to be fetched: the hash of a file of one piece is its root."""
        return bool(self.large_files) and not self._layers

    def set_hashes(self, hashes: Sequence[bytes]) -> bool:
        """Takes the piece layers of all large files, one after the other.

        Returns False, and takes nothing, unless each folds into the root that the id commits to.
        """
        if len(hashes) != self.hash_count or any(len(node) != HASH_LEN for node in hashes):
            return False
        layers: Dict[FileId, Sequence[bytes]] = {}
        at = 0
        for file in self.large_files:
            layout = Layout(file.size)
            layer = hashes[at : at + layout.piece_count]
            at += layout.piece_count
            root = layer[0] if len(layer) == 1 else fold(layer, layout.piece_height)
            if id_of(file.size, root) != file.file_id:
                return False
            layers[file.file_id] = layer
        self._layers = layers
        return True

    def first_bad(self, span: Span, data: memoryview) -> Optional[Span]:
        """The first range of a span whose bytes fail verification: a piece, or a small file."""
        if len(data) != span.length:
            return span
        if span.is_whole_file:
            is_good = id_of(span.length, merkle_root(data)) == span.file_id
            return None if is_good else span
        layout = Layout(span.file_size)
        layer = self._layers[span.file_id]
        first = span.offset // layout.piece_size
        for index, at in enumerate(range(0, span.length, layout.piece_size)):
            piece = data[at : at + layout.piece_size]
            if layout.piece_hash(piece) != layer[first + index]:
                return replace(span, offset=span.offset + at, length=len(piece))
        return None


def _bundles(files: Sequence[File], unit_size: int) -> List[List[File]]:
    bundles: List[List[File]] = []
    length = unit_size + 1
    for file in files:
        if length + file.size > unit_size or len(bundles[-1]) == BUNDLE_FILES:
            bundles.append([])
            length = 0
        bundles[-1].append(file)
        length += file.size
    return bundles


def expands(manifest: Manifest) -> Tuple[bool, int, int]:
    """Whether a collection needs consent, the bytes that it writes, and its distinct bytes."""
    written, distinct = manifest.content_size, manifest.distinct_size
    refused = written > EXPANSION_FREE and written // EXPANSION_RATIO > distinct
    return refused, written, distinct
