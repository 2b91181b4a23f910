"""Cases that move one large file."""

from __future__ import annotations

import argparse

from common.unavailable import Unavailable
from common.units import MIB

from ..case import Case
from ..entries import transfers
from ..transfer import Shape

GIB = 1 << 30

ALL = ("potluck", "libtorrent", "rqbit", "aria2", "curl+openssl", "bare", "curl", "iperf3")
"""Systems that verify, then references that do not."""


def to_one(sources: int) -> Case:
    return Case(
        name=f"{sources}-to-1",
        note=f"one file from {sources} source{'s' * (sources > 1)}, in memory",
        variants=lambda options: {size_name(options.size or 2 * GIB): Shape(sources, options.size or 2 * GIB)},
        entries=transfers(ALL),
    )


def _sizes(options: argparse.Namespace) -> dict[str, object]:
    sizes = [options.size] if options.size else [MIB, 16 * MIB, 256 * MIB, GIB, 4 * GIB, 8 * GIB, 16 * GIB]
    return {size_name(size): Shape(4, size) for size in sizes}


def _disk(options: argparse.Namespace) -> dict[str, object]:
    if not options.disk_dir:
        raise Unavailable("give a folder on a disk with --disk-dir")
    size = options.size or 2 * GIB
    return {f"{sources}-to-1, {size_name(size)}": Shape(sources, size, on_disk=True) for sources in (1, 4)}


def size_name(size: int) -> str:
    return f"{size / GIB:g} GiB" if size >= GIB else f"{size / MIB:g} MiB"


CASES = (
    to_one(4),
    to_one(1),
    to_one(8),
    Case(
        "fan-out",
        "64 downloaders, each a process, from 4 sources, in memory",
        lambda options: {size_name(options.size or 64 * MIB): Shape(4, options.size or 64 * MIB, sinks=64)},
        transfers(("potluck", "libtorrent")),
    ),
    Case(
        "disk",
        "from disk to disk, with an empty page cache at the start and a sync at the end",
        _disk,
        transfers(("potluck", "libtorrent", "rqbit", "aria2", "curl+openssl", "curl")),
    ),
    Case(
        "small-files",
        "a folder of 100,000 files of 4 KiB from 1 source, in memory",
        lambda options: {"100,000 x 4 KiB": Shape(1, 100_000 * 4096, files=100_000)},
        transfers(("potluck", "rsync", "tar+socat")),
    ),
    Case("sizes", "4 sources, one file of each size, in memory", _sizes, transfers(ALL[:5]), plot="lines"),
)
