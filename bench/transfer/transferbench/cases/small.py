"""The cost of the command line itself: the time of a whole command in milliseconds."""

from __future__ import annotations

import argparse
import subprocess
import time
from pathlib import Path
from statistics import median

from common.processes import TrialError
from common.units import MIB

from ..bench import Bench, sha256
from ..case import Case, Entry, Outcome
from ..entries import for_each_build
from ..systems.potluck import Potluck
from ..transfer import Shape, Transfer

REPETITIONS = 20


class SmallGet(Entry):
    """Repeats `potluck get` of a small file between warm daemons, and `potluck --version` to
    measure the start of the program."""

    def __init__(self, settings: dict[str, str], name: str, version: str):
        self._settings, self.name, self.version = settings, name, version

    def measure(self, bench: Bench, variant: int) -> Outcome:
        payload = bench.payload(variant)
        system = Potluck(self._settings)
        with bench.folder() as folder:
            transfer = Transfer(bench, Shape(1, variant), payload, folder, folder / "target")
            transfer.target.mkdir()
            try:
                system.launch(transfer)
                downloader = folder / "p0"
                gets = [self._get(system, transfer, downloader, folder / "target" / f"{number}.bin") for number in range(REPETITIONS)]
                starts = [_milliseconds([str(system.bin / "potluck"), "--version"]) for _ in range(REPETITIONS)]
            finally:
                transfer.stop()
        return Outcome({"get ms": median(gets), "slowest get ms": max(gets), "--version ms": median(starts)}, more={"gets": gets, "starts": starts})

    @staticmethod
    def _get(system: Potluck, transfer: Transfer, home: Path, target: Path) -> float:
        took = _milliseconds(system.command(home, "get", system.id, "-o", str(target)))
        if sha256(target) != transfer.payload.sha256:
            raise TrialError("the file differs from the original")
        # Unshared, so that the next command downloads it again.
        subprocess.run(system.command(home, "unshare", system.id), check=True, capture_output=True)
        target.unlink()
        return took


def _milliseconds(command: list[str]) -> float:
    start = time.perf_counter()
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    took = (time.perf_counter() - start) * 1000
    if result.returncode != 0:
        raise TrialError(f"{' '.join(command)}: {result.stderr.strip()}")
    return took


def _variants(options: argparse.Namespace) -> dict[str, object]:
    size = options.size or MIB
    return {f"{size / MIB:g} MiB": size}


CASES = (
    Case("small-get", f"`potluck get` of a small file from one warm daemon to another, {REPETITIONS} times, and the start of `potluck` alone",
         _variants, for_each_build(SmallGet), compare=("get ms", "--version ms")),
)
