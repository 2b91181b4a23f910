"""Many transfers of one peer at the same time: the cost per transfer."""

from __future__ import annotations

import argparse

from common.processes import TrialError
from common.units import MIB

from ..bench import Bench, sha256
from ..case import Case, Entry, Outcome
from ..entries import for_each_build
from ..systems.potluck import Potluck
from ..transfer import Shape, Transfer, values
from .files import GIB

NUMBERS = (1, 4, 16, 64, 256)


class Together(Entry):
    """One peer downloads a number of files, of a given total size, at the same time from another
    peer."""

    def __init__(self, settings: dict[str, str], name: str, version: str):
        self._settings, self.name, self.version = settings, name, version

    def measure(self, bench: Bench, variant: Shape) -> Outcome:
        shape = variant
        system = Potluck(self._settings)
        content = bench.tree(shape.files, shape.size // shape.files)
        files = sorted(path for path in content.path.rglob("*") if path.is_file())
        with bench.folder() as folder:
            # One command per file; each counts as a sink.
            transfer = Transfer(bench, Shape(1, shape.size // shape.files, sinks=shape.files), content, folder, folder / "target")
            transfer.target.mkdir()
            try:
                system.start_index(transfer)
                system.start_peer(transfer, "source", bench.kept(f"{self.name}-source"), "--share", str(content.path))
                system.start_peer(transfer, "downloader", folder / "sink")
                gets = []
                for number, path in enumerate(files):
                    file = system.ask(folder / "sink", "id", str(path))["id"]
                    system.wait_registered(file, 1)
                    get = system.command(folder / "sink", "get", file, "-o", str(transfer.target / str(number)))
                    gets.append(transfer.hold("command", get, on_exit=transfer.done_at_exit(number)))
                seconds, usages = transfer.run(lambda: [get.tell("") for get in gets])
                for number, path in enumerate(files):
                    if sha256(transfer.target / str(number)) != sha256(path):
                        raise TrialError(f"{path.name} differs from the original")
            finally:
                transfer.stop()
        numbers = values(transfer.shape, seconds, usages, transfer.meter.others_cpu())
        commands = sum(usage.cpu for usage in usages if usage.role == "command")
        numbers["CPU s/GiB, daemons"] = numbers["CPU s/GiB"] - commands / (shape.size / GIB)
        return Outcome(numbers)


def _variants(options: argparse.Namespace) -> dict[str, object]:
    size = options.size or GIB
    return {f"{number} x {size / number / MIB:g} MiB": Shape(1, size, files=number) for number in NUMBERS}


CASES = (Case("together", "1 GiB as a growing number of files, which one peer downloads at the same time from another, one `potluck get` each, in memory",
              _variants, for_each_build(Together)),)
