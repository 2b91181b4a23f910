"""curl from one nginx: the cost of a plain download, with and without a SHA-256 afterwards."""

from __future__ import annotations

import subprocess
from pathlib import Path

from common.processes import Child

from ..transfer import Transfer
from . import nginx, programs
from .base import System, require_one_sink


class Curl(System):
    """A reference, not a competitor: it verifies nothing and uses one source."""

    name = "curl"

    @classmethod
    def version(cls, options: dict[str, str]) -> str:
        programs.need("curl", "nginx")
        return " ".join(subprocess.run(["curl", "--version"], capture_output=True, text=True, check=True).stdout.split()[:2])

    def launch(self, transfer: Transfer) -> None:
        require_one_sink(transfer, self.name)
        [url] = nginx.serve(transfer, 1)
        self._curl = transfer.hold("downloader", ["curl", "-sSf", "-o", self.arrived(transfer)[0], url], on_exit=self.after(transfer))

    def begin(self, transfer: Transfer) -> None:
        self._curl.tell("")

    def arrived(self, transfer: Transfer) -> list[Path]:
        return [transfer.target / "arrived.bin"]

    def after(self, transfer: Transfer):
        """Called when curl has ended."""
        return transfer.done_at_exit()


class CurlOpenssl(Curl):
    """curl, followed by `openssl dgst -sha256` of the file."""

    name = "curl+openssl"

    @classmethod
    def version(cls, options: dict[str, str]) -> str:
        programs.need("openssl")
        openssl = subprocess.run(["openssl", "version"], capture_output=True, text=True, check=True).stdout.split()[:2]
        return f"{super().version(options)}, {' '.join(openssl)}"

    def after(self, transfer: Transfer):
        digest = transfer.hold("downloader", ["openssl", "dgst", "-sha256", "-r", self.arrived(transfer)[0]],
                               on_line=lambda line, _: self._check(transfer, line), on_exit=lambda *_: None)

        def on_exit(code: int, child: Child) -> None:
            if code == 0:
                digest.tell("")
            else:
                transfer.fail(f"curl ended with {code}: {child.log_tail()}")

        return on_exit

    @staticmethod
    def _check(transfer: Transfer, line: str) -> None:
        if line.split()[0] == transfer.payload.sha256:
            transfer.done()
        else:
            transfer.fail(f"the SHA-256 differs from the original: {line}")
