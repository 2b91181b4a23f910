#!/usr/bin/env python3
"""What encryption costs: the same downloads in plaintext and in a private network, in pairs.

    bench/private/pairs.py [--program target/release/potluck] [--size MIB] [--pairs N] [--small N]

Each pair downloads one file from four peers to one, first in one network and then in the other. The
small downloads are of 1 MiB between two peers that know each other already; what counts is the time
that `get` reports. All programs run on this machine, so they share its processors.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import tempfile
import time
from pathlib import Path

MIB = 1 << 20


class Network:
    """An index, four peers that share, and one that downloads."""

    def __init__(self, program: Path, root: Path, is_private: bool):
        self.program, self.root, self.is_private = program, root, is_private
        self.name = "private" if is_private else "plaintext"
        self.running: list[subprocess.Popen[str]] = []
        index = ["index", "--listen", "127.0.0.1:0", "--store", "memory"]
        if is_private:
            self.run("host", "network", "create", "net", "--index", "https://127.0.0.1:1")
            index += ["--network", "net"]
        address = self.start("host", index)
        self.index = f"http{'s' if is_private else ''}://{address}"
        if is_private:
            self.run("host", "network", "set-index", self.index, "--dir", "net")

    def machine(self, name: str) -> Path:
        folder = self.root / self.name / name
        folder.mkdir(parents=True, exist_ok=True)
        return folder

    def environment(self, name: str) -> dict[str, str]:
        return {"HOME": str(self.machine(name)), "PATH": os.environ["PATH"]}

    def run(self, machine: str, *arguments: str) -> str:
        done = subprocess.run(
            [self.program, *arguments],
            cwd=self.machine(machine),
            env=self.environment(machine),
            capture_output=True,
            text=True,
        )
        if done.returncode:
            raise SystemExit(f"{arguments}: {done.stderr}")
        return done.stdout

    def start(self, machine: str, arguments: list[str]) -> str:
        log = open(self.machine(machine) / "log", "w")
        process = subprocess.Popen(
            [self.program, *arguments],
            cwd=self.machine(machine),
            env=self.environment(machine),
            stdout=subprocess.PIPE,
            stderr=log,
            text=True,
        )
        self.running.append(process)
        assert process.stdout
        return process.stdout.readline().split()[-1]

    def peer(self, machine: str, *shared: Path) -> None:
        if self.is_private:
            code = self.run("host", "network", "invite", "--dir", "net").split()[-1]
            self.run(machine, "network", "join", code, "--name", machine)
        arguments = ["peer", "--listen", "127.0.0.1:0", "--home", "home"]
        if not self.is_private:
            arguments += ["--index", self.index]
        for path in shared:
            arguments += ["--share", str(path)]
        self.start(machine, arguments)

    def control(self, machine: str) -> list[str]:
        return ["--peer", f"unix:{self.machine(machine)}/home/control.sock"]

    def wait_for(self, machine: str, id: str, providers: int) -> None:
        for _ in range(600):
            answer = json.loads(self.run_any(machine, "query", id, "--json") or "{}")
            files = answer.get("files") or [{"providers": []}]
            if len(files[0]["providers"]) >= providers:
                return
            time.sleep(0.1)
        raise SystemExit(f"{id} does not get {providers} providers")

    def run_any(self, machine: str, *arguments: str) -> str:
        command = [self.program, *arguments]
        if not self.is_private:
            command += ["--index", self.index]
        where = self.machine(machine)
        done = subprocess.run(
            command, cwd=where, env=self.environment(machine), capture_output=True, text=True
        )
        return done.stdout

    def get(self, machine: str, id: str) -> tuple[float, float]:
        """The seconds that `get` reports, and those that the command took."""
        target = self.machine(machine) / "out"
        target.unlink(missing_ok=True)
        before = time.monotonic()
        printed = self.run(machine, "get", id, "--json", "-o", str(target), "--seed", "no",
                           *self.control(machine))
        took = time.monotonic() - before
        done = json.loads(printed.strip().splitlines()[-1])
        assert done["event"] == "done", done
        return done["seconds"], took

    def stop(self) -> None:
        for process in self.running:
            process.terminate()
        for process in self.running:
            process.wait()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--program", type=Path, default=Path("target/release/potluck"))
    parser.add_argument("--size", type=int, default=1024, help="MiB of the large file")
    parser.add_argument("--pairs", type=int, default=5)
    parser.add_argument("--small", type=int, default=20, help="downloads of 1 MiB")
    options = parser.parse_args()
    program = options.program.resolve()
    with tempfile.TemporaryDirectory(dir="/dev/shm" if Path("/dev/shm").is_dir() else None) as root:
        measure(program, Path(root), options.size, options.pairs, options.small)


def measure(program: Path, root: Path, size: int, pairs: int, small: int) -> None:
    large = root / "large"
    with large.open("wb") as file:
        for _ in range(size):
            file.write(os.urandom(MIB))
    smalls = [root / f"small-{number}" for number in range(small + 1)]
    for path in smalls:
        path.write_bytes(os.urandom(MIB))
    print(f"load {os.getloadavg()[0]:.1f}, {os.cpu_count()} processors, {program}")
    networks = [Network(program, root, is_private) for is_private in (False, True)]
    ids = [json.loads(networks[0].run("host", "id", "--json", str(path)))["id"] for path in (large, *smalls)]
    try:
        for network in networks:
            for number in range(4):
                network.peer(f"seed{number}", large, *(smalls if number == 0 else ()))
            network.peer("leecher")
            network.wait_for("leecher", ids[0], 4)
            for id in ids[1:]:
                network.wait_for("leecher", id, 1)
        ratios = []
        for pair in range(pairs):
            order = networks if pair % 2 == 0 else networks[::-1]
            rates = {}
            for network in order:
                seconds, _ = network.get("leecher", ids[0])
                rates[network.name] = size / seconds
            ratios.append(rates["private"] / rates["plaintext"])
            print(
                f"4 to 1, {size} MiB: plaintext {rates['plaintext']:.0f} MiB/s, private"
                f" {rates['private']:.0f} MiB/s, ratio {ratios[-1]:.2f}, load {os.getloadavg()[0]:.1f}",
                flush=True,
            )
        print(f"median ratio {statistics.median(ratios):.2f}")
        for network in networks:
            # The first one connects.
            times = [network.get("leecher", id) for id in ids[1:]][1:]
            reported = sorted(seconds * 1000 for seconds, _ in times)
            took = sorted(seconds * 1000 for _, seconds in times)
            print(
                f"1 MiB, {network.name}: median {statistics.median(reported):.1f} ms, best"
                f" {reported[0]:.1f} ms, worst {reported[-1]:.1f} ms; the command"
                f" {statistics.median(took):.1f} ms"
            )
    finally:
        for network in networks:
            network.stop()


if __name__ == "__main__":
    main()
