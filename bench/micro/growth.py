#!/usr/bin/env python3
"""Measures the cost of one scheduling decision as files and crowds grow: runs `cargo bench`, stores
the figures as JSON, and plots the curves.

    python3 bench/micro/growth.py            # about two minutes; needs matplotlib for the plot
    python3 bench/micro/growth.py --no-run   # uses the figures of the last `cargo bench`
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
RESULTS = HERE / "results"
sys.path.insert(0, str(HERE.parent))

from common import machine  # noqa: E402  (the line above adds its folder)
from common.plot import figure  # noqa: E402


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--no-run", action="store_true", help="use the figures of the last run")
    parser.add_argument("--target", type=Path, default=ROOT / "target", help="cargo's target folder [default: %(default)s]")
    options = parser.parse_args()
    if not options.no_run:
        subprocess.run(["cargo", "bench", "--locked", "-p", "potluck-bench-micro", "--bench", "swarm"], cwd=ROOT, check=True)
    points = sorted(read(options.target / "criterion"), key=lambda point: (point["units"], point["peers"]))
    if not points:
        print("no figures: run without --no-run", file=sys.stderr)
        return 1
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / "swarm.json").write_text(json.dumps({"machine": machine.describe(), "points": points}, indent=1) + "\n")
    for point in points:
        print(f"{point['units']:6} units {point['peers']:4} peers {point['nanoseconds']:8.0f} ns per unit")
    draw(points)
    return 0


def read(folder: Path) -> list[dict]:
    """The size and the median time per unit of each benchmark."""
    points = []
    for entry in folder.glob("a unit/*/*/new/benchmark.json"):
        about = json.loads(entry.read_text())
        took = json.loads(entry.with_name("estimates.json").read_text())["median"]["point_estimate"]
        units, peers = int(about["function_id"].split()[0]), int(about["value_str"].split()[0])
        points.append({"units": units, "peers": peers, "nanoseconds": round(took / units, 1)})
    return points


def draw(points: list[dict]) -> None:
    """Plots both curves with logarithmic axes: logarithmic growth is almost flat, linear growth a
    diagonal."""
    try:
        with figure(RESULTS / "swarm.svg") as axes:
            for fixed, grows, marker in (("peers", "units", "o"), ("units", "peers", "s")):
                value = {"peers": 16, "units": 4000}[fixed]
                line = [(point[grows], point["nanoseconds"]) for point in points if point[fixed] == value]
                axes.plot([x for x, _ in line], [y for _, y in line], marker=marker, label=f"{grows} grow, {value} {fixed}")
            axes.set(xscale="log", yscale="log", xlabel="units of the file, or peers", ylabel="nanoseconds per unit", title="What deciding costs")
    except ImportError:
        print("no plot: pip install matplotlib", file=sys.stderr)


if __name__ == "__main__":
    sys.exit(main())
