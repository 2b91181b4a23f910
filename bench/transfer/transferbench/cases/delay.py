"""A fast link with a long delay: how much of its rate one transfer uses, and how soon."""

from __future__ import annotations

from ..case import Case
from ..entries import transfers
from ..transfer import Link, Shape
from .files import GIB, size_name

DELAYED = Link(rate=1e9, delay=0.025)


CASES = (
    Case(
        "delay",
        "1 source behind a link of 1 Gbit/s with 50 ms round trip; the share of link is measured after the first 2 seconds",
        lambda options: {size_name(options.size or GIB): Shape(1, options.size or GIB, link=DELAYED)},
        transfers(("potluck", "libtorrent", "rqbit", "aria2", "curl+openssl", "curl")),
        compare=("MiB/s", "share of link"),
        plot="series",
    ),
)
