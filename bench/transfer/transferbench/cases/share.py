"""The cost of sharing: hashing files, compared with torrent makers and plain hashes."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from pathlib import Path

from common import torrent
from common.processes import Child
from common.units import MIB

from ..bench import Bench
from ..case import Case, Entry, Outcome
from ..entries import label, potluck_builds, skipping_absent, is_selected
from ..systems import programs
from ..systems.bare import Bare
from ..systems.potluck import Potluck
from ..transfer import Shape, Transfer, values

FOLDERS = {"8 x 256 MiB": (8, 256 * MIB), "10,000 x 16 KiB": (10_000, 16 * 1024)}
BARE_HASH = "bare hash"
EACH_FILE = 'find "$1" -type f -print0 | xargs -0 '

TORRENT_V2 = "import sys; from pathlib import Path; from common import torrent; torrent.make(Path(sys.argv[1]), Path(sys.argv[2]), 1 << 20)"


class Command(Entry):
    """A command that reads a folder; `line` builds it from the folder and a path for its result."""

    def __init__(self, name: str, version: str, line: Callable[[Path, Path], list[str]]):
        self.name, self.version, self._line = name, version, line

    def measure(self, bench: Bench, variant: tuple[int, int]) -> Outcome:
        content = bench.tree(*variant)
        with bench.folder() as folder:
            transfer = Transfer(bench, Shape(0, content.size), content, folder, folder)
            try:
                child = self.prepare(transfer)
                return outcome(*transfer.run(lambda: child.tell("")), transfer)
            finally:
                transfer.stop()

    def prepare(self, transfer: Transfer) -> Child:
        """Prepares the command."""
        return transfer.hold("command", self._line(transfer.payload.path, transfer.folder / "result"), on_exit=transfer.done_at_exit())


class Share(Command):
    """`potluck share` with a running daemon."""

    def __init__(self, settings: dict[str, str]):
        super().__init__(f"{label(settings)} share", Potluck.version(settings), lambda *_: [])
        self._settings = settings

    def prepare(self, transfer: Transfer) -> Child:
        system = Potluck(self._settings)
        system.start_index(transfer)
        system.start_peer(transfer, "source", transfer.folder / "peer")
        return transfer.hold("command", system.command(transfer.folder / "peer", "share", "--wait", "0", str(transfer.payload.path)),
                             on_exit=transfer.done_at_exit())


def outcome(seconds: float, usages: list, transfer: Transfer) -> Outcome:
    numbers = values(transfer.shape, seconds, usages, transfer.meter.others_cpu())
    numbers = {name: numbers[name] for name in ("seconds", "MiB/s", "CPU s/GiB")}
    return Outcome(numbers | {"anon MiB": max(usage.peak_anonymous for usage in usages) / MIB})


def entries(options: argparse.Namespace) -> list[Entry]:
    found: list[Entry] = []
    if is_selected(options, "potluck"):
        for settings in potluck_builds(options):
            with skipping_absent(label(settings)):
                program = str(Potluck(settings).bin / "potluck")
                found.append(Command(f"{label(settings)} id", Potluck.version(settings),
                                     lambda folder, _, program=program: [program, "--json", "id", str(folder)]))
                found.append(Share(settings))
    makers: dict[str, Callable[[Path, Path], list[str]]] = {
        "mktorrent": lambda folder, result: ["mktorrent", "-t", "2", "-o", f"{result}.torrent", str(folder)],
        "transmission-create": lambda folder, result: ["transmission-create", "-o", f"{result}.torrent", str(folder)],
        "openssl dgst": lambda folder, _: ["sh", "-c", EACH_FILE + "openssl dgst -sha256 >/dev/null", "sh", str(folder)],
        "sha256sum": lambda folder, _: ["sh", "-c", EACH_FILE + "sha256sum >/dev/null", "sh", str(folder)],
        "cat": lambda folder, _: ["sh", "-c", EACH_FILE + "cat >/dev/null", "sh", str(folder)],
    }
    for name, line in makers.items():
        program = name.split()[0]
        if is_selected(options, name):
            with skipping_absent(name):
                programs.need(program)
                found.append(Command(name, programs.first_line(program, "version" if program == "openssl" else "--version"), line))
    if is_selected(options, BARE_HASH):
        with skipping_absent(BARE_HASH):
            version, program = Bare.version(options.settings["bare"]), str(options.settings["bare"]["bin"])
            found.append(Command(BARE_HASH, version, lambda folder, _: [program, "hash", str(folder)]))
    if is_selected(options, "libtorrent"):
        with skipping_absent("libtorrent"):
            found.append(Command("libtorrent", torrent.version(), lambda folder, result: [
                "env", f"PYTHONPATH={Path(torrent.__file__).parents[1]}", sys.executable, "-c", TORRENT_V2, str(folder), f"{result}.torrent"]))
    return found


CASES = (
    Case("share", "hash a folder in memory: `potluck id`, `potluck share` by a running daemon, makers of torrents (mktorrent and transmission: SHA-1; "
         "libtorrent: version 2), SHA-256 of each file, reading alone, and reading and hashing leaves on all cores alone", lambda _: dict(FOLDERS), entries),
)
