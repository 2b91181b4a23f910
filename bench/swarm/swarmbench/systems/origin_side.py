"""Content that no peer has: all nodes fetch it from a web server, together with Potluck, or each on
its own with curl.

The origin is nginx with TLS and a certificate of its own."""

from __future__ import annotations

import hashlib
import shutil
import subprocess
import sys
import time
from pathlib import Path

from common import potluck

from ..network import Node
from ..trial import Child, Trial, TrialError
from .base import System, Unavailable
from .potluck_side import INDEX_PORT, PEER_PORT, READY_TIMEOUT, Potluck

ORIGIN_PORT = 8443


class Origin:
    """The web server of a trial."""

    def __init__(self, trial: Trial):
        if not trial.scenario.origin:
            raise Unavailable("no node of it is a web server")
        if not shutil.which("nginx") or not shutil.which("openssl"):
            raise Unavailable("the origin needs nginx and openssl")
        (self._node,) = trial.sources
        (source,) = trial.scenario.sources
        home = self._node.home
        self.certificate = home / "origin.pem"
        _make_certificate(self.certificate, home / "origin.key", self._node)
        self._log = home / "requests.log"
        # Bytes of the body, of each answer.
        rate = f"limit_rate {int(source.connection * 1e6 / 8)};" if source.connection else ""
        (home / "nginx.conf").write_text(f"""
            daemon off; pid {home}/nginx.pid; error_log {home}/error.log; worker_processes 1;
            events {{ worker_connections 1024; }}
            http {{
                log_format bytes '$body_bytes_sent $request';
                access_log {self._log} bytes;
                client_body_temp_path {home}; proxy_temp_path {home}; fastcgi_temp_path {home};
                uwsgi_temp_path {home}; scgi_temp_path {home};
                sendfile on; keepalive_requests 100000;
                server {{
                    listen {self._node.address}:{ORIGIN_PORT} ssl;
                    ssl_certificate {self.certificate}; ssl_certificate_key {home}/origin.key;
                    root {trial.payload.parent};
                    {rate}
                }}
            }}
        """)
        trial.spawn(self._node, "origin", ["nginx", "-e", f"{home}/error.log", "-c", str(home / "nginx.conf")], lambda *_: None)
        self.url = f"https://{self._node.address}:{ORIGIN_PORT}/{trial.payload.name}"
        probe = self._node.command("curl", "-sfI", "--cacert", str(self.certificate), self.url)
        deadline = time.monotonic() + READY_TIMEOUT
        while subprocess.run(probe, capture_output=True, check=False).returncode != 0:
            if time.monotonic() > deadline:
                raise TrialError(f"the origin did not start: {(home / 'error.log').read_text()}")
            time.sleep(0.1)

    def sent(self) -> int:
        """Bytes of all answers so far."""
        lines = self._log.read_text().splitlines() if self._log.exists() else []
        return sum(int(line.split()[0]) for line in lines)


def _make_certificate(certificate: Path, key: Path, node: Node) -> None:
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days", "2",
         "-keyout", str(key), "-out", str(certificate), "-subj", "/CN=origin", "-addext", f"subjectAltName=IP:{node.address}",
         "-addext", "basicConstraints=critical,CA:FALSE"],
        capture_output=True, check=True,
    )


class FromOrigin(Potluck):
    """Options: as those of `potluck`. Each node runs `potluck get URL#sha256=HEX` at the same moment."""

    name = "origin"

    def launch(self, trial: Trial) -> None:
        self._origin = Origin(trial)
        environment = potluck.environment(self.options) | {"SSL_CERT_FILE": str(self._origin.certificate)}
        node = trial.infrastructure
        index = f"http://{node.address}:{INDEX_PORT}"
        up = trial.gate(1)
        trial.spawn(node, "index", [str(self._bin / "potluck-index"), "--listen", f"{node.address}:{INDEX_PORT}",
                                    "--data-dir", str(node.home / "index")], potluck.when_listening(up), environment)
        up.wait(READY_TIMEOUT)
        up = trial.gate(len(trial.sinks))
        for node in trial.sinks:
            trial.spawn(node, "sink", [str(self._bin / "potluck-peer"), "--listen", f"{node.address}:{PEER_PORT}",
                                       "--home", str(node.home / "peer"), "--index", index], potluck.when_listening(up), environment)
        up.wait(READY_TIMEOUT)
        url = f"{self._origin.url}#sha256={_sha256(trial.payload)}"
        for number, node in enumerate(trial.sinks):
            self._files.append(node.home / trial.payload.name)
            get = [str(self._bin / "potluck"), "--index", index, "--peer", f"unix:{node.home}/peer/control.sock", "--json",
                   "get", url, "-o", str(self._files[number])]
            gate = ["sh", "-c", 'read -r _ && exec "$@" </dev/null', "get", *get]
            self._gets.append(trial.spawn(node, "get", gate, self._on_line(trial, number), environment,
                                          on_exit=self._on_exit(trial, number)))

    def sent_by_sources(self, trial: Trial) -> int | None:
        return self._origin.sent()


class Direct(System):
    """Each node fetches everything from the origin with curl, as without Potluck."""

    name = "direct"

    def __init__(self, options: dict[str, str]):
        super().__init__(options)
        self._gets: list[Child] = []
        self._files: list[Path] = []

    @classmethod
    def version(cls, options: dict[str, str]) -> str:
        if not shutil.which("curl"):
            raise Unavailable("no curl")
        return subprocess.run(["curl", "--version"], capture_output=True, text=True, check=True).stdout.split("\n")[0]

    def launch(self, trial: Trial) -> None:
        self._origin = Origin(trial)
        for number, node in enumerate(trial.sinks):
            self._files.append(node.home / trial.payload.name)
            # Reports how much has arrived, as Potluck does.
            script = Path(__file__).with_name("curl_with_progress.py")
            command = [sys.executable, "-P", str(script), str(self._origin.certificate), self._origin.url, str(self._files[number])]
            self._gets.append(trial.spawn(node, "get", command, self._on_line(trial, number), on_exit=lambda *_: None))

    def begin(self, trial: Trial, sink: int) -> None:
        self._gets[sink].tell("")

    def source_pid(self, source: int) -> int:
        raise TrialError("an origin has no events")

    def arriving(self, sink: int) -> Path:
        return self._files[sink]

    def arrived(self, sink: int) -> Path:
        return self._files[sink]

    def sent_by_sources(self, trial: Trial) -> int | None:
        return self._origin.sent()

    def _on_line(self, trial: Trial, sink: int):
        def on_line(line: str, _: Child) -> None:
            now = time.monotonic()
            word, value = line.split()
            if word == "failed":
                trial.failed(sink, f"curl ended with {value}")
                return
            trial.progress(sink, now, int(value))
            if word == "done":
                trial.done(sink, now)

        return on_line


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
