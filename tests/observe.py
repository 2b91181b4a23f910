#!/usr/bin/env python3
"""Prometheus reads a real swarm: every query of the dashboard works, and alerts fire in staged failures.

    tests/observe.py [FOLDER]    the folder of the programs, target/debug unless given

Needs `prometheus` and `promtool` on the PATH. The alerts are those of observe/alerts.yml with shorter
times; failures that cannot be staged here, such as a failing disk, are series in
observe/alerts_test.yml. Pictures are not needed: Grafana shows what these queries return.
"""

import json
import os
import re
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import urllib.parse
import urllib.request
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
DEADLINE = 90  # seconds; a guard, not a measure

# Panels whose query may be empty in a healthy swarm: nothing failed.
MAY_BE_EMPTY = {"Failures"}


def free_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return sock.getsockname()[1]


class Swarm:
    """An index and three peers with monitoring, and a Prometheus that reads them."""

    def __init__(self, programs: Path, folder: Path):
        self.programs, self.folder, self.running = programs, folder, {}
        self.environment = {
            "HOME": str(folder),
            "PATH": os.environ["PATH"],
            "POTLUCK_NO_NETWORK": "1",
        }
        self.index_port = free_port()
        self.metrics = {name: free_port() for name in ("index", "one", "two", "three")}
        self.prometheus = free_port()

    def start(self, name: str, words: list) -> None:
        log = open(self.folder / f"{name}.log", "a")
        self.running[name] = subprocess.Popen(
            [str(word) for word in words],
            env=self.environment,
            stdout=log,
            stderr=log,
            cwd=self.folder,
        )

    def start_index(self) -> None:
        self.start(
            "index",
            [self.programs / "potluck-index", "--config", "none", "--listen", self.index_port]
            + ["--data-dir", self.folder / "index", "--metrics", self.metrics["index"]],
        )

    def start_peer(self, name: str) -> None:
        self.start(
            name,
            [self.programs / "potluck-peer", "--config", "none", "--listen", 0]
            + ["--home", self.folder / name, "--index", f"127.0.0.1:{self.index_port}"]
            + ["--lease", "3s", "--metrics", self.metrics[name]],
        )

    def start_prometheus(self) -> None:
        rules = (ROOT / "observe/alerts.yml").read_text()
        rules = re.sub(r"\bfor: \w+", "for: 2s", rules).replace("[15m]", "[1m]")
        (self.folder / "alerts.yml").write_text(rules)
        target = lambda name: f"127.0.0.1:{self.metrics[name]}"
        jobs = {
            "potluck-index": [target("index")],
            "potluck-peer": [target(name) for name in ("one", "two", "three")],
        }
        config = {
            "global": {"scrape_interval": "1s", "evaluation_interval": "1s"},
            "rule_files": ["alerts.yml"],
            "scrape_configs": [
                {"job_name": job, "static_configs": [{"targets": targets}]}
                for job, targets in jobs.items()
            ],
        }
        # JSON is YAML.
        (self.folder / "prometheus.yml").write_text(json.dumps(config))
        self.start(
            "prometheus",
            ["prometheus", "--config.file=prometheus.yml", "--storage.tsdb.path=tsdb"]
            + [f"--web.listen-address=127.0.0.1:{self.prometheus}", "--log.level=warn"],
        )

    def command(self, name: str, *words: str) -> None:
        peer = ["--peer", f"unix:{self.folder / name / 'control.sock'}"]
        index = ["--index", f"127.0.0.1:{self.index_port}"]
        subprocess.run(
            [str(self.programs / "potluck"), *peer, *index, *words],
            env=self.environment,
            cwd=self.folder,
            check=True,
            stdout=subprocess.DEVNULL,
        )

    def get(self, path: str, **query: str):
        url = f"http://127.0.0.1:{self.prometheus}{path}?{urllib.parse.urlencode(query)}"
        with urllib.request.urlopen(url, timeout=10) as answer:
            return json.load(answer)["data"]

    def values(self, expression: str) -> list:
        return self.get("/api/v1/query", query=expression)["result"]

    def firing(self) -> set:
        alerts = self.get("/api/v1/alerts")["alerts"]
        return {alert["labels"]["alertname"] for alert in alerts if alert["state"] == "firing"}

    def stop(self, name: str) -> None:
        process = self.running.pop(name)
        process.terminate()
        process.wait(30)


def wait_until(what: str, condition) -> None:
    end = time.monotonic() + DEADLINE
    while time.monotonic() < end:
        try:
            if condition():
                return
        except OSError:
            pass
        time.sleep(0.3)
    raise SystemExit(f"FAILED: not in time: {what}")


def check_dashboard(swarm: Swarm) -> None:
    dashboard = json.loads((ROOT / "observe/grafana/dashboards/potluck.json").read_text())
    count = 0
    for panel in dashboard["panels"]:
        for target in panel.get("targets", []):
            expression = target["expr"].replace("$instance", ".*")
            if panel["title"] not in MAY_BE_EMPTY:
                # A rate needs two samples.
                wait_until(f"a value for {panel['title']}: {expression}", lambda: swarm.values(expression))
            count += 1
    print(f"{count} queries of the dashboard have values")


def check_help(swarm: Swarm) -> None:
    for name, port in swarm.metrics.items():
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=10) as answer:
            text = answer.read()
        checked = subprocess.run(["promtool", "check", "metrics"], input=text, capture_output=True)
        if checked.returncode != 0:
            raise SystemExit(f"FAILED: promtool on {name}: {checked.stderr.decode()}")
    print("promtool accepts the metrics of every service")


def stage(swarm: Swarm, alert: str, change, restore=lambda: None) -> None:
    change()
    wait_until(f"{alert} fires", lambda: alert in swarm.firing())
    print(f"{alert} fires")
    restore()


def run(swarm: Swarm) -> None:
    swarm.start_index()
    for name in ("one", "two", "three"):
        swarm.start_peer(name)
    swarm.start_prometheus()
    up = lambda: len(swarm.values('up{job=~"potluck-.*"} == 1')) == 4
    wait_until("Prometheus reads all services", up)

    content = swarm.folder / "content.bin"
    content.write_bytes(os.urandom(20_000_000))
    for name in ("one", "two"):
        swarm.command(name, "share", str(content))
    swarm.command("three", "get", "content.bin", "-o", str(swarm.folder / "copy.bin"))
    got = 'potluck_peer_received_bytes_total >= 20000000'
    wait_until("the download shows", lambda: swarm.values(got))
    wait_until("two scrapes", lambda: swarm.values("rate(potluck_peer_received_bytes_total[1m]) > 0"))
    check_help(swarm)
    check_dashboard(swarm)
    if swarm.firing():
        raise SystemExit(f"FAILED: alerts in a healthy swarm: {swarm.firing()}")

    stage(swarm, "PotluckPeerNotRegistered", lambda: swarm.stop("index"), swarm.start_index)
    healthy = lambda: not {"PotluckPeerNotRegistered", "PotluckDown"} & swarm.firing()
    wait_until("the peers register again", healthy)
    stage(swarm, "PotluckDown", lambda: swarm.stop("two"))


def main() -> None:
    if not (shutil.which("prometheus") and shutil.which("promtool")):
        print("skipped: prometheus is not installed")
        return
    programs = Path(sys.argv[1] if len(sys.argv) > 1 else ROOT / "target/debug").resolve()
    rules = ["promtool", "test", "rules", ROOT / "observe/alerts_test.yml"]
    subprocess.run(rules, check=True, stdout=subprocess.DEVNULL)
    print("promtool: each alert fires when it must, and not before")
    with tempfile.TemporaryDirectory(prefix="potluck-observe-") as folder:
        swarm = Swarm(programs, Path(folder))
        try:
            run(swarm)
        except BaseException:
            for name in swarm.running:
                log = (swarm.folder / f"{name}.log").read_text()
                print(f"== {name}\n{log[-3000:]}", file=sys.stderr)
            raise
        finally:
            for process in swarm.running.values():
                process.kill()
                process.wait()


if __name__ == "__main__":
    main()
