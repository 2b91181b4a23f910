"""The units of a download."""

from __future__ import annotations

from collections import Counter
from typing import List

from conftest import content
from hypothesis import given
from hypothesis import strategies as st

from potluck.identity import FileId, Layout, file_id, fold, merkle_root
from potluck.manifest import File, Manifest
from potluck.plan import BUNDLE_FILES, Plan, expands

sizes = st.one_of(st.integers(1, 300), st.integers(1, 400_000), st.integers(1, 3 << 30))


def collection(lengths: List[int]) -> Manifest:
    return Manifest(
        [File(f"{n:06}", FileId(n.to_bytes(32, "big")), size) for n, size in enumerate(lengths)]
    )


@given(st.lists(sizes, max_size=30))
def test_the_units_cover_every_byte_once(lengths: List[int]) -> None:
    manifest = collection(lengths)
    plan = Plan.of_collection(manifest)
    covered: Counter = Counter()
    for unit in plan.units:
        assert 0 < len(unit) <= BUNDLE_FILES
        for span in unit:
            assert span.offset == covered[span.file_id], "in order and without gaps"
            covered[span.file_id] += span.length
    assert covered == {file.file_id: file.size for file in manifest.files()}
    assert plan.total == manifest.distinct_size


def test_small_files_are_bundled_and_come_first() -> None:
    plan = Plan.of_collection(collection([300_000, 1, 2, 128 * 1024, 3]))
    assert [[span.length for span in unit] for unit in plan.units] == [
        [1, 2],
        [128 * 1024],
        [3],
        [128 * 1024],
        [128 * 1024],
        [300_000 - 256 * 1024],
    ]


def test_a_bundle_has_at_most_1024_files() -> None:
    plan = Plan.of_collection(collection([1] * 1025))
    assert [len(unit) for unit in plan.units] == [1024, 1]


def test_copies_are_downloaded_once() -> None:
    one = FileId(bytes([1]) * 32)
    manifest = Manifest([File(path, one, 8 << 20) for path in map("{:04}".format, range(1000))])
    assert Plan.of_collection(manifest).total == 8 << 20
    assert expands(manifest) == (True, 8000 << 20, 8 << 20)


def test_hashes_are_taken_only_if_they_fold_into_the_id() -> None:
    data = content(300_000)
    layout = Layout(len(data))
    layer = [
        layout.piece_hash(data[at : at + layout.piece_size])
        for at in range(0, len(data), layout.piece_size)
    ]
    plan = Plan.of_file(file_id(len(data), merkle_root(data)), len(data), merkle_root(data))
    assert plan.needs_hashes
    for bad in (
        [],
        layer[:-1],
        [*layer, layer[0]],
        layer[::-1],
        [layer[0], layer[1], bytes(32)],
        [b"", *layer[1:]],
    ):
        assert not plan.set_hashes(bad)
    # The inner nodes of the tree have the same root, but are not its pieces.
    assert fold(layer, layout.piece_height) == merkle_root(data)
    assert plan.set_hashes(layer)
    assert not plan.needs_hashes
    for (span,) in plan.units:
        good = bytearray(data[span.offset : span.offset + span.length])
        assert plan.first_bad(span, memoryview(good)) is None
        good[-1] ^= 1
        assert plan.first_bad(span, memoryview(good)) == span
        assert plan.first_bad(span, memoryview(good)[:-1]) == span
