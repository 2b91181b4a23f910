"""Real indexes and peers, started once for all tests, on loopback."""

from __future__ import annotations

import contextlib
import os
import selectors
import shutil
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Callable, Iterator, List

import pytest

ROOT = Path(__file__).resolve().parents[3]


def program(name: str) -> str:
    """A program of this repository: in POTLUCK_BIN_DIR, on PATH, or built here."""
    folders = [os.environ.get("POTLUCK_BIN_DIR"), os.environ.get("PATH")]
    folders += [str(ROOT / "target" / profile) for profile in ("debug", "release")]
    for folder in filter(None, folders):
        found = shutil.which(name, path=folder)
        if found:
            return found
    if os.environ.get("POTLUCK_BIN_DIR"):
        pytest.fail(f"there is no {name} in POTLUCK_BIN_DIR")
    pytest.skip(f"{name} is not built")


@dataclass
class Service:
    """A running index or peer."""

    address: str
    home: Path

    @property
    def socket(self) -> Path:
        return self.home / "control.sock"


@contextlib.contextmanager
def running(home: Path, *command: str) -> Iterator[Service]:
    """Runs a service until the end of the block."""
    home.mkdir(parents=True, exist_ok=True)
    environment = {k: v for k, v in os.environ.items() if not k.startswith("POTLUCK_")}
    environment["XDG_CONFIG_HOME"] = str(home / "config")
    with open(home / "log", "wb") as log:
        child = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=log, env=environment, stdin=subprocess.DEVNULL
        )
        try:
            yield Service(_listening(child, home), home)
        finally:
            child.terminate()
            try:
                child.wait(10)
            except subprocess.TimeoutExpired:
                child.kill()
                child.wait()


def _listening(child: subprocess.Popen[bytes], home: Path) -> str:
    assert child.stdout is not None
    with selectors.DefaultSelector() as selector:
        selector.register(child.stdout, selectors.EVENT_READ)
        deadline = time.monotonic() + 30
        while time.monotonic() < deadline:
            if not selector.select(1):
                continue
            line = child.stdout.readline().decode()
            if line.startswith("listening on "):
                return line.removeprefix("listening on ").strip()
            if not line:
                break
    raise AssertionError(f"the service did not start: {(home / 'log').read_text()}")


@pytest.fixture(scope="session")
def work(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("potluck")


@pytest.fixture(scope="session")
def index(work: Path) -> Iterator[Service]:
    command = [program("potluck-index"), "--listen", "127.0.0.1:0", "--store", "memory"]
    with running(work / "index", *command) as service:
        yield service


@pytest.fixture(scope="session")
def start_peer(work: Path, index: Service) -> Iterator[Callable[..., Service]]:
    """Starts a peer with these arguments, until the end of all tests."""
    with contextlib.ExitStack() as stack:

        def start(name: str, *arguments: str) -> Service:
            home = work / name
            command = [program("potluck-peer"), "--listen", "127.0.0.1:0", "--home", str(home)]
            command += ["--index", f"http://{index.address}", *arguments]
            return stack.enter_context(running(home, *command))

        yield start


@pytest.fixture(scope="session")
def peers(start_peer: Callable[..., Service]) -> List[Service]:
    return [start_peer("one"), start_peer("two")]


def content(size: int, seed: int = 0) -> bytes:
    """Bytes that differ in every leaf."""
    block = bytes(range(251)) * 66
    parts = [
        (number * 1_000_003 + seed).to_bytes(8, "little") + block[:16373]
        for number in range(size // 16381 + 1)
    ]
    return b"".join(parts)[:size]
