#!/usr/bin/env python3
"""Profiles a transfer: samples all processors while Potluck, or the bare stream, moves a file.
Needs root and `perf`. See README.md."""

from __future__ import annotations

import argparse
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from transferbench import samples  # First: it adds the folder of `common` to the path.
from common.unavailable import Unavailable
from transferbench.bench import Bench
from transferbench.options import pairs, size
from transferbench.systems.bare import Bare
from transferbench.systems.base import System
from transferbench.systems.potluck import Potluck
from transferbench.transfer import Shape, Transfer

PROGRAMS = r"potluck.*|tokio-rt-worker"
"""Names of the threads that are counted."""

BUILD = Path(__file__).resolve().parents[2] / "target" / "profiling"
"""Made by `cargo build --profile profiling --workspace`."""

HERTZ = 1999
"""Samples per second on each processor."""

WARM_UP = 0.5
"""Seconds until `perf` takes samples."""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sources", type=int, default=4, help="number of sources [default: %(default)s]")
    parser.add_argument("--sinks", type=int, default=1, help="number of downloaders [default: %(default)s]")
    parser.add_argument("--size", type=size, default=2 << 30, help="size of the file [default: 2GiB]")
    parser.add_argument("--rounds", type=int, default=3, help="rounds to add up, after one that is not counted [default: %(default)s]")
    parser.add_argument("--potluck", type=pairs, default={"bin": str(BUILD)}, metavar="bin=DIR",
                        help="a build of Potluck with line tables [default: target/profiling]")
    parser.add_argument("--bare", type=Path, metavar="BIN", help="profile the bare stream of this program instead")
    parser.add_argument("--scratch", type=Path, default=Path("/dev/shm/potluck-transfer"), help="folder in memory for all files [default: %(default)s]")
    parser.set_defaults(disk_dir=None, keep=False)
    options = parser.parse_args()
    if min(options.rounds, options.sources, options.sinks) < 1:
        parser.error("--rounds, --sources and --sinks must be at least 1")
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    shape = Shape(options.sources, options.size, options.sinks)
    bench = Bench(options)
    try:
        found, seconds = [], []
        for number in range(options.rounds + 1):
            system = Bare({"bin": str(options.bare)}) if options.bare else Potluck(options.potluck)
            stacks, used = profile_once(bench, system, shape)
            if number:
                found += stacks
                seconds.append(used / (shape.size * shape.sinks / 2**30))
    except Unavailable as why:
        parser.error(str(why))
    finally:
        bench.close()
    show(samples.shares(found, PROGRAMS), sum(seconds) / len(seconds))
    return 0


def profile_once(bench: Bench, system: System, shape: Shape) -> tuple[list[tuple[str, list[str]]], float]:
    """Does one transfer; returns its samples and its processor time in seconds."""
    payload = bench.payload(shape.size)
    with bench.folder() as folder:
        transfer = Transfer(bench, shape, payload, folder, folder / "target")
        transfer.target.mkdir()
        try:
            system.launch(transfer)
            with sampled(folder / "samples"):
                _, usages = transfer.run(lambda: system.begin(transfer))
        finally:
            transfer.stop()
        script = ["perf", "script", "--no-inline", "-i", str(folder / "samples"), "-F", "comm,ip,sym,dso"]
        output = subprocess.run(script, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, check=True)
        return list(samples.stacks(output.stdout.splitlines())), sum(usage.cpu for usage in usages)


@contextmanager
def sampled(path: Path) -> Iterator[None]:
    """Samples all processors while the context is open."""
    record = ["perf", "record", "-a", "-g", "-F", str(HERTZ), "-o", str(path)]
    sampler = subprocess.Popen(record, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        time.sleep(WARM_UP)
        yield
    finally:
        sampler.send_signal(signal.SIGINT)
        sampler.wait()


def show(shares: list[tuple[str, float]], seconds: float) -> None:
    """Prints the table; `seconds` is the processor time per GiB."""
    print("| | share | CPU s/GiB |\n|---|---|---|")
    for name, share in shares:
        print(f"| {name} | {share:.1%} | {share * seconds:.2f} |")
    print(f"| **all** | | **{seconds:.2f}** |")


if __name__ == "__main__":
    sys.exit(main())
