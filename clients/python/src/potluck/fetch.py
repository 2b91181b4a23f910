"""Downloads the units of a plan from several peers at once.

Each unit is missing, in flight, or stored. One loop decides what to request from whom, so nothing
here needs a lock. A unit is verified before it is stored; a peer that sent a wrong one is banned.
When nothing is missing, an idle peer is also asked for units that others have not sent yet, so one
slow peer does not hold up the end.
"""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass
from typing import Callable, Dict, List, Optional, Protocol, Set

from .errors import PotluckError
from .identity import FileId, Layout
from .peers import Peer, PeerPool, Violation
from .plan import Plan, Span

REQUEST_BYTES = 4 << 20
"""Maximum bytes of a request, unless one unit is larger. The cost of a call is small beside it."""

ROUNDS = 4
"""The missing bytes are enough for this many requests to each peer, so that all peers get some."""

REQUEST_SPANS = 1024
"""Spans of one request, unless one unit has more."""

REQUESTS_PER_PEER = 2
"""Requests in flight to one peer: while one answer is verified, the next arrives."""

HEDGE_AFTER = 1.0
"""Seconds after which the units of a request may also be asked of an idle peer."""


class Store(Protocol):
    """Where verified bytes go. Its methods run on other threads."""

    def load(self, plan: Plan) -> Set[int]:
        """The units that an earlier run has stored, verified again."""

    def write(self, span: Span, data: bytearray) -> None:
        """Stores the bytes of a span."""


@dataclass(frozen=True)
class Progress:
    """How far a download is, in bytes of distinct content."""

    bytes_done: int
    bytes_total: int
    bytes_resumed: int
    """The part of `bytes_done` that an earlier run had stored."""


class _Request:
    def __init__(self, peer: Peer, units: List[int]) -> None:
        self.peer = peer
        self.units = units
        self.started = time.monotonic()
        self.task: Optional[asyncio.Task[None]] = None


class Fetch:
    """One download of the units of a plan."""

    def __init__(
        self,
        plan: Plan,
        wanted: FileId,
        pool: PeerPool,
        store: Store,
        patience: float,
        watches_units: bool,
        progress: Optional[Callable[[Progress], None]],
    ) -> None:
        self._plan = plan
        self._wanted = wanted
        self._pool = pool
        self._store = store
        self._patience = patience
        self._watches_units = watches_units
        self._progress = progress
        self._missing: Dict[int, None] = {}  # ordered
        self._holders: Dict[int, List[_Request]] = {}  # of the units in flight
        self._requests: Set[_Request] = set()
        self._reports: Set[asyncio.Task[None]] = set()
        self._failure: Optional[BaseException] = None
        self._left = 0
        self._done = 0
        self._resumed = 0
        self._total = plan.total

    async def run(self) -> int:
        """Returns when every unit is stored: the bytes that an earlier run had stored.

        Raises PotluckError if the missing units cannot be had, OSError if they cannot be stored.
        """
        stored = await asyncio.to_thread(self._store.load, self._plan)
        self._missing = {unit: None for unit in range(len(self._plan.units)) if unit not in stored}
        self._left = len(self._missing)
        self._done = self._resumed = sum(map(self._plan.unit_len, stored))
        self._say_progress()
        self._pool.received.last = time.monotonic()
        try:
            while self._left:
                self._pool.wake.clear()
                self._send_requests()
                if self._failure is not None:
                    raise self._failure
                if not self._requests:
                    self._pool.check_hope()
                deadline = self._pool.received.last + self._patience
                if time.monotonic() > deadline:
                    raise self._pool.give_up()
                if self._left and not self._pool.wake.is_set():
                    await self._pool.wait(min(deadline, self._next_hedge()))
        finally:
            tasks = [request.task for request in self._requests if request.task is not None]
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            if self._reports:
                await asyncio.wait(self._reports, timeout=1.0)
        return self._resumed

    def _say_progress(self) -> None:
        if self._progress is not None:
            self._progress(Progress(self._done, self._total, self._resumed))

    def _next_hedge(self) -> float:
        if self._missing or not self._requests:
            return float("inf")
        return min(
            max(request.started + HEDGE_AFTER, time.monotonic() + 0.1) for request in self._requests
        )

    def _send_requests(self) -> None:
        now = time.monotonic()
        peers = self._pool.active()
        ready = sum(peer.is_ready(now) for peer in peers)
        limit = min(REQUEST_BYTES, (self._total - self._done) // max(ready * ROUNDS, 1))
        for peer in peers:
            if self._watches_units and not peer.complete and peer.watch is None:
                peer.units = b""
                watch = peer.watch_units(self._wanted, len(self._plan.units), self._pool.wake)
                peer.watch = asyncio.ensure_future(watch)
            while peer.is_ready(now) and peer.requests < REQUESTS_PER_PEER:
                units = self._choose_units(peer, now, limit)
                if not units:
                    break
                request = _Request(peer, units)
                for unit in units:
                    self._missing.pop(unit, None)
                    self._holders.setdefault(unit, []).append(request)
                peer.requests += 1
                self._requests.add(request)
                request.task = asyncio.ensure_future(self._execute(request))

    def _choose_units(self, peer: Peer, now: float, limit: int) -> List[int]:
        # A peer of which it is not known what it has is asked for one unit at a time.
        single = not peer.complete and peer.units is None
        units: List[int] = []
        size = spans = 0
        for unit in self._missing if self._missing else self._hedges(peer, now):
            if not peer.has(unit, now):
                continue
            size += self._plan.unit_len(unit)
            spans += len(self._plan.units[unit])
            if units and (size > limit or spans > REQUEST_SPANS):
                break
            units.append(unit)
            if single:
                break
        return units

    def _hedges(self, peer: Peer, now: float) -> List[int]:
        """Units that only one other peer was asked for, some time ago."""
        if peer.requests:
            return []
        return [
            unit
            for unit, holders in self._holders.items()
            if len(holders) == 1
            and holders[0].peer is not peer
            and now - holders[0].started >= HEDGE_AFTER
        ]

    async def _execute(self, request: _Request) -> None:
        peer = request.peer
        parts = [(unit, span) for unit in request.units for span in self._plan.units[unit]]
        chunks: List[bytearray] = []
        stream = peer.download([span for _, span in parts], self._pool.received)
        try:
            async for index, data in stream:
                unit = parts[index][0]
                chunks.append(data)
                if len(chunks) < len(self._plan.units[unit]):
                    continue
                if unit in self._holders:
                    await self._store_unit(peer, unit, chunks)
                chunks = []
                is_last = index == len(parts) - 1
                if not is_last and not any(unit in self._holders for unit in request.units):
                    break  # others sent the rest
        except Violation as violation:
            peer.ban(str(violation))
            for other in self._requests:
                if other.peer is peer and other is not request and other.task is not None:
                    other.task.cancel()
        except PotluckError as failure:
            self._pool.note(failure)
            if failure.reason == "PIECE_NOT_AVAILABLE" and len(request.units) == 1:
                peer.refuse(request.units[0])
            else:
                peer.fail(failure)
        except asyncio.CancelledError:
            raise
        except BaseException as failure:
            self._failure = failure
        finally:
            await stream.aclose()
            self._end(request)

    def _end(self, request: _Request) -> None:
        request.peer.requests -= 1
        self._requests.discard(request)
        for unit in request.units:
            holders = self._holders.get(unit)
            if holders is not None and request in holders:
                holders.remove(request)
                if not holders:
                    del self._holders[unit]
                    self._missing[unit] = None
        self._pool.wake.set()

    async def _store_unit(self, peer: Peer, unit: int, chunks: List[bytearray]) -> None:
        spans = self._plan.units[unit]
        bad = await asyncio.to_thread(self._verify_and_write, spans, chunks)
        if bad is not None:
            piece = bad.offset // Layout(bad.file_size).piece_size
            self._report(peer, bad, piece)
            raise Violation(f"sent wrong bytes: piece {piece} of {bad.file_id} failed verification")
        if self._holders.pop(unit, None) is None:
            return  # another peer was first
        length = self._plan.unit_len(unit)
        self._left -= 1
        self._done += length
        peer.succeed(length)
        self._say_progress()
        if not self._left:
            self._pool.wake.set()

    def _verify_and_write(self, spans: List[Span], chunks: List[bytearray]) -> Optional[Span]:
        """Stores the bytes of a unit, or returns the span whose bytes are wrong."""
        for span, data in zip(spans, chunks):
            bad = self._plan.first_bad(span, memoryview(data))
            if bad is not None:
                return bad
        for span, data in zip(spans, chunks):
            self._store.write(span, data)
        return None

    def _report(self, peer: Peer, bad: Span, piece: int) -> None:
        task = asyncio.ensure_future(peer.report_bad_piece(bad.file_id, piece))
        self._reports.add(task)
        task.add_done_callback(self._reports.discard)
