"""Cases in which one large file moves, over the loopback and in memory."""

from __future__ import annotations

import argparse

from common.units import MIB

from ..case import Case
from ..entries import transfers
from ..transfer import Shape

GIB = 1 << 30

ALL = ("potluck", "libtorrent", "rqbit", "aria2", "curl+openssl", "bare", "curl", "iperf3")
"""Those that verify, then the marks."""


def to_one(sources: int) -> Case:
    return Case(
        name=f"{sources}-to-1",
        note=f"one file from {sources} source{'s' * (sources > 1)}, in memory",
        variants=lambda options: {_size(options.size or 2 * GIB): Shape(sources, options.size or 2 * GIB)},
        entries=transfers(ALL),
    )


def _sizes(options: argparse.Namespace) -> dict[str, object]:
    sizes = [options.size] if options.size else [MIB, 16 * MIB, 256 * MIB, GIB, 4 * GIB, 16 * GIB]
    return {_size(size): Shape(4, size) for size in sizes}


def _size(size: int) -> str:
    return f"{size / GIB:g} GiB" if size >= GIB else f"{size / MIB:g} MiB"


CASES = (
    to_one(4),
    to_one(1),
    to_one(8),
    Case("sizes", "4 sources, one file of each size, in memory", _sizes, transfers(ALL[:5]), plot="lines"),
)
