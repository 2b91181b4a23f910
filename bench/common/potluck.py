"""Finds and runs Potluck's programs, and parses their output."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Callable
from pathlib import Path

from .processes import Child, Gate, TrialError
from .unavailable import Unavailable


def binaries(options: dict[str, str]) -> Path:
    """The folder with the three programs: `bin=DIR`, or cargo's output folder."""
    root = Path(__file__).resolve().parents[2]
    folder = Path(options.get("bin") or Path(os.environ.get("CARGO_TARGET_DIR", root / "target")) / "release").resolve()
    for name in ("potluck-index", "potluck-peer", "potluck"):
        if not (folder / name).exists():
            raise Unavailable(f"no {name} in {folder}: run `cargo build --release` or give --potluck bin=DIR")
    return folder


def version(folder: Path) -> str:
    result = subprocess.run([folder / "potluck", "--version"], capture_output=True, text=True, check=False)
    return result.stdout.strip() or "potluck"


def environment(options: dict[str, str]) -> dict[str, str]:
    """The programs' environment. The emulated links belong to the benchmark alone, so plaintext is fine."""
    plaintext = {"POTLUCK_INDEX_PLAINTEXT": "1", "POTLUCK_PEER_PLAINTEXT": "1"}
    return plaintext | ({"RUST_LOG": options["log"]} if "log" in options else {})


def when_listening(gate: Gate) -> Callable[[str, Child], None]:
    """Passes the gate when a program prints its ready line."""

    def on_line(line: str, _: Child) -> None:
        if line.startswith("listening on "):
            gate.one()

    return on_line


def ask(folder: Path, *args: str) -> dict:
    """The last object that a command prints with `--json`."""
    result = subprocess.run([str(folder / "potluck"), *args, "--json"], capture_output=True, text=True, check=False)
    if result.returncode != 0:
        raise TrialError(f"potluck {' '.join(args)}: {result.stderr.strip()}")
    return json.loads(result.stdout.splitlines()[-1])


def providers(folder: Path, file: str, *args: str, within: list[str] | None = None) -> int:
    """Number of providers that the index has for a file. `args` select the index; `within` is a
    command prefix."""
    command = [*(within or []), str(folder / "potluck"), *args, "--json", "query", file]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    if result.returncode != 0:
        return 0
    files = json.loads(result.stdout.splitlines()[-1])["files"]
    return len(files[0]["providers"]) if files else 0
