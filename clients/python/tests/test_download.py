"""Downloads from real peers that a real index knows."""

from __future__ import annotations

import asyncio
import hashlib
import os
import stat
import subprocess
import sys
from pathlib import Path
from typing import Callable, List

import pytest
from conftest import ROOT, Service, content, program

import potluck
from potluck import Client, FileId, LocalPeer, Progress, Registration
from potluck.identity import EMPTY_FILE, hash_chunks

SIZE = (5 << 20) + 123


def url(index: Service) -> str:
    return f"http://{index.address}"


@pytest.fixture
async def shared(index: Service, peers: List[Service], work: Path) -> FileId:
    """A file that both peers share."""
    path = work / "numbers.bin"
    if not path.exists():  # a peer refuses a file that was touched until it is hashed again
        path.write_bytes(content(SIZE))
    for peer in peers:
        async with LocalPeer(peer.socket) as local:
            (item,) = await local.share([path])
    return FileId(item.file.file_id)


async def test_a_file_comes_from_several_peers(
    index: Service, peers: List[Service], shared: FileId, tmp_path: Path
) -> None:
    states: List[Progress] = []
    async with Client(url(index)) as client:
        (found,) = await client.search("num bin")
        assert (found.file_id, found.size, found.names) == (shared, SIZE, ("numbers.bin",))
        done = await client.download(found, tmp_path / "copy", progress=states.append)
    assert (tmp_path / "copy").read_bytes() == content(SIZE)
    assert os.listdir(tmp_path) == ["copy"], "no part file is left"
    assert (done.size, done.is_folder, done.bytes_resumed) == (SIZE, False, 0)
    assert {str(peer.provider.address) for peer in done.peers if peer.bytes} == {
        p.address for p in peers
    }
    assert sum(peer.bytes for peer in done.peers) == SIZE
    assert states[-1] == Progress(SIZE, SIZE, 0)


async def test_a_large_file_reports_its_progress(
    index: Service, peers: List[Service], work: Path, tmp_path: Path
) -> None:
    """Over 64 MiB a file cannot be a manifest, so it is followed from its first piece."""
    path = work / "large.bin"
    path.write_bytes(content(65 << 20))
    states: List[Progress] = []
    async with LocalPeer(peers[0].socket) as local, Client(url(index)) as client:
        (item,) = await local.share([path])
        await client.download(item.file.file_id, tmp_path / "copy", progress=states.append)
    assert (tmp_path / "copy").read_bytes() == path.read_bytes()
    done = [state.bytes_done for state in states]
    assert done == sorted(done) and done[0] == 0 and done[-1] == 65 << 20 and len(done) > 100


async def test_files_are_found_by_id_prefix_sha256_and_name(index: Service, shared: FileId) -> None:
    plain = hashlib.sha256(content(SIZE)).digest()
    async with Client(url(index)) as client:
        lease = await client.register(
            [Registration.of(hash_chunks([content(SIZE)]), ["numbers.bin"])], port=9
        )
        for query in (
            client.query(id=shared),
            client.query(id=str(shared)),
            client.query(prefix=str(shared)[:8].upper()),
            client.query(sha256=plain.hex()),
            client.query(name="numbers.bin"),
        ):
            (found,) = await query
            assert found.file_id == shared
            assert found.sha256 == plain
            assert found.provider_count == 3 and len(found.providers) == 3
        assert await client.resolve("numbers.bin") == shared
        assert await client.resolve(str(shared)[:10]) == shared
        assert await client.query(name="nothing") == []
        with pytest.raises(potluck.NotFoundError):
            await client.resolve("nothing")
        assert await client.unregister(lease.token) == 1


async def test_results_come_in_pages(index: Service) -> None:
    async with Client(url(index)) as client:
        files = [
            Registration.of(hash_chunks([f"page {n}".encode()]), [f"page-{n}"]) for n in range(250)
        ]
        lease = await client.register(files, port=9)
        assert len(await client.search("page", limit=1000)) == 250
        assert len(await client.search("page", limit=120)) == 120
        assert await client.unregister(lease.token) == 250


async def test_registrations_belong_to_their_token(index: Service) -> None:
    async with Client(url(index)) as client:
        file = Registration.of(hash_chunks([b"mine"]), ["mine.txt"])
        lease = await client.register([file], port=9, seconds=30)
        assert (len(lease.token), lease.file_count, lease.seconds) == (32, 1, 30)
        assert lease.peer_id == potluck.identity.peer_id(lease.token)
        assert "token" not in repr(lease)
        (found,) = await client.query(name="mine.txt")
        assert lease.file_ids == (found.file_id,)
        assert await client.renew(lease) == 30
        assert await client.unregister(os.urandom(32)) == 0
        assert await client.unregister(lease.token, [found.file_id]) == 1
        assert await client.query(name="mine.txt") == []
        await client.unregister(lease.token)
        with pytest.raises(potluck.NotFoundError) as failure:
            await client.renew(lease)
        assert failure.value.reason == "LEASE_UNKNOWN"


async def test_errors_have_their_reason_and_field(index: Service) -> None:
    async with Client(url(index)) as client:
        with pytest.raises(potluck.InvalidRequestError) as failure:
            await client.register([Registration(1, bytes(32), ["a/b"])], port=9)
        assert failure.value.reason == "INVALID_NAME"
        assert failure.value.field
        with pytest.raises(potluck.InvalidRequestError) as failure:
            await client.query(id="abc")
        assert failure.value.reason == "INVALID_ID"
    async with Client("http://127.0.0.1:9", timeout=5) as client:
        with pytest.raises(potluck.UnavailableError):
            await client.search("x")


async def test_a_file_that_nobody_has_is_not_found(index: Service, tmp_path: Path) -> None:
    async with Client(url(index)) as client:
        with pytest.raises(potluck.NotFoundError):
            await client.download(bytes(32), tmp_path / "copy", patience=2)
    assert os.listdir(tmp_path) == []


async def test_nothing_is_overwritten(index: Service, shared: FileId, tmp_path: Path) -> None:
    target = tmp_path / "copy"
    target.write_text("precious")
    async with Client(url(index)) as client:
        with pytest.raises(potluck.TargetError) as failure:
            await client.download(shared, target)
        assert failure.value.reason == "TARGET_EXISTS"
        os.rename(target, tmp_path / "other")
        target.symlink_to("nowhere")
        with pytest.raises(potluck.TargetError):
            await client.download(shared, target)

        # Also if it appears while the download runs.
        target.unlink()

        def appear(_: Progress) -> None:
            target.write_text("precious")

        with pytest.raises(potluck.TargetError) as failure:
            await client.download(shared, target, progress=appear)
        assert failure.value.reason == "TARGET_EXISTS"
        assert target.read_text() == "precious"


async def test_a_target_without_its_folder_is_refused(
    index: Service, shared: FileId, tmp_path: Path
) -> None:
    async with Client(url(index)) as client:
        with pytest.raises(potluck.TargetError) as failure:
            await client.download(shared, tmp_path / "missing" / "copy")
    assert failure.value.reason == "TARGET_NOT_WRITABLE"


async def test_the_plain_sha256_is_compared(index: Service, shared: FileId, tmp_path: Path) -> None:
    async with Client(url(index)) as client:
        with pytest.raises(potluck.VerificationError):
            await client.download(shared, tmp_path / "copy", sha256=bytes(32))
        assert os.listdir(tmp_path) == []
        good = hashlib.sha256(content(SIZE)).hexdigest()
        await client.download(shared, tmp_path / "copy", sha256=good)


async def test_a_download_that_stopped_continues(
    index: Service, shared: FileId, tmp_path: Path
) -> None:
    """Also if its part was damaged: nothing in it is trusted."""

    class Stop(Exception):
        pass

    def stop(progress: Progress) -> None:
        if progress.bytes_done > SIZE // 2:
            raise Stop

    async with Client(url(index)) as client:
        with pytest.raises(Stop):
            await client.download(shared, tmp_path / "copy", as_file=True, progress=stop)
        (part,) = tmp_path.iterdir()
        with open(part, "r+b") as file:
            file.write(b"damaged")
        done = await client.download(shared, tmp_path / "copy")
    assert SIZE // 4 < done.bytes_resumed < SIZE
    assert sum(peer.bytes for peer in done.peers) == SIZE - done.bytes_resumed
    assert (tmp_path / "copy").read_bytes() == content(SIZE)
    assert os.listdir(tmp_path) == ["copy"]


async def test_two_downloads_to_one_target_do_not_meet(
    index: Service, shared: FileId, tmp_path: Path
) -> None:
    async with Client(url(index)) as client, Client(url(index)) as other:
        failures: List[potluck.PotluckError] = []

        async def second() -> None:
            with pytest.raises(potluck.TargetError) as failure:
                await other.download(shared, tmp_path / "copy")
            failures.append(failure.value)

        tasks: List[asyncio.Task[None]] = []

        def start(_: Progress) -> None:
            if not tasks:
                tasks.append(asyncio.ensure_future(second()))

        await client.download(shared, tmp_path / "copy", as_file=True, progress=start)
        await tasks[0]
    assert [failure.reason for failure in failures] in (["TARGET_NOT_WRITABLE"], ["TARGET_EXISTS"])
    assert (tmp_path / "copy").read_bytes() == content(SIZE)


async def test_a_peer_is_enough_without_an_index(
    peers: List[Service], shared: FileId, tmp_path: Path
) -> None:
    async with Client() as client:
        await client.download(shared, tmp_path / "copy", providers=[peers[0].address])
        with pytest.raises(potluck.NotFoundError):
            await client.download(
                bytes(32), tmp_path / "other", providers=[peers[0].address], patience=1
            )
        with pytest.raises(potluck.NotFoundError) as failure:
            await client.download(shared, tmp_path / "other", patience=1)
        assert failure.value.reason == "NO_PROVIDERS"
        with pytest.raises(potluck.UnavailableError):
            await client.download(shared, tmp_path / "other", providers=["127.0.0.1:9"], patience=1)
    assert (tmp_path / "copy").read_bytes() == content(SIZE)


async def test_an_empty_file_is_downloaded(
    index: Service, peers: List[Service], work: Path, tmp_path: Path
) -> None:
    (work / "empty").write_bytes(b"")
    async with LocalPeer(peers[0].socket) as local, Client(url(index)) as client:
        await local.share([work / "empty"])
        await client.download(EMPTY_FILE, tmp_path / "copy")
    assert (tmp_path / "copy").read_bytes() == b""


@pytest.fixture
def folder(work: Path) -> Path:
    """A folder with small and large files, copies, links, and an empty folder."""
    folder = work / "folder"
    if not folder.exists():
        (folder / "deep/er").mkdir(parents=True)
        (folder / "none").mkdir()
        for number in range(300):
            (folder / f"deep/{number}").write_bytes(content(number * 7, number))
        (folder / "large").write_bytes(content(3 << 20, 1))
        (folder / "deep/er/copy").write_bytes(content(3 << 20, 1))
        (folder / "large-too").write_bytes(content((1 << 20) + 1, 2))
        (folder / "run").write_text("#!/bin/sh\n")
        (folder / "run").chmod(0o755)
        (folder / "link").symlink_to("deep/er/copy")
        (folder / "deep/er/up").symlink_to("../../run")
    return folder


def listing(folder: Path) -> dict:
    """What is in a folder."""
    result = {}
    for path in sorted(folder.rglob("*")):
        name = str(path.relative_to(folder))
        if path.is_symlink():
            result[name] = os.readlink(path)
        elif path.is_dir():
            result[name] = "folder"
        else:
            result[name] = (
                hash_chunks([path.read_bytes()]).file_id,
                bool(path.stat().st_mode & stat.S_IXUSR),
            )
    return result


async def test_a_folder_is_downloaded(
    index: Service, peers: List[Service], folder: Path, tmp_path: Path
) -> None:
    for peer in peers:
        async with LocalPeer(peer.socket) as local:
            (item,) = await local.share([folder])
    async with Client(url(index)) as client:
        done = await client.download(item.file.file_id, tmp_path / "copy")
        await client.download(item.file.file_id, tmp_path / "manifest", as_file=True)
    assert done.is_folder and done.size == item.content_size
    assert listing(tmp_path / "copy") == listing(folder)
    assert (tmp_path / "copy/large").stat().st_nlink == 1, "copies are files of their own"
    manifest = potluck.Manifest.decode((tmp_path / "manifest").read_bytes())
    assert {file.path for file in manifest.files()} >= {"large", "run", "deep/7"}
    assert sorted(os.listdir(tmp_path)) == ["copy", "manifest"]
    # The id of the copy is that of the original.
    command = [program("potluck"), "--no-network", "id", str(tmp_path / "copy")]
    answer = subprocess.run(command, check=True, capture_output=True, text=True)
    assert answer.stdout.startswith(item.file.file_id.hex())


async def test_a_folder_that_stopped_continues(
    index: Service, peers: List[Service], folder: Path, tmp_path: Path
) -> None:
    class Stop(Exception):
        pass

    def stop(progress: Progress) -> None:
        if progress.bytes_done > 1 << 20:
            raise Stop

    async with LocalPeer(peers[0].socket) as local, Client(url(index)) as client:
        (item,) = await local.share([folder])
        with pytest.raises(Stop):
            await client.download(item.file.file_id, tmp_path / "copy", progress=stop)
        (part,) = tmp_path.glob("*.parts")
        assert stat.S_IMODE(part.stat().st_mode) == 0o700
        (part / "tree/from/a/crash").mkdir(parents=True)
        done = await client.download(item.file.file_id, tmp_path / "copy")
    assert 1 << 20 < done.bytes_resumed < done.size
    assert listing(tmp_path / "copy") == listing(folder)
    assert os.listdir(tmp_path) == ["copy"]


async def test_a_peer_that_has_a_part_is_asked_for_that_part(
    index: Service,
    peers: List[Service],
    start_peer: Callable[..., Service],
    work: Path,
    tmp_path: Path,
) -> None:
    """A slow peer that downloads too serves what it has; the rest comes from others."""
    path = work / "partial.bin"
    path.write_bytes(content(70 << 20, 9))
    slow = start_peer("slow", "--download-limit", "8MiB/s")
    async with LocalPeer(peers[0].socket) as seed, LocalPeer(slow.socket) as leecher:
        (item,) = await seed.share([path])
        transfer = await leecher.get(item.file.file_id, work / "partial.copy", detach=True)
        async with Client(url(index)) as client:
            while len((await client.query(id=item.file.file_id))[0].providers) < 2:
                pass
            done = await client.download(item.file.file_id, tmp_path / "copy")
        await leecher.cancel(transfer.transfer_id)
    assert (tmp_path / "copy").read_bytes() == path.read_bytes()
    assert not any(peer.banned for peer in done.peers)
    by_address = {str(peer.provider.address): peer.bytes for peer in done.peers}
    assert set(by_address) == {peers[0].address, slow.address}


async def test_the_command_downloads(index: Service, shared: FileId, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "potluck", "--index", url(index)]
    get = subprocess.run(
        [*command, "get", "numbers.bin", str(tmp_path / "copy")], capture_output=True, text=True
    )
    assert get.returncode == 0 and "verified" in get.stdout, get.stderr
    assert (tmp_path / "copy").read_bytes() == content(SIZE)
    search = subprocess.run([*command, "search", "numb"], capture_output=True, text=True)
    assert str(shared) in search.stdout
    again = subprocess.run(
        [*command, "get", "numbers.bin", str(tmp_path / "copy")], capture_output=True, text=True
    )
    assert again.returncode == 1 and "TARGET_EXISTS" in again.stderr


def test_the_examples_need_nothing_of_this_package() -> None:
    for example in (ROOT / "examples/python").glob("*.py"):
        assert "import potluck\n" not in example.read_text()
