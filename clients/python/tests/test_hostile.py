"""Peers and indexes that lie, beside a real peer that does not."""

from __future__ import annotations

import asyncio
import contextlib
import os
import threading
from pathlib import Path
from typing import AsyncIterator, Callable, Iterator, List, Tuple

import grpc
import grpc.aio
import pytest
from conftest import Service, content
from google.protobuf.any_pb2 import Any
from google.rpc import error_details_pb2, status_pb2

import potluck
from potluck import Client, Download, FileId, LocalPeer, storage
from potluck.identity import Layout, file_id, merkle_root
from potluck.manifest import File, Link, Manifest, _encode_entry
from potluck.peers import PeerPool
from potluck.transport import Address, Provider
from potluck.v1 import common_pb2, index_pb2, index_pb2_grpc, peer_pb2, peer_pb2_grpc

DATA = content((2 << 20) + 77, 3)
ROOT = merkle_root(DATA)
ID = file_id(len(DATA), ROOT)
LAYOUT = Layout(len(DATA))
LAYER = [
    LAYOUT.piece_hash(DATA[at : at + LAYOUT.piece_size])
    for at in range(0, len(DATA), LAYOUT.piece_size)
]

Chunks = Iterator[Tuple[int, int, bytes]]


class Peer(peer_pb2_grpc.PeerServiceServicer):
    """Serves files correctly, unless a test replaces a method."""

    def __init__(self, *files: bytes) -> None:
        self.files = {file_id(len(data), merkle_root(data)): data for data in files or (DATA,)}
        self.reports: List[peer_pb2.ReportBadPiecesRequest] = []
        self.downloads = 0
        self.units = 1  # of the collection, if there is one
        self.ended = asyncio.Event()

    def describe(self, wanted: bytes) -> common_pb2.FileRecord:
        data = self.files[FileId(wanted)]
        return common_pb2.FileRecord(file_id=wanted, size=len(data), root=merkle_root(data))

    def hashes(self, wanted: bytes) -> List[Tuple[int, bytes]]:
        data = self.files[FileId(wanted)]
        layout = Layout(len(data))
        pieces = range(0, len(data), layout.piece_size)
        return [
            (0, b"".join(layout.piece_hash(data[at : at + layout.piece_size]) for at in pieces))
        ]

    def chunks(self, request: peer_pb2.DownloadRequest) -> Chunks:
        for index, span in enumerate(request.spans):
            data = self.files[FileId(span.file_id)]
            for at in range(span.offset, span.offset + span.length, 65536):
                yield index, at, data[at : min(at + 65536, span.offset + span.length)]

    async def Describe(self, request, context):
        if FileId(request.file_id) not in self.files:
            await context.abort(grpc.StatusCode.NOT_FOUND, "no such file")
        return peer_pb2.DescribeResponse(file=self.describe(request.file_id))

    async def GetPieceHashes(self, request, context):
        for first, hashes in self.hashes(request.file_id):
            yield peer_pb2.GetPieceHashesResponse(first_piece=first, hashes=hashes)

    async def Download(self, request, context):
        self.downloads += 1
        try:
            for span, offset, data in self.chunks(request):
                yield peer_pb2.DownloadResponse(span=span, offset=offset, data=data)
        finally:
            self.ended.set()

    async def WatchAvailability(self, request, context):
        snapshot = peer_pb2.AvailabilitySnapshot(
            units=self.units, complete=True, file_id=request.file_id
        )
        yield peer_pb2.WatchAvailabilityResponse(snapshot=snapshot)
        await asyncio.Event().wait()

    async def ReportBadPieces(self, request, context):
        self.reports.append(request)
        return peer_pb2.ReportBadPiecesResponse()


@contextlib.asynccontextmanager
async def serving(peer: Peer) -> AsyncIterator[str]:
    """The address of a peer while it runs."""
    server = grpc.aio.server()
    peer_pb2_grpc.add_PeerServiceServicer_to_server(peer, server)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    try:
        yield f"127.0.0.1:{port}"
    finally:
        await server.stop(0)


@pytest.fixture
async def honest(peers: List[Service], work: Path) -> str:
    """The address of a real peer that has the file."""
    path = work / "hostile.bin"
    if not path.exists():  # a peer refuses a file that was touched until it is hashed again
        path.write_bytes(DATA)
    async with LocalPeer(peers[0].socket) as local:
        (item,) = await local.share([path])
        assert item.file.file_id == ID
    return peers[0].address


async def get(target: Path, *addresses: str, wanted: FileId = ID, **options: object) -> Download:
    options.setdefault("patience", 10)
    async with Client() as client:
        return await client.download(wanted, target, providers=addresses, **options)  # type: ignore


class WrongBytes(Peer):
    def chunks(self, request):
        for span, offset, data in super().chunks(request):
            yield span, offset, bytes([data[0] ^ 1]) + data[1:]


class WrongOffset(Peer):
    def chunks(self, request):
        for span, offset, data in super().chunks(request):
            yield span, offset + 1, data


class WrongSpan(Peer):
    def chunks(self, request):
        for span, offset, data in super().chunks(request):
            yield span + 1, offset, data


class TooShort(Peer):
    def chunks(self, request):
        yield next(super().chunks(request))


class NothingAtAll(Peer):
    def chunks(self, request):
        yield from ()


class EmptyChunks(Peer):
    def chunks(self, request):
        while True:
            yield 0, request.spans[0].offset, b""


class TooLong(Peer):
    def chunks(self, request):
        yield 0, request.spans[0].offset, bytes(request.spans[0].length + 1)


class Endless(Peer):
    def chunks(self, request):
        yield from super().chunks(peer_pb2.DownloadRequest(spans=request.spans[:1]))
        while True:
            yield 0, request.spans[0].offset, bytes(65536)


class TwiceTheSame(Peer):
    def chunks(self, request):
        for chunk in super().chunks(request):
            yield chunk
            yield chunk


class WrongHashes(Peer):
    def hashes(self, wanted):
        ((first, hashes),) = super().hashes(wanted)
        return [(first, hashes[32:] + hashes[:32])]


class EndlessHashes(Peer):
    def hashes(self, wanted):
        for number in range(1 << 40):
            yield number * 1024, bytes(32 * 1024)


class HashesOfAnotherPlace(Peer):
    def hashes(self, wanted):
        ((_, hashes),) = super().hashes(wanted)
        return [(1, hashes)]


class TornHashes(Peer):
    def hashes(self, wanted):
        return [(0, bytes(33))]


class FewHashes(Peer):
    def hashes(self, wanted):
        return [(0, bytes(32))]


class LyingSize(Peer):
    def describe(self, wanted):
        return common_pb2.FileRecord(file_id=wanted, size=len(DATA) * 2, root=ROOT)


class HugeSize(Peer):
    def describe(self, wanted):
        return common_pb2.FileRecord(file_id=wanted, size=(1 << 64) - 1, root=ROOT)


class AnotherFile(Peer):
    def describe(self, wanted):
        return common_pb2.FileRecord(file_id=file_id(1, ROOT), size=1, root=ROOT)


BYTES = [
    WrongBytes,
    WrongOffset,
    WrongSpan,
    TooShort,
    NothingAtAll,
    EmptyChunks,
    TooLong,
    Endless,
    TwiceTheSame,
]
CLAIMS = [
    WrongHashes,
    EndlessHashes,
    HashesOfAnotherPlace,
    TornHashes,
    FewHashes,
    LyingSize,
    HugeSize,
    AnotherFile,
]


async def test_the_peer_of_these_tests_is_served_from_when_it_is_honest(tmp_path: Path) -> None:
    peer = Peer()
    async with serving(peer) as address:
        done = await get(tmp_path / "copy", address)
    assert (tmp_path / "copy").read_bytes() == DATA
    assert [report.banned for report in done.peers] == [None] and not peer.reports


@pytest.mark.parametrize("kind", [*BYTES, *CLAIMS], ids=lambda kind: kind.__name__)
async def test_a_misbehaving_peer_alone_is_named_and_nothing_is_kept(
    kind: Callable[[], Peer], tmp_path: Path
) -> None:
    async with serving(kind()) as address:
        with pytest.raises(potluck.VerificationError) as failure:
            await asyncio.wait_for(get(tmp_path / "copy", address), 30)
    assert address in str(failure.value)
    assert not (tmp_path / "copy").exists()


@pytest.mark.parametrize("kind", BYTES, ids=lambda kind: kind.__name__)
async def test_a_peer_that_sends_wrong_bytes_is_banned_and_others_send_the_rest(
    kind: Callable[[], Peer], honest: str, tmp_path: Path
) -> None:
    peer = kind()
    async with serving(peer) as address:
        done = await asyncio.wait_for(get(tmp_path / "copy", honest, address), 30)
    assert (tmp_path / "copy").read_bytes() == DATA
    banned = {str(report.provider.address): report.banned for report in done.peers}
    assert banned[address] and banned[honest] is None
    assert peer.downloads <= 2, "no requests after the ban"


async def test_a_peer_is_told_of_the_piece_that_was_wrong(tmp_path: Path) -> None:
    peer = WrongBytes()
    async with serving(peer) as address:
        with pytest.raises(
            potluck.VerificationError, match="piece [0-9]+ of .* failed verification"
        ):
            await get(tmp_path / "copy", address)
        assert peer.reports and {bytes(report.file_id) for report in peer.reports} == {ID}


async def test_no_wrong_piece_is_written(tmp_path: Path) -> None:
    """What was verified before the ban stays for the next run; nothing else does."""

    class LastPieceWrong(Peer):
        def chunks(self, request):
            for span, offset, data in super().chunks(request):
                yield span, offset, data if offset < 1 << 20 else bytes(len(data))

    async with serving(LastPieceWrong()) as address:
        with pytest.raises(potluck.VerificationError):
            await get(tmp_path / "copy", address)
    (part,) = tmp_path.iterdir()
    kept = part.read_bytes()
    for piece in range(LAYOUT.piece_count):
        start = piece * LAYOUT.piece_size
        data = kept[start : start + LAYOUT.piece_len(piece)]
        assert not any(data) or data == DATA[start : start + len(data)], f"piece {piece}"
    async with serving(Peer()) as address:
        done = await get(tmp_path / "copy", address)
    assert 0 < done.bytes_resumed <= 1 << 20
    assert (tmp_path / "copy").read_bytes() == DATA


async def test_a_peer_that_never_answers_does_not_hold_up_the_end(
    honest: str, tmp_path: Path
) -> None:
    class Silent(Peer):
        async def Download(self, request, context):
            self.downloads += 1
            await asyncio.Event().wait()
            yield

    peer = Silent()
    async with serving(peer) as address:
        done = await asyncio.wait_for(get(tmp_path / "copy", honest, address), 12)
    assert peer.downloads
    assert {str(report.provider.address): report.bytes for report in done.peers} == {
        honest: len(DATA),
        address: 0,
    }


async def test_a_peer_that_sends_no_hashes_does_not_hold_up_the_start(
    honest: str, tmp_path: Path
) -> None:
    class Silent(Peer):
        asked = 0

        async def Describe(self, request, context):
            self.asked += 1
            await asyncio.Event().wait()

        async def GetPieceHashes(self, request, context):
            self.asked += 1
            await asyncio.Event().wait()
            yield

    peers = [Silent(), Silent()]
    async with serving(peers[0]) as one, serving(peers[1]) as two:
        await asyncio.wait_for(get(tmp_path / "copy", one, honest, two), 8)
    assert peers[0].asked or peers[1].asked


async def test_a_cancelled_download_writes_to_no_other_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A thread that still writes must not meet the next file that gets its descriptor."""
    writing, goes_on, written = threading.Event(), threading.Event(), threading.Event()
    real_write = storage._write_all

    def slow_write(*arguments):
        writing.set()
        goes_on.wait(10)
        try:
            real_write(*arguments)
        finally:
            written.set()

    monkeypatch.setattr(storage, "_write_all", slow_write)
    async with serving(Peer()) as address:
        task = asyncio.ensure_future(get(tmp_path / "copy", address))
        assert await asyncio.to_thread(writing.wait, 10)
        threading.Timer(0.3, goes_on.set).start()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
    others = [open(tmp_path / f"other{number}", "w+b", buffering=0) for number in range(50)]
    assert written.wait(10)
    assert [os.fstat(file.fileno()).st_size for file in others] == [0] * 50
    for file in others:
        file.close()


async def test_a_peer_that_drips_does_not_hold_up_the_end(honest: str, tmp_path: Path) -> None:
    class Dripping(Peer):
        async def Download(self, request, context):
            self.downloads += 1
            span = request.spans[0]
            for offset in range(span.offset, span.offset + span.length):
                yield peer_pb2.DownloadResponse(offset=offset, data=DATA[offset : offset + 1])
                await asyncio.sleep(0.2)

    peer = Dripping()
    async with serving(peer) as address:
        await asyncio.wait_for(get(tmp_path / "copy", honest, address), 12)
    assert peer.downloads


async def test_a_call_ends_when_its_download_is_cancelled(tmp_path: Path) -> None:
    class Slow(Peer):
        async def Download(self, request, context):
            self.downloads += 1
            try:
                await asyncio.Event().wait()
                yield
            finally:
                self.ended.set()

    peer = Slow()
    async with serving(peer) as address:
        task = asyncio.ensure_future(get(tmp_path / "copy", address))
        while not peer.downloads:
            await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        await asyncio.wait_for(peer.ended.wait(), 5)
    rest = asyncio.all_tasks() - {asyncio.current_task()}
    assert not [task for task in rest if "potluck/src" in repr(task)], "no task is left"


async def test_a_refusal_is_no_misbehaviour(tmp_path: Path) -> None:
    class Busy(Peer):
        async def Download(self, request, context):
            self.downloads += 1
            if self.downloads < 3:
                await context.abort(grpc.StatusCode.RESOURCE_EXHAUSTED, "later")
            for span, offset, data in self.chunks(request):
                yield peer_pb2.DownloadResponse(span=span, offset=offset, data=data)

    async with serving(Busy()) as address:
        (report,) = (await get(tmp_path / "copy", address)).peers
    assert report.banned is None and report.bytes == len(DATA)


async def test_patience_ends(tmp_path: Path) -> None:
    class Broken(Peer):
        async def Download(self, request, context):
            await context.abort(grpc.StatusCode.INTERNAL, "broken disk")
            yield

    async with serving(Broken()) as address:
        with pytest.raises(potluck.InternalError, match="broken disk"):
            await get(tmp_path / "copy", address, patience=1)


# Collections.


def collection(*entries: object, files: Tuple[bytes, ...] = ()) -> Tuple[FileId, Peer]:
    """A peer with a collection of these entries, which are not checked."""
    data = b"PLCOLL1\n" + b"".join(map(_encode_entry, entries))  # type: ignore
    return file_id(len(data), merkle_root(data)), Peer(data, *files)


SMALL = b"small"
SMALL_ID = file_id(len(SMALL), merkle_root(SMALL))


@pytest.mark.parametrize(
    "entries",
    [
        [File("../outside", SMALL_ID, 5)],
        [File("/tmp/outside", SMALL_ID, 5)],
        [Link("a", "..")],
        [Link("a", "/tmp"), File("a/b", SMALL_ID, 5)],
        [File("b", SMALL_ID, 5), File("a", SMALL_ID, 5)],
    ],
    ids=str,
)
async def test_an_unsafe_manifest_is_a_plain_file(entries: list, tmp_path: Path) -> None:
    wanted, peer = collection(*entries, files=(SMALL,))
    async with serving(peer) as address:
        done = await get(tmp_path / "copy", address, wanted=wanted)
    assert not done.is_folder
    assert (tmp_path / "copy").read_bytes() == peer.files[wanted]
    assert os.listdir(tmp_path) == ["copy"]


async def test_a_file_of_a_bundle_is_verified(tmp_path: Path) -> None:
    wanted, peer = collection(File("a", SMALL_ID, 5), File("b/c", SMALL_ID, 5))
    peer.files[SMALL_ID] = b"wrong"
    async with serving(peer) as address:
        with pytest.raises(potluck.VerificationError):
            await get(tmp_path / "copy", address, wanted=wanted)
        assert not (tmp_path / "copy").exists()
        peer.files[SMALL_ID] = SMALL
        await get(tmp_path / "copy", address, wanted=wanted)
    assert (tmp_path / "copy/b/c").read_bytes() == (tmp_path / "copy/a").read_bytes() == SMALL


async def test_a_size_that_the_id_does_not_commit_to_is_found(tmp_path: Path) -> None:
    """The manifest gives a file fewer bytes than it has."""
    wanted, peer = collection(File("a", SMALL_ID, 4), files=(SMALL,))
    async with serving(peer) as address:
        with pytest.raises(potluck.VerificationError):
            await get(tmp_path / "copy", address, wanted=wanted)


async def test_a_collection_that_writes_much_more_than_it_sends_needs_consent(
    tmp_path: Path,
) -> None:
    big = bytes(8 << 20)
    big_id = file_id(len(big), merkle_root(big))
    wanted, peer = collection(*(File(f"{n:04}", big_id, len(big)) for n in range(200)))
    async with serving(peer) as address:
        with pytest.raises(potluck.TargetError) as failure:
            await get(tmp_path / "copy", address, wanted=wanted)
    assert failure.value.reason == "EXPANSION_REFUSED"
    assert not (tmp_path / "copy").exists()


@pytest.mark.parametrize("paths", [["A", "a"], ["A"]], ids=str)
async def test_names_that_the_file_system_changes_are_refused(
    paths: List[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A file system that has only lower case, as far as a test can have one."""
    entries = [File(path, SMALL_ID, 5) for path in paths]
    wanted, peer = collection(*entries, files=(SMALL,))
    real_link, real_open = os.link, open
    lower = lambda path: os.path.join(os.path.dirname(path), os.path.basename(path).lower())  # noqa: E731
    monkeypatch.setattr(os, "link", lambda a, b, **options: real_link(a, lower(b), **options))

    def folding_open(path, mode="r", *rest, **options):
        return real_open(lower(path) if mode == "xb" else path, mode, *rest, **options)

    monkeypatch.setattr("potluck.storage.open", folding_open, raising=False)
    async with serving(peer) as address:
        with pytest.raises(potluck.TargetError) as failure:
            await get(tmp_path / "copy", address, wanted=wanted)
    assert failure.value.reason == "TARGET_UNSUITABLE"
    assert not (tmp_path / "copy").exists()


async def test_availability_that_makes_no_sense_bans(tmp_path: Path) -> None:
    """The collection's units are watched, and the manifest is not."""
    manifest = Manifest([File("a", SMALL_ID, 5)])

    class Lying(Peer):
        async def WatchAvailability(self, request, context):
            yield peer_pb2.WatchAvailabilityResponse(
                snapshot=peer_pb2.AvailabilitySnapshot(
                    units=1 << 31, have=b"", file_id=request.file_id
                )
            )
            await asyncio.Event().wait()

    peer = Lying(manifest.encode(), SMALL)
    wanted = file_id(len(manifest.encode()), merkle_root(manifest.encode()))
    async with serving(peer) as address:
        with pytest.raises(potluck.VerificationError, match="availability"):
            await get(tmp_path / "copy", address, wanted=wanted)


async def test_a_peer_that_cannot_be_watched_is_asked_anyway(tmp_path: Path) -> None:
    """It has the second of two units only, and another peer the first."""

    class Unwatchable(Peer):
        refusals = 0

        async def WatchAvailability(self, request, context):
            await context.abort(grpc.StatusCode.RESOURCE_EXHAUSTED, "too many watch")
            yield

        def chunks(self, request):
            for span in request.spans:
                if FileId(span.file_id) == self.lacks:
                    self.refusals += 1
                    raise Refusal
            return super().chunks(request)

        async def Download(self, request, context):
            try:
                for span, offset, data in self.chunks(request):
                    yield peer_pb2.DownloadResponse(span=span, offset=offset, data=data)
            except Refusal:
                info = error_details_pb2.ErrorInfo(domain="potluck", reason="PIECE_NOT_AVAILABLE")
                details = Any()
                details.Pack(info)
                status = status_pb2.Status(code=5, details=[details])
                context.set_trailing_metadata(
                    [("grpc-status-details-bin", status.SerializeToString())]
                )
                await context.abort(grpc.StatusCode.NOT_FOUND, "not here yet")

    one, two = content(128 * 1024, 1), content(128 * 1024, 2)
    ids = [file_id(len(data), merkle_root(data)) for data in (one, two)]
    manifest = Manifest([File("one", ids[0], len(one)), File("two", ids[1], len(two))]).encode()
    peers = [Unwatchable(manifest, one, two), Unwatchable(manifest, one, two)]
    peers[0].lacks, peers[1].lacks = ids
    async with serving(peers[0]) as first, serving(peers[1]) as second:
        wanted = file_id(len(manifest), merkle_root(manifest))
        done = await get(tmp_path / "copy", first, second, wanted=wanted)
    assert (tmp_path / "copy/one").read_bytes() == one
    assert (tmp_path / "copy/two").read_bytes() == two
    assert not any(report.banned for report in done.peers)


class Refusal(Exception):
    pass


# Indexes.


class Index(index_pb2_grpc.IndexServiceServicer):
    """Answers with what a test gives it."""

    def __init__(self, **answers: object) -> None:
        self.answers = answers

    async def Search(self, request, context):
        return self.answers["search"]

    async def Query(self, request, context):
        return self.answers["query"]

    async def WatchProviders(self, request, context):
        yield self.answers["providers"]
        await asyncio.Event().wait()


@contextlib.asynccontextmanager
async def index_of(index: Index) -> AsyncIterator[Client]:
    server = grpc.aio.server()
    index_pb2_grpc.add_IndexServiceServicer_to_server(index, server)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    try:
        async with Client(f"http://127.0.0.1:{port}") as client:
            yield client
    finally:
        await server.stop(0)


def record(**changes: object) -> common_pb2.FileRecord:
    return common_pb2.FileRecord(**{"file_id": ID, "size": len(DATA), "root": ROOT, **changes})  # type: ignore


@pytest.mark.parametrize(
    "changes", [{"size": 1}, {"root": bytes(32)}, {"root": b""}, {"file_id": bytes(32)}], ids=str
)
async def test_an_index_cannot_lie_about_size_and_root(changes: dict) -> None:
    result = index_pb2.SearchResult(file=record(**changes))
    async with index_of(Index(search=index_pb2.SearchResponse(files=[result]))) as client:
        with pytest.raises(potluck.VerificationError):
            await client.search("x")


async def test_an_index_that_has_always_another_page_comes_to_an_end() -> None:
    async with index_of(Index(search=index_pb2.SearchResponse(next_page_token="more"))) as client:
        assert await client.search("x", limit=10) == []


async def test_an_answer_to_another_query_is_refused() -> None:
    answer = index_pb2.QueryResponse(files=[index_pb2.QueryResult(file=record())], key=b"other")
    async with index_of(Index(query=answer)) as client:
        with pytest.raises(potluck.UnavailableError):
            await client.query(id=ID)


async def test_hosts_that_an_index_invents_are_not_called(honest: str, tmp_path: Path) -> None:
    address = Address.parse(honest)
    hosts = ["unix:/tmp/socket", "", "a b", "dns:///x", address.host]
    providers = [
        common_pb2.Provider(address=common_pb2.Address(host=host, port=address.port), complete=True)
        for host in hosts
    ]
    answers = Index(
        query=index_pb2.QueryResponse(files=[index_pb2.QueryResult(file=record())], key=ID),
        providers=index_pb2.WatchProvidersResponse(
            snapshot=index_pb2.ProviderSnapshot(providers=providers, file_id=ID)
        ),
    )
    async with index_of(answers) as client:
        done = await client.download(ID, tmp_path / "copy")
    assert [report.provider for report in done.peers] == [Provider(b"", address, True)]


@pytest.mark.parametrize("ignores_local", [True, False])
async def test_an_index_elsewhere_cannot_name_addresses_of_this_machine(
    ignores_local: bool,
) -> None:
    pool = PeerPool(ID, None, None, ignores_local, 8)
    for host in ("127.0.0.1", "::1", "169.254.169.254", "0.0.0.0", "192.0.2.1"):
        address = common_pb2.Address(host=host, port=80)
        pool.add_found([common_pb2.Provider(address=address)])
    found = {peer.provider.address.host for peer in pool.active()}
    assert found == {"192.0.2.1"} if ignores_local else len(found) == 5
    await pool.close()
