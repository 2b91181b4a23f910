"""The scenarios: which nodes take part, their links, and the failures. Pure.

The bound follows from the fluid model (Kumar and Ross 2006): with sources sending at u_s, peers
receiving at d_i and sending at u_i, distributing a file of F to N peers takes at least max(F/sum
u_s, F/min d_i, N F/(sum u_s + sum u_i)).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum

from common.units import MBIT, mib, seconds_for


@dataclass(frozen=True)
class Link:
    """A node's link to the switch, in bits per second in each direction."""

    up: float
    down: float

    @staticmethod
    def even(mbit: float) -> "Link":
        return Link(mbit * MBIT, mbit * MBIT)


class Trigger(Enum):
    """The condition that triggers an event."""

    AT_FRACTION = "when this fraction of the file has arrived at the first peer"
    ALL_PIECES_OUT = "when the sinks together have every piece"


class Act(Enum):
    """The kind of an event."""

    STALL = "stalls: SIGSTOP, its connections stay open"
    LEAVE = "leaves properly: SIGTERM"
    DIE = "dies: SIGKILL"


@dataclass(frozen=True)
class Event:
    """A failure of source number `source` in the middle of a run."""

    trigger: Trigger
    act: Act
    source: int = 0
    fraction: float = 0.0


@dataclass(frozen=True)
class Source:
    """A node that has the file from the start."""

    link: Link
    corrupt: float = 0.0
    """Fraction of its pieces that it corrupts. A system without such a peer skips the scenario."""
    connection: float = 0.0
    """Most that an origin sends over one connection, in Mbit/s; 0: no limit."""


@dataclass(frozen=True)
class Sink:
    """A node that downloads the file."""

    link: Link
    arrival: float = 0.0
    """Delay of its start after the first sink, in seconds."""
    counted: bool = True
    """Whether the run waits for it and its time is part of the results."""


@dataclass(frozen=True)
class Scenario:
    """A scenario: one row of the table."""

    name: str
    size: int
    sources: tuple[Source, ...]
    sinks: tuple[Sink, ...]
    events: tuple[Event, ...] = ()
    compare_with: str | None = None
    """Name of the scenario whose time is the baseline for this one."""
    note: str = ""
    origin: bool = False
    """Whether the source is a web server, and no peer has the file."""
    files: tuple[int, ...] = ()
    """File sizes if a folder is downloaded; empty for a single file. Events need a single file."""

    @property
    def counted(self) -> list[int]:
        return [i for i, sink in enumerate(self.sinks) if sink.counted]

    def bound(self) -> float:
        """Minimum time in seconds that the slowest counted peer needs for the payload, from its
        start."""
        counted = [sink for sink in self.sinks if sink.counted]
        from_sources = sum(source.link.up for source in self.sources)
        from_all = from_sources + sum(sink.link.up for sink in self.sinks)
        slowest = seconds_for(self.size, min(sink.link.down for sink in counted))
        if any(sink.arrival for sink in self.sinks):
            return max(slowest, seconds_for(self.size, from_sources))
        return max(
            slowest,
            seconds_for(self.size, from_sources),
            seconds_for(self.size * len(counted), from_all),
        )

    def own_bound(self, sink: int) -> float:
        """Minimum time in seconds that this peer needs."""
        from_sources = sum(source.link.up for source in self.sources)
        return max(seconds_for(self.size, self.sinks[sink].link.down), seconds_for(self.size, from_sources))


def crowd(peers: int, size_mib: int, mbit: float = 100) -> Scenario:
    return Scenario(
        name=f"crowd-{peers}x{size_mib}" + ("" if mbit == 100 else f"@{mbit:g}"),
        size=mib(size_mib),
        sources=(Source(Link.even(mbit)),),
        sinks=(Sink(Link.even(mbit)),) * peers,
        note=f"{peers} peers start together, {size_mib} MiB, {mbit:g} Mbit/s links",
    )


def origin(peers: int, size_mib: int, mbit: float = 100, connection: float = 0) -> Scenario:
    capped = f", which sends at most {connection:g} Mbit/s over a connection" if connection else ""
    return Scenario(
        name=f"origin-{peers}x{size_mib}" + ("" if mbit == 100 else f"@{mbit:g}") + ("-capped" if connection else ""),
        size=mib(size_mib),
        sources=(Source(Link.even(mbit), connection=connection),),
        sinks=(Sink(Link.even(mbit)),) * peers,
        note=f"{peers} nodes start together, {size_mib} MiB that only an origin has{capped}, {mbit:g} Mbit/s links",
        origin=True,
    )


def folder(name: str, content: str, files: tuple[int, ...], peers: int, mbit: float) -> Scenario:
    return Scenario(
        name=f"{name}-{peers}x{round(sum(files) / mib(1))}" + ("" if mbit == 100 else f"@{mbit:g}"),
        size=sum(files),
        sources=(Source(Link.even(mbit)),),
        sinks=(Sink(Link.even(mbit)),) * peers,
        note=f"{peers} peers start together, {content}, {mbit:g} Mbit/s links",
        files=files,
    )


def folder_crowd(peers: int, mbit: float = 100) -> Scenario:
    """64 MiB in files of all sizes: half in large ones, a quarter in files of 4 MiB, and the rest in
    small ones."""
    files = (mib(16),) * 2 + (mib(4),) * 4 + (mib(3) // 16,) * 64 + (mib(1) // 64,) * 256
    return folder("folder", f"a folder of {len(files)} files of 16 KiB to 16 MiB", files, peers, mbit)


def model_crowd(peers: int, mbit: float = 100) -> Scenario:
    """64 MiB like a model: four shards, a tokenizer and some small files."""
    files = (mib(15),) * 4 + (mib(2),) + (mib(1),) + tuple(mib(1) * n // 210 for n in range(1, 21))
    return folder("model", "the folder of a model: four shards and 22 smaller files", files, peers, mbit)


def small_crowd(peers: int, mbit: float = 100) -> Scenario:
    """64 MiB in small files only, most of them a few KiB."""
    files = tuple(max(1, mib(1) * n**3 // (8 * 1988**3)) for n in range(1, 2001))
    return folder("small", f"a folder of {len(files)} files up to 128 KiB", files, peers, mbit)


def sources(count: int, size_mib: int, sink_mbit: float, **extra) -> Scenario:
    return Scenario(
        size=mib(size_mib),
        sources=extra.pop("of", (Source(Link.even(100)),) * count),
        sinks=(Sink(Link.even(sink_mbit)),),
        **extra,
    )


_FAST = Source(Link.even(100))
_MIXED = tuple(
    Sink(Link(up * MBIT, down * MBIT))
    for up, down in ((200, 200), (200, 200), (100, 100), (100, 100), (50, 100), (50, 100), (20, 50), (20, 50))
)

SCENARIOS: dict[str, Scenario] = {
    scenario.name: scenario
    for scenario in (
        crowd(8, 64),
        crowd(16, 64),
        crowd(8, 256),
        crowd(16, 256),
        # The same at a quarter of the rate, so that the processors are not the limit.
        crowd(8, 64, 25),
        crowd(16, 64, 25),
        origin(8, 64),
        origin(8, 64, connection=20),
        origin(8, 256),
        origin(8, 256, connection=20),
        origin(8, 64, 25),
        origin(8, 64, 25, connection=5),
        folder_crowd(8),
        folder_crowd(16),
        folder_crowd(8, 25),
        folder_crowd(16, 25),
        model_crowd(8),
        model_crowd(16),
        small_crowd(8),
        small_crowd(16),
        Scenario(
            name="mixed-links",
            size=mib(64),
            sources=(_FAST,),
            sinks=_MIXED,
            note="8 peers with links of 20/50 to 200/200 Mbit/s up/down",
        ),
        Scenario(
            name="seed-leaves",
            size=mib(64),
            sources=(_FAST,),
            sinks=(Sink(Link.even(100)),) * 8,
            events=(Event(Trigger.ALL_PIECES_OUT, Act.LEAVE),),
            compare_with="crowd-8x64",
            note="8 peers; the seed leaves when the peers together have every piece",
        ),
        Scenario(
            name="arrivals",
            size=mib(64),
            sources=(_FAST,),
            sinks=tuple(Sink(Link.even(100), arrival=float(i)) for i in range(8)),
            note="8 peers, one more each second; times count from each peer's start",
        ),
        Scenario(
            name="one-slow-peer",
            size=mib(64),
            sources=(_FAST,),
            sinks=(Sink(Link.even(100)),) * 7 + (Sink(Link.even(1), counted=False),),
            compare_with="crowd-8x64",
            note="8 peers, one of them 100 times slower; the times are those of the other 7",
        ),
        sources(8, 64, 100, name="8-to-1", note="8 sources and 1 sink, whose link is the limit"),
        sources(3, 256, 400, name="3-to-1", note="3 sources at 100 Mbit/s, a sink at 400 Mbit/s"),
        sources(4, 256, 400, name="4-to-1", note="4 sources at 100 Mbit/s, a sink at 400 Mbit/s"),
        sources(
            4,
            256,
            400,
            name="4-to-1-one-slow",
            of=(_FAST,) * 3 + (Source(Link.even(1)),),
            compare_with="3-to-1",
            note="4 sources, one of them 100 times slower; compared with the 3 fast ones alone",
        ),
        sources(
            4,
            256,
            400,
            name="4-to-1-stall",
            events=(Event(Trigger.AT_FRACTION, Act.STALL, source=0, fraction=0.5),),
            compare_with="4-to-1",
            note="4 sources, one of which stalls half-way (the bound is that of 4 sources, so 1.17 is ideal)",
        ),
        sources(4, 64, 100, name="4-honest", note="the honest half of `half-corrupt` alone"),
        sources(
            8,
            64,
            100,
            name="half-corrupt",
            of=(_FAST,) * 4 + (Source(Link.even(100), corrupt=0.05),) * 4,
            compare_with="4-honest",
            note="8 sources, of which 4 corrupt 5 % of the pieces they send",
        ),
    )
}

SETS: dict[str, tuple[str, ...]] = {
    "quick": ("crowd-8x64",),
    "crowds": ("crowd-8x64", "crowd-16x64", "crowd-8x256", "crowd-16x256"),
    "origins": ("origin-8x256", "origin-8x256-capped"),
    "calm": ("crowd-8x64@25", "crowd-16x64@25"),
    "folders": ("folder-8x64", "model-8x64", "small-8x64", "folder-16x64", "model-16x64", "small-16x64"),
    "trouble": (
        "mixed-links", "seed-leaves", "arrivals", "one-slow-peer", "8-to-1", "3-to-1", "4-to-1",
        "4-to-1-one-slow", "4-to-1-stall", "4-honest", "half-corrupt",
    ),
    "all": tuple(SCENARIOS),
}
