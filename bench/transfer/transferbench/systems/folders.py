"""Common ways to copy folders: rsync's daemon, and tar through a socket."""

from __future__ import annotations

import subprocess
from pathlib import Path

from ..bench import free_port, wait_for_port
from ..transfer import Transfer
from . import programs
from .base import System, require_one_sink

RSYNCD = """
use chroot = no
pid file = {folder}/rsyncd.pid
lock file = {folder}/rsyncd.lock
uid = 0
gid = 0
[shared]
path = {shared}
read only = yes
"""


class Rsync(System):
    """rsync from a daemon. It compares sizes and times of files, and verifies received files with
    its own checksums."""

    name = "rsync"

    @classmethod
    def version(cls, options: dict[str, str]) -> str:
        programs.need("rsync")
        return " ".join(subprocess.run(["rsync", "--version"], capture_output=True, text=True, check=True).stdout.split()[:3])

    def launch(self, transfer: Transfer) -> None:
        require_one_sink(transfer, self.name)
        port = free_port()
        config = transfer.folder / "rsyncd.conf"
        config.write_text(RSYNCD.format(folder=transfer.folder, shared=transfer.payload.path))
        transfer.spawn("source", ["rsync", "--daemon", "--no-detach", "--address", "127.0.0.1", "--port", port, "--config", config])
        wait_for_port(port)
        self._rsync = transfer.hold("downloader", ["rsync", "--archive", f"rsync://127.0.0.1:{transfer.reach(port)}/shared/",
                                                   f"{self.arrived(transfer)[0]}/"], on_exit=transfer.done_at_exit())

    def begin(self, transfer: Transfer) -> None:
        self._rsync.tell("")

    def arrived(self, transfer: Transfer) -> list[Path]:
        return [transfer.target / "arrived"]


class Tar(System):
    """A reference: tar into a socket and out of it, without verification."""

    name = "tar+socat"

    @classmethod
    def version(cls, options: dict[str, str]) -> str:
        programs.need("tar", "socat")
        return subprocess.run(["tar", "--version"], capture_output=True, text=True, check=True).stdout.splitlines()[0]

    def launch(self, transfer: Transfer) -> None:
        require_one_sink(transfer, self.name)
        port = free_port()
        self.arrived(transfer)[0].mkdir()
        # It serves only one connection, so do not probe its port.
        source = transfer.spawn("source", ["bash", "-c", f"tar -C '{transfer.payload.path}' -cf - . | socat -u - TCP-LISTEN:{port},bind=127.0.0.1"])
        transfer.allow_exit(source.pid)
        fetch = f"set -o pipefail; socat -u TCP:127.0.0.1:{port},retry=50,interval=0.02 - | tar -C '{self.arrived(transfer)[0]}' -xf -"
        self._fetch = transfer.hold("downloader", ["bash", "-c", fetch], on_exit=transfer.done_at_exit())

    def begin(self, transfer: Transfer) -> None:
        self._fetch.tell("")

    def arrived(self, transfer: Transfer) -> list[Path]:
        return [transfer.target / "arrived"]
