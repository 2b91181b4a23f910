"""The client of an index and its peers."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import (
    TYPE_CHECKING,
    Awaitable,
    Callable,
    Iterable,
    List,
    Optional,
    Sequence,
    Tuple,
    Type,
    TypeVar,
    Union,
)

import grpc
import grpc.aio

from .credentials import Credentials, PeerIdentity, certificate_pem, signing_request
from .errors import error, from_rpc
from .fetch import Fetch, Progress
from .identity import FileHashes, FileId
from .manifest import MAGIC, MAX_MANIFEST_SIZE, Manifest, ManifestError
from .peers import PeerPool, PeerReport, Violation, check_record
from .plan import Plan, expands
from .storage import PartFile, PartFolder, check_sha256, check_target, storing
from .transport import DEFAULT_PORT, Address, Provider, index_channel
from .v1 import common_pb2, index_pb2, index_pb2_grpc, network_pb2, network_pb2_grpc

if TYPE_CHECKING:
    from .v1.index_pb2_grpc import IndexServiceAsyncStub
    from .v1.network_pb2_grpc import NetworkServiceAsyncStub

AnyId = Union[FileId, bytes, str]
"""An id as bytes or hex digits."""

PAGE = 100
"""Files of one page. Their records and names fit a message."""

T = TypeVar("T")


@dataclass(frozen=True)
class FoundFile:
    """A file that the index knows. Its id commits to its size and root; the rest are claims."""

    file_id: FileId
    size: int
    root: bytes
    names: Tuple[str, ...]
    """At most 16, with the matching or most common ones first."""
    provider_count: int
    """Number of peers that have all or part of it."""
    providers: Tuple[Provider, ...] = ()
    """A sample of these peers; none in the results of a search."""
    sha256: Optional[bytes] = None
    """The plain SHA-256 that providers claim."""
    is_collection: bool = False
    """Whether providers claim that it is a folder."""


@dataclass(frozen=True)
class Registration:
    """A file to register."""

    size: int
    root: bytes
    names: Sequence[str] = ()
    complete: bool = True
    sha256: Optional[bytes] = None
    is_collection: bool = False

    @classmethod
    def of(cls, hashes: FileHashes, names: Sequence[str] = ()) -> Registration:
        """The registration of a file that was hashed with `hash_file`."""
        return cls(hashes.size, hashes.root, names, sha256=hashes.sha256)


@dataclass(frozen=True)
class Lease:
    """What the index has of a peer. Renew it after a third of its time."""

    token: bytes = field(repr=False)
    """The peer's secret, which alone can renew and unregister; empty in a private network."""
    peer_id: bytes
    address: Address
    """The address that the index gives to others."""
    seconds: float
    """Time until the index drops the peer, unless it renews."""
    file_count: int
    file_ids: Tuple[FileId, ...]
    """The ids that this call registered."""


@dataclass(frozen=True)
class Download:
    """A finished download."""

    file_id: FileId
    path: Path
    size: int
    """Bytes of the file, or of all files of a folder."""
    is_folder: bool
    peers: Tuple[PeerReport, ...]
    """What each peer sent, and which were banned."""
    bytes_resumed: int
    """Bytes that an earlier run had downloaded."""


class Client:
    """Finds files at an index and downloads them from peers.

        async with Client("http://127.0.0.1:1313") as client:
            for file in await client.search("model"):
                print(file.file_id, file.names)
            await client.download(file.file_id, "model.bin")

    With credentials, every connection is encrypted and both ends prove who they are. Without an
    index, downloads name their providers.
    """

    def __init__(
        self,
        index: Optional[str] = None,
        *,
        credentials: Optional[Credentials] = None,
        timeout: float = 30.0,
    ) -> None:
        """Takes the URL of the index, by default that of the credentials' network.

        `timeout` is in seconds, for each call of the index.
        """
        if index is None and credentials is not None:
            index = credentials.indexes[0]
        self._credentials = credentials
        self._timeout = timeout
        self._address = None if index is None else _index_address(index, credentials)
        self._channel: Optional[grpc.aio.Channel] = None

    async def __aenter__(self) -> Client:
        if self._address is not None:
            self._channel = index_channel(self._address, self._credentials)
        return self

    async def __aexit__(
        self,
        kind: Optional[Type[BaseException]],
        value: Optional[BaseException],
        trace: Optional[TracebackType],
    ) -> None:
        if self._channel is not None:
            await self._channel.close()
            self._channel = None

    # Finding files.

    async def search(self, words: str, limit: int = 100) -> List[FoundFile]:
        """Files whose names have all words, or words that begin with them. No words: all files.

        Raises PotluckError.
        """
        found: List[FoundFile] = []
        token = ""
        for _ in range(limit + 1000):  # pages may be empty
            request = index_pb2.SearchRequest(
                query=words, page_size=min(PAGE, limit - len(found)), page_token=token
            )
            answer = await self._call(self._index().Search(request, timeout=self._timeout))
            found.extend(_found(r.file, r.names, r.provider_count, ()) for r in answer.files)
            token = answer.next_page_token
            if not token or len(found) >= limit:
                break
        return found[:limit]

    async def query(
        self,
        *,
        id: Optional[AnyId] = None,
        prefix: Optional[str] = None,
        sha256: Union[bytes, str, None] = None,
        name: Optional[str] = None,
        limit: int = 100,
    ) -> List[FoundFile]:
        """Files with this id, first digits of an id, plain SHA-256 or exact name; with providers.

        Raises PotluckError.
        """
        if sum(key is not None for key in (id, prefix, sha256, name)) != 1:
            raise ValueError("query takes one of id, prefix, sha256 and name")
        request = index_pb2.QueryRequest()
        key: bytes
        if id is not None:
            request.file_id = key = _parse_id(id)
        elif prefix is not None:
            request.file_id_prefix = prefix
            key = prefix.lower().encode()
        elif sha256 is not None:
            request.sha256 = key = _parse_hash(sha256)
        else:
            request.name = name or ""
            key = request.name.encode()
        found: List[FoundFile] = []
        for _ in range(limit + 1000):
            request.page_size = min(PAGE, limit - len(found))
            answer = await self._call(self._index().Query(request, timeout=self._timeout))
            if answer.key != key:
                raise error("NOT_POTLUCK", "the index answered another query")
            found.extend(
                _found(r.file, r.names, r.provider_count, r.providers) for r in answer.files
            )
            request.page_token = answer.next_page_token
            if not request.page_token or len(found) >= limit:
                break
        return found[:limit]

    async def resolve(self, text: str) -> FileId:
        """The one id that a name, an id, or at least 8 digits of one stand for.

        Raises NotFoundError, AmbiguousNameError, or another PotluckError.
        """
        try:
            return FileId(text)
        except ValueError:
            pass
        found = await self.query(name=text, limit=2)
        digits = text.lower()
        if not found and 8 <= len(digits) < 64 and set(digits) <= set("0123456789abcdef"):
            found = await self.query(prefix=digits, limit=2)
        if not found:
            raise error("NOT_FOUND", f"the index knows no file {text!r}")
        if len(found) > 1:
            raise error("AMBIGUOUS_NAME", f"several files are called {text!r}: give an id")
        return found[0].file_id

    async def stats(self) -> index_pb2.GetStatsResponse:
        """Statistics of the index. Raises PotluckError."""
        request = index_pb2.GetStatsRequest()
        return await self._call(self._index().GetStats(request, timeout=self._timeout))

    # Downloads.

    async def download(
        self,
        wanted: Union[AnyId, FoundFile],
        target: Union[str, Path],
        *,
        sha256: Union[bytes, str, None] = None,
        providers: Iterable[Union[str, Provider]] = (),
        as_file: bool = False,
        allow_expansion: bool = False,
        progress: Optional[Callable[[Progress], None]] = None,
        max_peers: int = 8,
        patience: float = 60.0,
    ) -> Download:
        """Downloads a file or folder to `target`, which must not exist.

        Every piece is verified against the id before it is written. If the download stops, for any
        reason, the next one to the same target continues it.

        - `sha256`: the plain SHA-256 that the file must have, in addition.
        - `providers`: peers to use besides those that the index knows, as HOST:PORT.
        - `as_file`: keep the manifest of a folder as a file.
        - `allow_expansion`: allow a folder of over 1 GiB and ten times its distinct content.
        - `progress`: is called on the event loop after each verified unit.
        - `max_peers`: how many peers to use at once.
        - `patience`: seconds without a byte of any peer after which the download fails.

        Raises VerificationError if all peers sent wrong bytes, NotFoundError, TargetError, or
        another PotluckError.
        """
        file_id = wanted.file_id if isinstance(wanted, FoundFile) else _parse_id(wanted)
        expected = None if sha256 is None else _parse_hash(sha256)
        path = Path(target)
        check_target(path)
        index = self._index() if self._channel is not None else None
        ignores_local = self._address is not None and not self._address.is_loopback
        pool = PeerPool(file_id, index, self._credentials, ignores_local, max_peers)
        try:
            for provider in providers:
                if isinstance(provider, str):
                    provider = Provider(b"", Address.parse(provider), complete=False)
                pool.add(provider)
            pool.start()
            size, root = await self._size_and_root(wanted, file_id, pool, patience)
            job = _Job(pool, file_id, path, patience, progress)
            with storing(path):
                return await job.run(size, root, expected, as_file, allow_expansion)
        finally:
            await pool.close()

    async def _size_and_root(
        self, wanted: Union[AnyId, FoundFile], file_id: FileId, pool: PeerPool, patience: float
    ) -> Tuple[int, bytes]:
        if isinstance(wanted, FoundFile):
            return wanted.size, wanted.root
        if self._channel is not None:
            for found in await self.query(id=file_id):
                return found.size, found.root
            if not pool.active():
                raise error("NOT_FOUND", f"the index knows no file {file_id}")
        answer = await pool.any_peer(lambda peer: peer.describe(file_id), patience)
        return answer.file.size, answer.file.root

    # Registrations.

    async def register(
        self,
        files: Sequence[Registration],
        *,
        port: int,
        host: str = "",
        token: bytes = b"",
        seconds: float = 0.0,
        replace: bool = False,
    ) -> Lease:
        """Registers files, and opens or renews the lease of the peer that serves them at `port`.

        Without `host`, others get the address from which this call comes. Without a token, the
        index makes one. `seconds` is the time of the lease; 0: what the index chooses. `replace`
        removes all earlier registrations first.

        In a private network, the credentials are those of a peer: see `enroll_peer`.

        Raises PotluckError.
        """
        request = index_pb2.RegisterRequest(
            token=token,
            address=common_pb2.Address(host=host, port=port),
            files=[_registration(file) for file in files],
            ttl_ms=int(seconds * 1000),
            replace=replace,
        )
        answer = await self._call(self._index().Register(request, timeout=self._timeout))
        return Lease(
            token=answer.token or token,
            peer_id=answer.peer_id,
            address=Address(answer.address.host, answer.address.port),
            seconds=answer.ttl_ms / 1000,
            file_count=answer.file_count,
            file_ids=tuple(map(_checked_id, answer.file_ids)),
        )

    async def renew(self, lease: Lease) -> float:
        """Renews a lease: the seconds until its end.

        Raises NotFoundError if the index has no such lease: then register again. Raises
        PotluckError.
        """
        address = common_pb2.Address(host=lease.address.host, port=lease.address.port)
        request = index_pb2.RenewRequest(token=lease.token, address=address)
        answer = await self._call(self._index().Renew(request, timeout=self._timeout))
        return answer.ttl_ms / 1000

    async def unregister(self, token: bytes = b"", ids: Optional[Iterable[AnyId]] = None) -> int:
        """Removes registrations, or without ids all of them with the lease: how many there were.

        Raises PotluckError.
        """
        request = index_pb2.UnregisterRequest(token=token, all=ids is None)
        request.file_ids.extend(map(_parse_id, ids or ()))
        answer = await self._call(self._index().Unregister(request, timeout=self._timeout))
        return answer.removed

    async def enroll_peer(self, key: Optional[bytes] = None) -> PeerIdentity:
        """A certificate for a peer of this member, and its key in PEM, new unless it is given.

        Use it with `credentials.with_identity(identity)` to register files. Enrol again with the
        same key before the certificate ends, after seven days.

        Raises PotluckError.
        """
        if self._channel is None:
            raise error("INVALID_ADDRESS", "the client has no index, or is not open")
        stub: NetworkServiceAsyncStub = network_pb2_grpc.NetworkServiceStub(self._channel)  # type: ignore
        pem, der = signing_request(key)
        request = network_pb2.EnrollPeerRequest(signing_request=der)
        answer = await self._call(stub.EnrollPeer(request, timeout=self._timeout))
        return PeerIdentity(answer.peer_id, certificate_pem(answer.certificate), pem)

    # Helpers.

    def _index(self) -> IndexServiceAsyncStub:
        if self._channel is None:
            raise error("INVALID_ADDRESS", "the client has no index, or is not open")
        stub: IndexServiceAsyncStub = index_pb2_grpc.IndexServiceStub(self._channel)  # type: ignore
        return stub

    async def _call(self, call: Awaitable[T]) -> T:
        try:
            return await call
        except grpc.aio.AioRpcError as failure:
            raise from_rpc(failure) from failure


class _Job:
    """The steps of one download: the file, and if it is a manifest, what it lists."""

    def __init__(
        self,
        pool: PeerPool,
        wanted: FileId,
        target: Path,
        patience: float,
        progress: Optional[Callable[[Progress], None]],
    ) -> None:
        self._pool = pool
        self._wanted = wanted
        self._target = target
        self._patience = patience
        self._progress = progress

    async def run(
        self,
        size: int,
        root: bytes,
        sha256: Optional[bytes],
        as_file: bool,
        allow_expansion: bool,
    ) -> Download:
        part = PartFile(self._target, self._wanted, size)
        try:
            # Peers announce the units of a collection's content, and not those of its manifest.
            may_be_manifest = size <= MAX_MANIFEST_SIZE
            plan = Plan.of_file(self._wanted, size, root)
            progress = None if may_be_manifest and not as_file else self._progress
            resumed = await self._fetch(plan, part, not may_be_manifest, False, progress)
            bad = await asyncio.to_thread(check_sha256, part, sha256)
            if bad is not None:
                part.discard()
                raise bad
            manifest = None
            if may_be_manifest and not as_file:
                manifest = await asyncio.to_thread(_manifest_in, part, size)
            if manifest is not None:
                result = await self._folder(manifest, allow_expansion)
                part.discard()
                return result
            if progress is None and self._progress is not None:
                self._progress(Progress(size, size, resumed))
            await asyncio.to_thread(part.finalize)
            return self._result(size, False, resumed)
        finally:
            part.close()

    async def _folder(self, manifest: Manifest, allow_expansion: bool) -> Download:
        refused, written, distinct = expands(manifest)
        if refused and not allow_expansion:
            text = f"the folder writes {written} bytes for {distinct} bytes of distinct content"
            raise error("EXPANSION_REFUSED", text)
        folder = PartFolder(self._target, self._wanted, manifest)
        try:
            plan = Plan.of_collection(manifest)
            resumed = await self._fetch(plan, folder, True, True, self._progress)
            await asyncio.to_thread(folder.finalize)
            return self._result(manifest.content_size, True, resumed)
        finally:
            folder.close()

    async def _fetch(
        self,
        plan: Plan,
        store: Union[PartFile, PartFolder],
        watches_units: bool,
        is_collection: bool,
        progress: Optional[Callable[[Progress], None]],
    ) -> int:
        if plan.needs_hashes:
            await self._pool.any_peer(
                lambda peer: peer.piece_hashes(plan, self._wanted, is_collection), self._patience
            )
        fetch = Fetch(
            plan, self._wanted, self._pool, store, self._patience, watches_units, progress
        )
        return await fetch.run()

    def _result(self, size: int, is_folder: bool, resumed: int) -> Download:
        reports = tuple(self._pool.reports())
        return Download(self._wanted, self._target, size, is_folder, reports, resumed)


def _manifest_in(part: PartFile, size: int) -> Optional[Manifest]:
    """The manifest that a complete part is, if it is one. What breaks a rule is a plain file."""
    if part.read_start(len(MAGIC)) != MAGIC:
        return None
    try:
        return Manifest.decode(part.read_start(size))
    except ManifestError:
        return None


def _index_address(url: str, credentials: Optional[Credentials]) -> Address:
    if url.startswith("https://") and credentials is None:
        raise error("INVALID_ADDRESS", f"{url} needs the credentials of a private network")
    if url.startswith("http://") and credentials is not None:
        raise error("INVALID_ADDRESS", f"{url} is not encrypted, but there are credentials")
    return Address.parse(url, DEFAULT_PORT)


def _parse_id(value: AnyId) -> FileId:
    try:
        return FileId(value)
    except ValueError as failure:
        raise error("INVALID_ID", str(failure)) from failure


def _parse_hash(value: Union[bytes, str]) -> bytes:
    return bytes(_parse_id(value))


def _checked_id(value: bytes) -> FileId:
    try:
        return FileId(value)
    except ValueError as failure:
        raise error("NOT_POTLUCK", "the index returned an invalid id") from failure


def _found(
    record: common_pb2.FileRecord,
    names: Iterable[str],
    provider_count: int,
    providers: Iterable[common_pb2.Provider],
) -> FoundFile:
    file_id = _checked_id(record.file_id)
    try:
        check_record(record, file_id)
    except Violation as violation:
        text = f"the index {violation}: {file_id}"
        raise error("VERIFICATION_FAILED", text) from violation
    found = map(Provider.from_message, providers)
    return FoundFile(
        file_id=file_id,
        size=record.size,
        root=record.root,
        names=tuple(names),
        provider_count=provider_count,
        providers=tuple(provider for provider in found if provider is not None),
        sha256=record.sha256 or None,
        is_collection=record.kind == common_pb2.FILE_KIND_COLLECTION,
    )


def _registration(file: Registration) -> index_pb2.Registration:
    kind = common_pb2.FILE_KIND_COLLECTION if file.is_collection else common_pb2.FILE_KIND_FILE
    record = common_pb2.FileRecord(
        size=file.size, root=file.root, sha256=file.sha256 or b"", kind=kind
    )
    return index_pb2.Registration(file=record, names=file.names, complete=file.complete)
