"""Groups the samples of a profile: each belongs to the first group that matches. Pure."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Iterator

LEAF, ANY = "leaf", "any"
"""Whether a group's pattern is matched against the innermost frame, or against the whole stack."""

GROUPS = (
    ("hashing leaves", LEAF, r"sha256|sha2::"),
    ("sending: through TCP and the loopback to the other socket", ANY, r"\b(sock_write_iter|__sys_sendto|____sys_sendmsg)\b"),
    ("receiving", ANY, r"\b(sock_read_iter|__sys_recvfrom|____sys_recvmsg)\b"),
    ("writing to the page cache", ANY, r"__x64_sys_(pwrite64|pwritev2?|ftruncate|fallocate)\b"),
    ("reading from the page cache", ANY, r"__x64_sys_(pread64|preadv2?)\b"),
    ("page faults", ANY, r"asm_exc_page_fault"),
    ("sleeping and waking", ANY, r"__x64_sys_(futex|epoll_\w+|write|clock_nanosleep|sched_yield)\b"),
    ("other calls, interrupts", LEAF, r"\[kernel"),
    ("copies and zeros in the programs", LEAF, r"memmove|memcpy|memset"),
    ("allocation", LEAF, r"malloc|calloc|realloc|free\b|unlink_chunk"),
    ("HTTP/2 and gRPC", LEAF, r"\b(h2|hyper|hyper_util|http|tonic|tower)::"),
    ("tokio", LEAF, r"\b(tokio|tokio_util|mio|futures_util)::"),
    ("Potluck", LEAF, r"\bpotluck"),
)
REST = "everything else"


def stacks(lines: Iterable[str]) -> Iterator[tuple[str, list[str]]]:
    """Parses the output of `perf script -F comm,ip,sym,dso`: program and frames of each sample,
    innermost first."""
    program, frames = "", []
    for line in lines:
        if not line.strip():
            if program:
                yield program, frames
            program, frames = "", []
        elif line[0].isspace():
            frames.append(line.split(maxsplit=1)[-1].strip())
        else:
            program = line.strip()
    if program:
        yield program, frames


def group(frames: list[str]) -> str:
    """The group of a sample."""
    leaf, everything = frames[0] if frames else "", "\n".join(frames)
    for name, where, pattern in GROUPS:
        if re.search(pattern, leaf if where == LEAF else everything):
            return name
    return REST


def shares(samples: Iterable[tuple[str, list[str]]], programs: str) -> list[tuple[str, float]]:
    """The fraction of samples in each group, in the order of the groups, for programs whose names
    match."""
    counts = Counter(group(frames) for program, frames in samples if re.fullmatch(programs, program))
    total = sum(counts.values()) or 1
    return [(name, counts[name] / total) for name in [*(name for name, *_ in GROUPS), REST]]
