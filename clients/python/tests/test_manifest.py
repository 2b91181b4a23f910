"""Manifests: one encoding, and nothing unsafe."""

from __future__ import annotations

from typing import List

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from potluck.identity import EMPTY_FILE, FileId
from potluck.manifest import (
    MAGIC,
    EmptyFolder,
    Entry,
    File,
    Link,
    Manifest,
    ManifestError,
    _encode_entry,
    check_path,
)
from potluck.v1 import collection_pb2

ID = FileId(bytes([7]) * 32)

# The bytes in src/collection/manifest/tests.rs.
GOLDEN = (
    "504c434f4c4c310a0a2c0a016112270a20070707070707070707070707070707070707070707070707070707070707"
    "070710ac0218010a080a016222030a01610a050a01631a00"
)


def raw(*entries: Entry) -> bytes:
    """An encoding that is not checked."""
    return MAGIC + b"".join(map(_encode_entry, entries))


def test_the_bytes_are_those_of_the_reference() -> None:
    manifest = Manifest([Link("b", "a"), File("a", ID, 300, True), EmptyFolder("c")])
    assert manifest.encode().hex() == GOLDEN
    assert Manifest.decode(bytes.fromhex(GOLDEN)) == manifest


def test_the_bytes_are_those_of_the_documented_message() -> None:
    message = collection_pb2.Manifest.FromString(bytes.fromhex(GOLDEN)[len(MAGIC) :])
    assert [entry.path for entry in message.entries] == ["a", "b", "c"]
    assert message.SerializeToString(deterministic=True) == bytes.fromhex(GOLDEN)[len(MAGIC) :]


def test_an_empty_folder_is_a_collection() -> None:
    assert Manifest([]).encode() == MAGIC
    assert Manifest.decode(MAGIC) == Manifest([])


names = st.text(st.sampled_from("abcäß .-_"), min_size=1, max_size=3)


@st.composite
def folders(draw: st.DrawFn) -> List[Entry]:
    paths = draw(
        st.lists(st.lists(names, min_size=1, max_size=3).map("/".join), max_size=12, unique=True)
    )
    entries: List[Entry] = []
    for path in paths:
        kind = draw(st.integers(0, 3))
        if kind == 0:
            entries.append(EmptyFolder(path))
        elif kind == 1:
            entries.append(Link(path, draw(names)))
        else:
            number = draw(st.integers(1, 1 << 20))
            file = File(path, FileId(number.to_bytes(32, "big")), number, draw(st.booleans()))
            entries.append(file if kind == 2 else File(path, EMPTY_FILE, 0))
    return entries


@given(folders())
def test_a_decoded_manifest_is_the_encoded_one(entries: List[Entry]) -> None:
    try:
        manifest = Manifest(entries)
    except ManifestError:
        return
    assert Manifest.decode(manifest.encode()) == manifest
    wire = collection_pb2.Manifest.FromString(manifest.encode()[len(MAGIC) :])
    assert [entry.path for entry in wire.entries] == [entry.path for entry in manifest.entries]


@settings(max_examples=300)
@given(folders(), st.integers(0, 1 << 16), st.integers(0, 255))
def test_whatever_is_decoded_encodes_to_the_same_bytes(
    entries: List[Entry], at: int, byte: int
) -> None:
    data = bytearray(raw(*entries))
    data[at % len(data)] = byte
    try:
        manifest = Manifest.decode(bytes(data))
    except ManifestError:
        return
    assert manifest.encode() == data


@given(st.binary(max_size=200))
def test_any_bytes_are_refused_or_decoded(data: bytes) -> None:
    for bytes_ in (data, MAGIC + data):
        try:
            assert Manifest.decode(bytes_).encode() == bytes_
        except ManifestError:
            pass


@pytest.mark.parametrize(
    "path",
    [
        "",
        "/",
        "/etc/passwd",
        "a//b",
        "a/",
        "..",
        ".",
        "a/..",
        "a/../b",
        "./a",
        "a\0",
        "a\n/b",
        "\x7f",
        "\x85",
    ]
    + [
        "..\\a",
        "cv\u202efdp.exe",
        "a/\u2066b",
        "a\u2028b",
        "\u3164",
        "a/\u200b ",
        "\xa0",
        "\u2800",
        "\ud800",
    ]
    + ["a" * 256, "/".join(["a"] * 257), "/".join(["a" * 255] * 17)],
)
def test_unsafe_paths_are_refused(path: str) -> None:
    with pytest.raises(ManifestError):
        check_path(path)
    if "\ud800" not in path:
        with pytest.raises(ManifestError):
            Manifest.decode(raw(File(path, ID, 1)))


@pytest.mark.parametrize(
    "path", ["a", "a b/ü/…", ".hidden", "...", "a..b", "-", "~", "a:b", "❤\ufe0f.txt"]
)
def test_plain_paths_are_accepted(path: str) -> None:
    assert Manifest.decode(raw(File(path, ID, 1))).files()[0].path == path


@pytest.mark.parametrize(
    ("path", "target"),
    [
        ("a", ""),
        ("a", "/etc"),
        ("a", ".."),
        ("a/b", "../.."),
        ("a", "b/../c"),
        ("a/b", "../c/.."),
        ("a", "b\0"),
    ]
    + [("a", "b\\c"), ("a", "./.."), ("a", "/".join(["b"] * 257))],
)
def test_links_that_lead_out_are_refused(path: str, target: str) -> None:
    with pytest.raises(ManifestError):
        Manifest.decode(raw(Link(path, target)))


@pytest.mark.parametrize(
    ("path", "target"), [("a", "b"), ("a/b", "../c"), ("a/b/c", "../../d/e"), ("a", ".//b/.")]
)
def test_links_that_stay_inside_are_accepted(path: str, target: str) -> None:
    assert Manifest.decode(raw(Link(path, target))).entries == [Link(path, target)]


@pytest.mark.parametrize(
    "entries",
    [
        [File("b", ID, 1), File("a", ID, 1)],
        [File("a", ID, 1), File("a", ID, 1)],
        [Link("a", "b"), File("a/b", ID, 1)],
        [File("a", ID, 1), File("a-b", ID, 1), File("a/b", ID, 1)],
        [File("a", ID, 0)],
        [File("a", EMPTY_FILE, 1)],
        [File("a", ID, 1), File("b", ID, 2)],
        [File("a", ID, (16 << 40) + 1)],
    ],
    ids=str,
)
def test_inconsistent_entries_are_refused(entries: List[Entry]) -> None:
    with pytest.raises(ManifestError):
        Manifest.decode(raw(*entries))


def test_a_small_manifest_cannot_make_a_great_many_folders() -> None:
    entries = [File("/".join([f"{number:04}", *"a" * 250]), ID, 1) for number in range(40)]
    with pytest.raises(ManifestError, match="folders"):
        Manifest.decode(raw(*entries))


def test_other_encodings_of_the_same_folder_are_refused() -> None:
    golden = bytes.fromhex(GOLDEN)
    assert Manifest.decode(golden)
    spelled_out_false = golden.replace(b"\x18\x01", b"\x18\x00")
    long_varint = golden.replace(b"\x10\xac\x02", b"\x10\xac\x82\x00").replace(
        b"\x0a\x2c", b"\x0a\x2d"
    )
    unknown_field = golden + b"\x12\x00"
    for data in (spelled_out_false, long_varint, unknown_field, golden[:-1], golden[1:]):
        with pytest.raises(ManifestError):
            Manifest.decode(data)
