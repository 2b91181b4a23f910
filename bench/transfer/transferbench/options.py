"""The command line. Pure."""

from __future__ import annotations

import argparse
import re
from pathlib import Path

UNITS = {"": 1, "k": 1 << 10, "m": 1 << 20, "g": 1 << 30}
SETTINGS = ("libtorrent", "rqbit", "aria2")
"""Systems that take settings."""


def size(text: str) -> int:
    """`64MiB`, `2G`, or bytes."""
    match = re.fullmatch(r"(\d+)\s*([kmg]?)(i?b)?", text.lower())
    if not match:
        raise argparse.ArgumentTypeError(f"no size: {text}; as in 64MiB or 2GiB")
    return int(match[1]) * UNITS[match[2]]


def pairs(text: str) -> dict[str, str]:
    """`key=value,key=value`."""
    found = dict(part.split("=", 1) for part in text.split(",") if "=" in part)
    if len(found) != len(text.split(",")):
        raise argparse.ArgumentTypeError(f"not KEY=VALUE: {text}")
    return found


def parse(known: list[str], systems: list[str], results: Path, doc: str, line: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=doc)
    parser.add_argument("cases", nargs="*", default=["4-to-1", "1-to-1", "at-once"], metavar="CASE",
                        help="cases, or all; --list lists them [default: 4-to-1 1-to-1 at-once]")
    parser.add_argument("--list", action="store_true", help="list the cases")
    parser.add_argument("--rounds", type=int, default=5, help="runs of each system in each case [default: 5]")
    parser.add_argument("--systems", default=[], type=lambda text: text.split(","), metavar="A,B", help=f"only these ({', '.join(systems)})")
    parser.add_argument("--size", type=size, help="total size of the payload [default: each case's own]")
    parser.add_argument("--potluck", action="append", type=pairs, metavar="bin=DIR[,label=NAME][,log=FILTER]",
                        help="a build of Potluck; repeat it with labels to compare several builds [default: target/release]")
    parser.add_argument("--bare", type=Path, metavar="BIN", help="the program of the bare stream: `BIN serve`, `BIN fetch`, and `BIN hash` for the case `share`")
    for name in SETTINGS:
        parser.add_argument(f"--{name}", type=pairs, default={}, metavar="KEY=VALUE,...", help=f"settings of {name}")
    parser.add_argument("--scratch", type=Path, default=Path("/dev/shm/potluck-transfer"), help="folder in memory for all files [default: %(default)s]")
    parser.add_argument("--disk-dir", type=Path, help="folder on a disk, for the case `disk`")
    parser.add_argument("--results", type=Path, default=results, help="folder for the results [default: results, next to run.py]")
    parser.add_argument("--label", help="name of the results [default: the time]; existing results of this name are extended")
    parser.add_argument("--plot", choices=("svg", "png"), default="svg")
    parser.add_argument("--keep", action="store_true", help="keep files and logs")
    parser.add_argument("--tabulate", nargs="+", type=Path, metavar="JSONL", help="print the table of earlier results, plot them if --label is given, and exit")
    options = parser.parse_args(line)
    if options.cases == ["all"]:
        options.cases = known
    for name in options.cases:
        if name not in known:
            parser.error(f"no case {name}: --list lists them")
    options.settings = {name: getattr(options, name) for name in SETTINGS} | {"bare": {"bin": str(options.bare)} if options.bare else {}}
    return options
