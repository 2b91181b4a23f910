"""Ids, trees and layouts."""

from __future__ import annotations

import hashlib
import json
from typing import Iterator

import pytest
from conftest import ROOT
from hypothesis import given
from hypothesis import strategies as st

from potluck.identity import (
    LEAF,
    MAX_SIZE,
    FileId,
    Layout,
    file_id,
    fold,
    hash_chunks,
    merkle_root,
    piece_size,
)

MIB = 1 << 20
BLOCK = 16381
VECTORS = json.loads((ROOT / "tests/vectors/roots.json").read_text())["vectors"]


def blocks(size: int) -> Iterator[bytes]:
    """The content that tests/vectors/make.py describes."""
    numbers = range(BLOCK // 32 + 1)
    tail = b"".join(hashlib.sha256(n.to_bytes(8, "little")).digest() for n in numbers)[: BLOCK - 8]
    for number in range(-(-size // BLOCK)):
        yield (number.to_bytes(8, "little") + tail)[: size - number * BLOCK]


@pytest.mark.parametrize(
    "vector", [v for v in VECTORS if v["size"] < 8 * MIB], ids=lambda v: str(v["size"])
)
def test_roots_and_ids_equal_those_of_libtorrent(vector: dict) -> None:
    data = b"".join(blocks(vector["size"]))
    assert merkle_root(data).hex() == vector["root"]
    assert str(file_id(vector["size"], merkle_root(data))) == vector["id"]


def test_a_large_file_is_hashed_in_chunks() -> None:
    (vector,) = [v for v in VECTORS if v["size"] == 100 * MIB + 7]
    hashes = hash_chunks(blocks(vector["size"]))
    assert (hashes.size, str(hashes.file_id)) == (vector["size"], vector["id"])


def test_the_vectors_cover_the_empty_file() -> None:
    assert str(file_id(0, merkle_root(b""))) == VECTORS[0]["id"]
    assert hash_chunks([]).file_id == file_id(0, merkle_root(b""))


@given(st.binary(max_size=5 * LEAF), st.lists(st.integers(1, 2 * LEAF), max_size=8))
def test_the_length_of_chunks_does_not_matter(data: bytes, lengths: list) -> None:
    chunks, at = [], 0
    for length in lengths:
        chunks.append(data[at : at + length])
        at += length
    hashes = hash_chunks([*chunks, data[at:]])
    assert (hashes.size, hashes.root) == (len(data), merkle_root(data))
    assert hashes.sha256 == hashlib.sha256(data).digest()


@given(st.integers(0, 40 * LEAF), st.integers(0, 255))
def test_the_hashes_of_pieces_fold_into_the_root(size: int, seed: int) -> None:
    data = bytes([seed]) * size
    layout = Layout(size)
    pieces = [data[at : at + layout.piece_size] for at in range(0, size, layout.piece_size)]
    assert len(pieces) == layout.piece_count
    assert [len(piece) for piece in pieces] == [layout.piece_len(i) for i in range(len(pieces))]
    layer = [layout.piece_hash(piece) for piece in pieces]
    if len(layer) > 1:
        assert fold(layer, layout.piece_height) == merkle_root(data)
    elif layer:
        assert layer[0] == merkle_root(data)


@given(st.integers(0, MAX_SIZE))
def test_a_layout_covers_the_file(size: int) -> None:
    layout = Layout(size)
    assert layout.piece_size & (layout.piece_size - 1) == 0
    assert 128 * 1024 <= layout.piece_size <= 16 * MIB
    if size:
        last = layout.piece_count - 1
        assert last * layout.piece_size + layout.piece_len(last) == size
    if size <= 32 << 30:
        assert layout.piece_count <= 4096


def test_piece_sizes_are_those_of_the_table() -> None:
    for size, expected in [
        (0, 1 / 8),
        (512 * MIB, 1 / 8),
        (512 * MIB + 1, 1 / 4),
        (1 << 30, 1 / 4),
        (32 << 30, 8),
    ]:
        assert piece_size(size) == expected * MIB
    assert piece_size(MAX_SIZE) == 16 * MIB
    with pytest.raises(ValueError, match="at most"):
        Layout(MAX_SIZE + 1)


def test_an_id_is_32_bytes_or_64_digits() -> None:
    text = "0ae51013366d7f8f21824a315456f34ae25bf267514f4182d5693a0f121dc781"
    assert str(FileId(text)) == text
    assert FileId(bytes.fromhex(text)) == FileId(text.upper())
    for bad in ("", text[:-2], text + "00", "x" * 64, b"short"):
        with pytest.raises(ValueError):
            FileId(bad)
