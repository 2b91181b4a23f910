"""The peers of one download: who they are, what they have, and who was banned."""

from __future__ import annotations

import asyncio
import logging
import random
import time
from dataclasses import dataclass
from typing import (
    TYPE_CHECKING,
    Any,
    AsyncGenerator,
    Awaitable,
    Callable,
    Dict,
    List,
    Optional,
    Set,
    Tuple,
    TypeVar,
    cast,
)

import grpc
import grpc.aio

from .credentials import Credentials
from .errors import PotluckError, error, from_rpc
from .identity import FileId, file_id
from .plan import Plan, Span
from .transport import Provider, peer_channel
from .v1 import common_pb2, index_pb2, peer_pb2, peer_pb2_grpc
from .waiting import within

if TYPE_CHECKING:
    from .v1.index_pb2_grpc import IndexServiceAsyncStub
    from .v1.peer_pb2_grpc import PeerServiceAsyncStub

log = logging.getLogger("potluck")

IDLE_TIMEOUT = 15.0
"""Seconds that a peer may send nothing before a request to it ends."""

CALL_TIMEOUT = 10.0
"""Seconds for a call with one small answer."""

ASK_ANOTHER_AFTER = 1.0
"""Seconds after which another peer is asked as well for what one peer has not answered yet."""

MAX_BACKOFF = 30.0
"""Longest time in seconds after which a peer is tried again."""

REFUSALS = ("FILE_CHANGED", "PIECE_NOT_AVAILABLE", "NOT_FOUND")

MAX_REFUSAL_BACKOFF = 2.0
"""As MAX_BACKOFF, after a refusal: a peer soon serves a touched file, once it is hashed again."""

REFUSAL = 2.0
"""Seconds for which a peer is not asked again for a unit that it refused."""

REFUSAL_DELAY = 0.1
"""Seconds between a refusal and the next request."""

MAX_CHUNK = 1 << 20
MAX_HASHES = 64 << 10
MAX_KNOWN = 1000
"""Providers to remember, whatever an index says."""

T = TypeVar("T")


class Violation(Exception):
    """A peer broke the protocol or sent wrong bytes. It is banned."""


@dataclass
class PeerReport:
    """What one peer did in a download."""

    provider: Provider
    bytes: int = 0
    """Verified bytes from this peer."""
    banned: Optional[str] = None
    """Why it was banned, if it was."""
    error: Optional[str] = None
    """Its last failure, if any."""


class Peer:
    """A provider with its connection."""

    def __init__(self, provider: Provider, credentials: Optional[Credentials]) -> None:
        self.provider = provider
        self.report = PeerReport(provider)
        self.complete = provider.complete
        self.units: Optional[bytes] = None
        """The bitfield of its units, if it is known and the peer is not complete."""
        self.refused: Dict[int, float] = {}
        """Units that it refused, with the time until which it is not asked again."""
        self.retry_at = 0.0
        self.requests = 0
        self.watch: Optional[asyncio.Task[None]] = None
        self._failures = 0
        self._channel = peer_channel(provider, credentials)
        self.stub: PeerServiceAsyncStub = peer_pb2_grpc.PeerServiceStub(self._channel)  # type: ignore

    @property
    def is_banned(self) -> bool:
        """Whether it gets no more requests."""
        return self.report.banned is not None

    def is_ready(self, now: float) -> bool:
        """Whether it may be asked now."""
        return not self.is_banned and now >= self.retry_at

    def has(self, unit: int, now: float) -> bool:
        """Whether it is thought to have a unit."""
        if self.refused.get(unit, 0.0) > now:
            return False
        if self.complete or self.units is None:
            return True
        return unit // 8 < len(self.units) and bool(self.units[unit // 8] >> (7 - unit % 8) & 1)

    def ban(self, why: str) -> None:
        """Gives it no more requests in this download."""
        if not self.is_banned:
            self.report.banned = why
            log.warning("banned peer %s: %s", self.provider, why)

    def fail(self, failure: PotluckError) -> None:
        """Waits before the next request, longer each time."""
        self.report.error = str(failure)
        now = time.monotonic()
        # Requests that fail together count once.
        self._failures += now >= self.retry_at
        most = MAX_REFUSAL_BACKOFF if failure.reason in REFUSALS else MAX_BACKOFF
        delay = min(0.25 * 2.0 ** min(self._failures, 10), most)
        delay = max(delay, failure.retry_after or 0.0) * random.uniform(0.75, 1.25)
        self.retry_at = now + delay

    def refuse(self, unit: int) -> None:
        """Remembers that it did not have a unit, which is no failure."""
        now = time.monotonic()
        self.refused[unit] = now + REFUSAL
        self.retry_at = now + REFUSAL_DELAY

    def succeed(self, count: int) -> None:
        """Counts verified bytes."""
        self.report.bytes += count
        self._failures = 0

    async def describe(self, wanted: FileId) -> peer_pb2.DescribeResponse:
        """The size and root of a file, verified."""
        request = peer_pb2.DescribeRequest(file_id=wanted)
        try:
            answer: peer_pb2.DescribeResponse = await self.stub.Describe(
                request, timeout=CALL_TIMEOUT
            )
        except grpc.aio.AioRpcError as failure:
            raise from_rpc(failure) from failure
        check_record(answer.file, wanted)
        return answer

    async def piece_hashes(self, plan: Plan, wanted: FileId, large_files: bool) -> None:
        """Fetches the piece layers of a plan."""
        count = plan.hash_count
        hashes: List[bytes] = []
        request = peer_pb2.GetPieceHashesRequest(file_id=wanted, large_files=large_files)
        # A peer that sends slower than this holds up the download: others are asked.
        call = self.stub.GetPieceHashes(request, timeout=30.0)
        async for answer in read(call):
            if answer.first_piece != len(hashes) or not 0 < len(answer.hashes) <= MAX_HASHES:
                raise Violation("sent piece hashes that were not asked for")
            if len(answer.hashes) % 32 or len(hashes) + len(answer.hashes) // 32 > count:
                call.cancel()
                raise Violation("sent more piece hashes than there are pieces")
            hashes.extend(answer.hashes[at : at + 32] for at in range(0, len(answer.hashes), 32))
        if not await asyncio.to_thread(plan.set_hashes, hashes):
            raise Violation("sent piece hashes that do not fold into the id")

    async def download(
        self, spans: List[Span], counted: Counter
    ) -> AsyncGenerator[Tuple[int, bytearray], None]:
        """The bytes of each span, in order. They are not verified."""
        request = peer_pb2.DownloadRequest(
            spans=[
                peer_pb2.Span(file_id=span.file_id, offset=span.offset, length=span.length)
                for span in spans
            ]
        )
        call = self.stub.Download(request)
        try:
            index, filled = 0, 0
            buffer = bytearray(spans[0].length)
            async for chunk in read(call):
                if index == len(spans):
                    raise Violation("sent more bytes than it was asked for")
                span, size = spans[index], len(chunk.data)
                if chunk.span != index or chunk.offset != span.offset + filled:
                    raise Violation("sent bytes of another range than it was asked for")
                if not 0 < size <= min(MAX_CHUNK, span.length - filled):
                    raise Violation("sent a chunk of a wrong length")
                buffer[filled : filled + size] = chunk.data
                filled += size
                counted.add(size)
                if filled == span.length:
                    yield index, buffer
                    index, filled = index + 1, 0
                    if index < len(spans):
                        buffer = bytearray(spans[index].length)
            if index < len(spans):
                raise Violation("ended its answer before the last byte")
        finally:
            call.cancel()

    async def watch_units(self, wanted: FileId, unit_count: int, wake: asyncio.Event) -> None:
        """Keeps `units` up to date until it is cancelled."""
        delay = 1.0
        while not self.is_banned:
            try:
                call = self.stub.WatchAvailability(
                    peer_pb2.WatchAvailabilityRequest(file_id=wanted)
                )
                async for answer in read(call, None):
                    self._update_units(answer, wanted, unit_count)
                    delay = 1.0
                    wake.set()
            except Violation as violation:
                self.ban(str(violation))
            except PotluckError as failure:
                # Perhaps too many watch it. It is asked without knowing what it has.
                log.debug("peer %s cannot be watched: %s", self.provider, failure)
            self.units = None
            wake.set()
            await asyncio.sleep(delay * random.uniform(0.75, 1.25))
            delay = min(delay * 2, MAX_BACKOFF)

    def _update_units(
        self, answer: peer_pb2.WatchAvailabilityResponse, wanted: FileId, unit_count: int
    ) -> None:
        if answer.HasField("snapshot"):
            snapshot = answer.snapshot
            if snapshot.file_id != wanted or snapshot.units != unit_count:
                raise Violation("sent the availability of another file")
            self.complete = snapshot.complete
            self.units = snapshot.have
            self.refused.clear()
        elif answer.HasField("change") and self.units is not None:
            units = bytearray(self.units.ljust(-(-unit_count // 8), b"\0"))
            for unit in answer.change.have:
                if unit >= unit_count:
                    raise Violation("announced a unit that does not exist")
                units[unit // 8] |= 1 << (7 - unit % 8)
                self.refused.pop(unit, None)
            self.units = bytes(units)

    async def report_bad_piece(self, wanted: FileId, piece: int) -> None:
        """Tells a peer that its bytes were wrong, so that it checks its disk. It may not listen."""
        request = peer_pb2.ReportBadPiecesRequest(file_id=wanted, first_piece=piece, count=1)
        try:
            await self.stub.ReportBadPieces(request, timeout=CALL_TIMEOUT)
        except grpc.aio.AioRpcError as failure:
            log.debug("peer %s took no report: %s", self.provider, failure.code())

    async def close(self) -> None:
        """Ends its connection and tasks."""
        if self.watch is not None:
            await stop(self.watch)
        await self._channel.close()


class Counter:
    """Counts received bytes, and when the last ones came."""

    def __init__(self) -> None:
        self.total = 0
        self.last = time.monotonic()

    def add(self, count: int) -> None:
        """Counts bytes."""
        self.total += count
        self.last = time.monotonic()


class PeerPool:
    """The peers of one download. They come from the caller and from the index, while it runs."""

    def __init__(
        self,
        wanted: FileId,
        index: Optional[IndexServiceAsyncStub],
        credentials: Optional[Credentials],
        ignores_local: bool,
        max_peers: int,
    ) -> None:
        self.wanted = wanted
        self.wake = asyncio.Event()
        """Set when there is something new for the download to do."""
        self.received = Counter()
        self._index = index
        self._credentials = credentials
        self._ignores_local = ignores_local
        self._max_peers = max_peers
        self._known: List[Provider] = []
        self._addresses: Set[str] = set()
        self._peers: List[Peer] = []
        self._discovery: Optional[asyncio.Task[None]] = None
        self._settled = index is None
        self._last_error: Optional[PotluckError] = None

    def add(self, provider: Provider) -> None:
        """Adds a provider, unless it is known or may not be used."""
        address = str(provider.address)
        if address in self._addresses or len(self._addresses) >= MAX_KNOWN:
            return
        if self._credentials is not None and not provider.peer_id:
            raise error("INVALID_ARGUMENT", "in a private network a provider needs its peer id")
        self._addresses.add(address)
        self._known.append(provider)
        self.wake.set()

    def add_found(self, messages: List[common_pb2.Provider]) -> None:
        """Adds providers that the index returned."""
        for message in messages:
            provider = Provider.from_message(message)
            # What an index says of addresses on this machine is only true on its own machine.
            if provider is None or (self._ignores_local and provider.address.is_local):
                continue
            if self._credentials is None or provider.peer_id:
                self.add(provider)

    def start(self) -> None:
        """Begins to look for providers at the index."""
        if self._index is not None:
            self._discovery = asyncio.ensure_future(self._discover(self._index))

    async def _discover(self, index: IndexServiceAsyncStub) -> None:
        request = index_pb2.WatchProvidersRequest(file_id=self.wanted)
        delay = 1.0
        while True:
            try:
                async for answer in read(index.WatchProviders(request), None):
                    if answer.HasField("snapshot") and answer.snapshot.file_id == self.wanted:
                        self.add_found(list(answer.snapshot.providers))
                        self._settled = True
                        delay = 1.0
                    elif answer.HasField("joined"):
                        self.add_found([answer.joined])
                    self.wake.set()
            except PotluckError as failure:
                self._last_error = failure
                self._settled = True
                self.wake.set()
            await asyncio.sleep(delay)
            delay = min(delay * 2, MAX_BACKOFF)

    def active(self) -> List[Peer]:
        """The peers in use, the complete ones first. Opens channels for those that have a place."""
        usable = [peer for peer in self._peers if not peer.is_banned]
        now = time.monotonic()
        working = sum(peer.is_ready(now) for peer in usable)
        self._known.sort(key=lambda provider: provider.complete)
        while self._known and working < self._max_peers:
            peer = Peer(self._known.pop(), self._credentials)
            self._peers.append(peer)
            usable.append(peer)
            working += 1
        return usable

    async def any_peer(self, ask: Callable[[Peer], Awaitable[T]], patience: float) -> T:
        """The first good answer of any peer. Asks another peer while one takes its time."""
        deadline = time.monotonic() + patience
        asked: Dict[asyncio.Future[T], Peer] = {}
        try:
            while True:
                self.wake.clear()
                now = time.monotonic()
                for peer in self.active():
                    if peer.is_ready(now) and peer not in asked.values():
                        asked[asyncio.ensure_future(ask(peer))] = peer
                        break
                if not asked:
                    self.check_hope()
                    if now > deadline:
                        raise self.give_up()
                    await self.wait(deadline)
                    continue
                await asyncio.wait(
                    asked, timeout=ASK_ANOTHER_AFTER, return_when=asyncio.FIRST_COMPLETED
                )
                for task in [task for task in asked if task.done()]:
                    peer = asked.pop(task)
                    try:
                        return task.result()
                    except Violation as violation:
                        peer.ban(str(violation))
                    except PotluckError as failure:
                        peer.fail(failure)
                        self._last_error = failure
        finally:
            for task in asked:
                task.cancel()
            await asyncio.gather(*asked, return_exceptions=True)

    async def wait(self, deadline: float) -> None:
        """Waits until something happened, a peer may be tried again, or the deadline."""
        now = time.monotonic()
        times = [
            peer.retry_at for peer in self._peers if not peer.is_banned and peer.retry_at > now
        ]
        until = min([deadline, *times])
        try:
            await within(self.wake.wait(), max(until - now, 0.01))
        except asyncio.TimeoutError:
            pass

    def check_hope(self) -> None:
        """Raises if there is nobody to wait for."""
        if self._settled and not self._known and all(peer.is_banned for peer in self._peers):
            raise self.give_up()

    def note(self, failure: PotluckError) -> None:
        """Keeps the last failure, for people."""
        self._last_error = failure

    def give_up(self) -> PotluckError:
        """Why the download cannot go on."""
        banned = [peer for peer in self._peers if peer.is_banned]
        if banned and len(banned) == len(self._peers):
            reasons = "; ".join(f"{peer.provider} {peer.report.banned}" for peer in banned)
            return error(
                "VERIFICATION_FAILED", f"every peer of {self.wanted} misbehaved: {reasons}"
            )
        if not self._peers:
            if self._last_error is not None:
                return self._last_error
            return error("NO_PROVIDERS", f"no peer offers {self.wanted} now")
        last = self._last_error
        if last is not None:
            return error(last.reason, f"no peer sends {self.wanted} now: {last.message}")
        return error("TIMED_OUT", f"no peer sends {self.wanted} now")

    def reports(self) -> List[PeerReport]:
        """What each peer did."""
        return [peer.report for peer in self._peers]

    async def close(self) -> None:
        """Closes all connections."""
        if self._discovery is not None:
            await stop(self._discovery)
        await asyncio.gather(*(peer.close() for peer in self._peers))


def check_record(record: common_pb2.FileRecord, wanted: bytes) -> None:
    """Raises Violation unless the id commits to the size and root of a record."""
    if not 0 <= record.size <= 16 << 40 or len(record.root) != 32:
        raise Violation("claims a size or root that no file has")
    if file_id(record.size, record.root) != wanted or record.file_id not in (b"", wanted):
        raise Violation("claims a size or root that the id does not commit to")


async def read(
    call: grpc.aio.UnaryStreamCall[Any, T], idle_timeout: Optional[float] = IDLE_TIMEOUT
) -> AsyncGenerator[T, None]:
    """The answers of a stream. Raises PotluckError if it fails, or is idle for too long."""
    try:
        while True:
            answer = await within(call.read(), idle_timeout)
            if answer is grpc.aio.EOF:
                return
            yield cast(T, answer)
    except asyncio.TimeoutError:
        raise error("TIMED_OUT", f"nothing came for {idle_timeout:g} s") from None
    except grpc.aio.AioRpcError as failure:
        raise from_rpc(failure) from failure
    finally:
        call.cancel()


async def stop(task: asyncio.Task[None]) -> None:
    """Cancels a task and waits for its end."""
    task.cancel()
    try:
        await task
    except asyncio.CancelledError:
        pass
