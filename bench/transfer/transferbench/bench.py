"""Folders, files of random bytes, and ports for runs."""

from __future__ import annotations

import argparse
import hashlib
import os
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from common.processes import TrialError


@dataclass(frozen=True)
class Payload:
    """A file of random bytes to be moved, or a folder of such files."""

    path: Path
    size: int
    count: int = 1
    """Number of files."""

    @cached_property
    def sha256(self) -> str:
        return sha256(self.path)


class Bench:
    """Folders and files. All of them are beneath one folder, which is removed at the end."""

    def __init__(self, options: argparse.Namespace):
        self.options = options
        self.scratch: Path = options.scratch / str(os.getpid())
        self.scratch.mkdir(parents=True)
        self._payloads: dict[tuple[Path, int], Payload] = {}

    def payload(self, size: int, below: Path | None = None) -> Payload:
        """The file of this size, created on first use."""
        folder = below or self.scratch
        key = (folder, size)
        if key not in self._payloads:
            payload = Payload(folder / f"payload-{size}" / f"random-{size}.bin", size)
            payload.path.parent.mkdir(parents=True, exist_ok=True)
            write_random(payload.path, size)
            self._payloads[key] = payload
        return self._payloads[key]

    def tree(self, count: int, each: int) -> Payload:
        """A folder with `count` files of `each` bytes, a thousand per subfolder; created on first
        use."""
        key = (self.scratch, count * each)
        if key not in self._payloads:
            folder = self.scratch / f"payload-{count}x{each}" / "shared"
            folder.mkdir(parents=True)
            write_tree(folder, count, each)
            self._payloads[key] = Payload(folder, count * each, count)
        return self._payloads[key]

    @property
    def payloads(self) -> list[Payload]:
        """The existing payloads."""
        return list(self._payloads.values())

    def forget(self) -> None:
        """Removes the files of a variant."""
        for payload in self._payloads.values():
            shutil.rmtree(payload.path.parent)
        self._payloads.clear()
        shutil.rmtree(self.scratch / "kept", ignore_errors=True)

    def kept(self, name: str) -> Path:
        """A folder that the runs of a variant share, so that each preparation is done once."""
        folder = self.scratch / "kept" / name
        folder.mkdir(parents=True, exist_ok=True)
        return folder

    @contextmanager
    def folder(self) -> Iterator[Path]:
        """A run's own folder."""
        folder = self.scratch / "run"
        folder.mkdir()
        try:
            yield folder
        finally:
            if self.options.keep:
                folder.rename(self.scratch / f"run-{time.monotonic_ns()}")
            else:
                shutil.rmtree(folder, ignore_errors=True)

    def close(self) -> None:
        if not self.options.keep:
            shutil.rmtree(self.scratch, ignore_errors=True)


def write_random(path: Path, size: int) -> None:
    """Writes the key stream of a cipher: the fastest source of bytes that neither repeat nor
    compress."""
    with path.open("wb") as out:
        key, start = os.urandom(32).hex(), os.urandom(16).hex()
        with subprocess.Popen(["head", "-c", str(size), "/dev/zero"], stdout=subprocess.PIPE) as zeros:
            subprocess.run(["openssl", "enc", "-aes-256-ctr", "-K", key, "-iv", start, "-bufsize", "1048576"],
                           stdin=zeros.stdout, stdout=out, check=True)


def write_tree(folder: Path, count: int, each: int) -> None:
    """Writes `count` files of `each` random bytes."""
    whole = folder / "whole"
    write_random(whole, count * each)
    with whole.open("rb") as source:
        for number in range(count):
            path = folder / f"{number // 1000:03}" / f"file-{number:06}.bin"
            path.parent.mkdir(exist_ok=True)
            with path.open("wb") as out:
                left = each
                while left:
                    left -= out.write(source.read(min(left, 1 << 24)))
    whole.unlink()


def sha256(path: Path) -> str:
    """The hash of a file, or of all names and hashes of files beneath a folder."""
    if path.is_dir():
        whole = hashlib.sha256()
        for file in sorted(file for file in path.rglob("*") if file.is_file()):
            whole.update(f"{file.relative_to(path)} {sha256(file)}\n".encode())
        return whole.hexdigest()
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def free_port() -> int:
    """A free port on the loopback."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def wait_for_port(port: int, timeout: float = 20.0) -> None:
    """Waits until the port accepts connections."""
    wait_until(lambda: _answers(port), timeout, f"no program listens on port {port}")


def wait_until(true, timeout: float, otherwise: str, interval: float = 0.02) -> None:
    deadline = time.monotonic() + timeout
    while not true():
        if time.monotonic() > deadline:
            raise TrialError(f"{otherwise} after {timeout:.0f} s")
        time.sleep(interval)


def _answers(port: int) -> bool:
    try:
        socket.create_connection(("127.0.0.1", port), 1).close()
    except OSError:
        return False
    return True
