#!/usr/bin/env python3
"""Measures how fast a file reaches many peers over shaped links, with Potluck and with libtorrent.
See README.md."""

from __future__ import annotations

import argparse
import json
import os
import shutil
import signal
import sys
import time
from pathlib import Path

from swarmbench import plot, report  # First: it adds the folder of `common` to the path.
from common import machine
from swarmbench.network import BURST, QUEUE_SECONDS, NetworkError, remove_leftovers
from swarmbench.scenario import SCENARIOS, SETS, Scenario
from swarmbench.systems import SYSTEMS, Unavailable
from swarmbench.trial import TrialError, run_trial

RESULTS = Path(__file__).parent / "results"


def main() -> int:
    options = parse()
    if options.list:
        for scenario in SCENARIOS.values():
            print(f"{scenario.name:18} bound {scenario.bound():6.2f} s  {scenario.note}")
        return 0
    if options.tabulate:
        show([json.loads(line) for path in options.tabulate for line in path.open()], options, None)
        return 0
    if os.geteuid() != 0:
        return complain("network namespaces and tc need root: run it as root")
    if removed := remove_leftovers():
        print(f"removed the namespaces of a killed run: {', '.join(removed)}", file=sys.stderr)
    settings = {name: dict(pair.split("=", 1) for pair in getattr(options, name)) for name in SYSTEMS}
    systems: dict[str, str] = {}
    for name in options.systems:
        try:
            systems[name] = SYSTEMS[name].version(settings[name])
        except Unavailable as error:
            return complain(str(error))
    names = [name for scenario in options.scenarios for name in SETS.get(scenario, (scenario,))]
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))

    options.congestion_control = options.congestion_control or usual_congestion_control()
    options.results.mkdir(parents=True, exist_ok=True)
    stem = options.label or time.strftime("%Y%m%d-%H%M%S", time.gmtime())
    raw = options.results / f"{stem}.jsonl"
    runs: list[dict] = []
    skipped: set[tuple[str, str]] = set()
    with raw.open("a") as out:
        for name in names:
            scenario = SCENARIOS[name]
            payload = make_payload(options.scratch, scenario)
            for number in range(options.rounds):
                # Alternating (A B A B): other load on the machine affects both equally.
                for system in systems:
                    if (name, system) in skipped:
                        continue
                    head = {
                        "scenario": name, "name": system, "version": systems[system], "round": number, "size": scenario.size,
                        "note": scenario.note, "started": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
                        "machine": machine.describe(),
                        "links": {"burst": BURST, "queue_seconds": QUEUE_SECONDS, "congestion_control": options.congestion_control},
                    }
                    try:
                        run = head | run_trial(lambda: SYSTEMS[system](settings[system]), scenario, options.scratch, payload,
                                               options.congestion_control, options.nice, options.keep)
                        times = report.times(run)
                        line = (f"median {times[len(times) // 2]:.2f} s, slowest {times[-1]:.2f} s, "
                                f"{times[-1] / run['bound']:.2f} of the bound")
                    except Unavailable as error:
                        skipped.add((name, system))
                        print(f"{name}: {system} skipped: {error}", file=sys.stderr)
                        continue
                    except (TrialError, NetworkError) as error:
                        run = head | {"error": str(error)}
                        line = f"failed: {error}"
                    print(f"{name} round {number + 1}/{options.rounds} {system}: {line}", file=sys.stderr, flush=True)
                    out.write(json.dumps(run) + "\n")
                    out.flush()
                    runs.append(run)
            shutil.rmtree(payload.parent)
    show(runs, options, stem)
    return 1 if any("error" in run for run in runs) else 0


def show(runs: list[dict], options: argparse.Namespace, stem: str | None) -> None:
    table = report.table(runs, {s.name: s.compare_with for s in SCENARIOS.values()}, *options.systems[:2], *["-"] * (2 - len(options.systems[:2])))
    print(table)
    if stem is None:
        return
    (options.results / f"{stem}.md").write_text(table)
    for name in dict.fromkeys(run["scenario"] for run in runs):
        try:
            plot.curves(runs, name, options.results / f"{stem}-{name}.{options.plot}")
        except ImportError:
            print("no plots: pip install matplotlib", file=sys.stderr)
            return


def usual_congestion_control() -> str:
    """The default of most machines. A kernel without it uses reno, which also reacts to loss. BBR
    sets a timer for almost every packet; with all peers on a few processors those timers would be
    the limit instead of the links."""
    known = Path("/proc/sys/net/ipv4/tcp_allowed_congestion_control").read_text().split()
    return "cubic" if "cubic" in known else "reno"


def make_payload(scratch: Path, scenario: Scenario) -> Path:
    """A file of random bytes, or a folder of such files, created for each scenario."""
    path = scratch / f"payload-{os.getpid()}" / "payload.bin"
    if scenario.files:
        path = path.with_suffix("")
        for number, size in enumerate(scenario.files):
            fill(path / f"{number % 10}" / f"{number}.bin", size)
    else:
        fill(path, scenario.size)
    return path


def fill(path: Path, size: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("wb") as file:
        left = size
        while left:
            left -= file.write(os.urandom(min(left, 1 << 22)))


def parse() -> argparse.Namespace:
    known = [*SETS, *SCENARIOS]
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("scenarios", nargs="*", default=["quick"], metavar="SCENARIO",
                        help=f"scenarios or sets of them ({', '.join(SETS)}); --list lists them [default: quick]")
    parser.add_argument("--list", action="store_true", help="list the scenarios")
    parser.add_argument("--rounds", type=int, default=3, help="runs of each system in each scenario [default: 3]")
    parser.add_argument("--systems", default=["potluck", "libtorrent"], type=lambda text: text.split(","),
                        help="the systems to run, in this order: potluck and libtorrent, or origin and direct for scenarios with an "
                             "origin [default: potluck,libtorrent]")
    for name, system in SYSTEMS.items():
        parser.add_argument(f"--{name}", action="append", default=[], metavar="KEY=VALUE", help=(system.__doc__ or "").splitlines()[0])
    parser.add_argument("--congestion-control", metavar="NAME",
                        help="TCP congestion control for both systems, from /proc/sys/net/ipv4/tcp_allowed_congestion_control [default: cubic if available, else reno]")
    parser.add_argument("--nice", type=int, default=0, help="niceness of all measured processes, for a machine that is not idle [default: 0]")
    parser.add_argument("--scratch", type=Path, default=Path("/dev/shm/potluck-swarm"),
                        help="folder for the peers' files, in memory so that a shared disk does not limit the result [default: %(default)s]")
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder for the results [default: results, next to this file]")
    parser.add_argument("--label", help="name of the results [default: the time]")
    parser.add_argument("--plot", choices=("svg", "png"), default="svg")
    parser.add_argument("--keep", action="store_true", help="keep the peers' files and logs")
    parser.add_argument("--tabulate", nargs="+", type=Path, metavar="JSONL", help="print the table of earlier results and exit")
    options = parser.parse_args()
    for name in options.scenarios:
        if name not in known:
            parser.error(f"no scenario {name}: --list lists them")
    for name in options.systems:
        if name not in SYSTEMS:
            parser.error(f"no system {name}: there are {', '.join(SYSTEMS)}")
    return options


def complain(message: str) -> int:
    print(f"error: {message}", file=sys.stderr)
    return 1


if __name__ == "__main__":
    sys.exit(main())
