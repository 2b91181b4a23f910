#!/usr/bin/env python3
"""Measures the cost of moving a file on one machine, with Potluck and other programs. See
README.md."""

from __future__ import annotations

import argparse
import json
import signal
import sys
import time
from pathlib import Path

from transferbench import plot, report  # First: it adds the folder of `common` to the path.
from common import machine
from common.processes import TrialError
from common.unavailable import Unavailable
from transferbench.bench import Bench
from transferbench.case import Case, Entry
from transferbench.cases import CASES
from transferbench.options import parse
from transferbench.systems import SYSTEMS

RESULTS = Path(__file__).parent / "results"


def main() -> int:
    options = parse(list(CASES), list(SYSTEMS), RESULTS, __doc__)
    if options.list:
        for case in CASES.values():
            print(f"{case.name:14} {case.note}")
        return 0
    if options.tabulate:
        show([json.loads(line) for path in options.tabulate for line in path.open()], options, options.label)
        return 0
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    options.results.mkdir(parents=True, exist_ok=True)
    stem = options.label or time.strftime("%Y%m%d-%H%M%S", time.gmtime())
    raw = options.results / f"{stem}.jsonl"
    earlier = [json.loads(line) for line in raw.open()] if raw.exists() else []
    bench = Bench(options)
    failed = False
    try:
        with raw.open("a") as out:
            for name in options.cases:
                for run in runs_of(CASES[name], bench, 1 + max((run["round"] for run in earlier if run["case"] == name), default=-1)):
                    out.write(json.dumps(run) + "\n")
                    out.flush()
                    failed |= "error" in run
    finally:
        bench.close()
    show([json.loads(line) for line in raw.open()], options, stem)
    return 1 if failed else 0


def runs_of(case: Case, bench: Bench, first: int):
    """All runs of a case; the first round has the number `first`. Alternating (A B A B): other load
    on the machine affects all entries equally."""
    entries = case.entries(bench.options)
    skipped: set[tuple[str, str]] = set()
    try:
        variants = case.variants(bench.options)
    except Unavailable as error:
        print(f"{case.name} is skipped: {error}", file=sys.stderr)
        return
    for variant, what in variants.items():
        try:
            if bench.options.rounds > 1:
                warm_up(case, variant, what, entries[0], bench)
            for number in range(bench.options.rounds):
                for entry in entries:
                    if (variant, entry.name) in skipped:
                        continue
                    try:
                        run = run_once(case, variant, what, first + number, entry, bench)
                    except Unavailable as error:
                        skipped.add((variant, entry.name))
                        print(f"{case.name}, {variant}: {entry.name} is skipped: {error}", file=sys.stderr)
                        continue
                    summary = run.get("error") or ", ".join(f"{report.number(value)} {name}" for name, value in run["values"].items())
                    print(f"{case.name} {variant} round {number + 1}/{bench.options.rounds} {entry.name}: {summary}", file=sys.stderr, flush=True)
                    yield run
        finally:
            bench.forget()


def warm_up(case: Case, variant: str, what: object, entry: Entry, bench: Bench) -> None:
    """Does one run that is not counted: the first run meets cold caches."""
    try:
        run_once(case, variant, what, 0, entry, bench)
    except Unavailable:
        pass


def run_once(case: Case, variant: str, what: object, number: int, entry: Entry, bench: Bench) -> dict:
    head = {
        "case": case.name, "variant": variant, "note": case.note, "name": entry.name, "version": entry.version, "round": number,
        "compare": case.compare, "plot": case.plot, "started": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()), "machine": machine.describe(),
    }
    try:
        outcome = entry.measure(bench, what)
    except TrialError as error:
        return head | {"error": str(error)}
    series = {name: [(round(t, 3), round(v, 3)) for t, v in points] for name, points in outcome.series.items()}
    return head | {"values": {name: round(value, 6) for name, value in outcome.values.items()}, "series": series, **outcome.more}


def show(runs: list[dict], options: argparse.Namespace, stem: str | None) -> None:
    table = report.table(runs)
    print(table)
    if stem is None:
        return
    (options.results / f"{stem}.md").write_text(table)
    for name in dict.fromkeys(run["case"] for run in runs):
        try:
            plot.draw(runs, name, options.results / f"{stem}-{name}.{options.plot}")
        except ImportError:
            print("no plots: pip install matplotlib", file=sys.stderr)
            return


if __name__ == "__main__":
    sys.exit(main())
