"""Parts on disk."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest
from conftest import content

import potluck
from potluck.identity import file_id, merkle_root
from potluck.manifest import File, Manifest
from potluck.plan import Plan
from potluck.storage import PartFile, PartFolder

DATA = content(300_000)
ID = file_id(len(DATA), merkle_root(DATA))


def fill(part: PartFile) -> None:
    for (span,) in Plan.of_file(ID, len(DATA), merkle_root(DATA)).units:
        part.write(span, bytearray(DATA[span.offset : span.offset + span.length]))


def test_a_part_is_locked_until_it_is_closed(tmp_path: Path) -> None:
    folder = Manifest([File("a", ID, len(DATA))])
    for make in (
        lambda: PartFile(tmp_path / "copy", ID, len(DATA)),
        lambda: PartFolder(tmp_path / "copy", ID, folder),
    ):
        part = make()
        with pytest.raises(potluck.TargetError) as failure:
            make()
        assert failure.value.reason == "TARGET_NOT_WRITABLE"
        part.close()
        make().close()


def test_targets_of_one_folder_have_parts_of_their_own(tmp_path: Path) -> None:
    names = ["copy", "other", "x" * 255]
    parts = [PartFile(tmp_path / name, ID, len(DATA)) for name in names]
    assert len({part.path for part in parts}) == 3
    for part in parts:
        fill(part)
        part.finalize()
        part.close()
    assert sorted(os.listdir(tmp_path)) == sorted(names)


def test_a_closed_part_refuses_writes(tmp_path: Path) -> None:
    part = PartFile(tmp_path / "copy", ID, len(DATA))
    part.close()
    with pytest.raises(OSError, match="closed"):
        fill(part)


def test_a_part_is_no_link(tmp_path: Path) -> None:
    part = PartFile(tmp_path / "copy", ID, len(DATA))
    part.close()
    part.discard()
    (tmp_path / "precious").write_text("precious")
    part.path.symlink_to(tmp_path / "precious")
    with pytest.raises(OSError) as failure:
        PartFile(tmp_path / "copy", ID, len(DATA))
    assert failure.value.errno == errno.ELOOP
    assert (tmp_path / "precious").read_text() == "precious"


def test_a_file_system_without_hard_links_is_enough(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_link(*arguments: object, **options: object) -> None:
        raise OSError(errno.EPERM, "not supported")

    monkeypatch.setattr(os, "link", no_link)
    for exists in (False, True):
        part = PartFile(tmp_path / f"copy-{exists}", ID, len(DATA))
        fill(part)
        if exists:
            part.target.write_text("precious")
            with pytest.raises(FileExistsError):
                part.finalize()
            assert part.target.read_text() == "precious"
        else:
            part.finalize()
            assert part.target.read_bytes() == DATA
        part.close()
    manifest = Manifest([File("a", ID, len(DATA)), File("b/c", ID, len(DATA), True)])
    folder = PartFolder(tmp_path / "folder", ID, manifest)
    (folder._content(ID)).write_bytes(DATA + b"more than the file has")
    folder.finalize()
    folder.close()
    assert (tmp_path / "folder/a").read_bytes() == (tmp_path / "folder/b/c").read_bytes() == DATA
    assert os.access(tmp_path / "folder/b/c", os.X_OK)
