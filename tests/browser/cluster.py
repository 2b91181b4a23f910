"""An index, peers and `potluck ui` in a temporary folder."""

import json
import os
import random
import subprocess
import tempfile
from pathlib import Path

# Bytes of the file: half a minute at the rates of the test.
SIZE = 40 << 20


class Cluster:
    """Three peers that have `weights.bin`, and a fourth whose owner has the page."""

    def __init__(self, programs):
        self.potluck = str(Path(programs).resolve() / "potluck")
        self.folder = tempfile.TemporaryDirectory(prefix="pl")
        self.root = Path(self.folder.name)
        self.running = []
        self.environment = {"HOME": str(self.root), "TMPDIR": str(self.root), "PATH": os.environ["PATH"]}

    def start(self, *arguments):
        """Starts a command; returns the first line of its output."""
        command = [self.potluck, *arguments]
        program = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=self.environment, cwd=self.root)
        self.running.append(program)
        return program.stdout.readline().strip()

    def run(self, *arguments):
        subprocess.run([self.potluck, *arguments], check=True, capture_output=True, env=self.environment, cwd=self.root)

    def start_all(self, hostile_name, rates):
        index = self.start("index", "--listen", "127.0.0.1:0", "--store", "memory", "-q").split()[-1]
        self.environment["POTLUCK_INDEX"] = index
        (self.root / "weights.bin").write_bytes(random.Random(1).randbytes(SIZE))
        (self.root / hostile_name).write_bytes(b"text")
        for number, rate in enumerate(rates):
            home = str(self.root / f"seed-{number}")
            self.start("peer", "--home", home, "--listen", "127.0.0.1:0", "--upload-limit", rate, "-q")
            paths = ["weights.bin", hostile_name] if number == 0 else ["weights.bin"]
            self.run("share", *paths, "--peer", f"unix:{home}/control.sock")
        self.start("peer", "--home", str(self.root / "own"), "--listen", "127.0.0.1:0", "-q")
        return json.loads(self.start("ui", "--json", "--peer", f"unix:{self.root}/own/control.sock"))["url"]

    def close(self):
        for program in reversed(self.running):
            program.kill()
            program.wait()
        self.folder.cleanup()
