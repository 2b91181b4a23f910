#!/usr/bin/env python3
"""`snapshot_download` of huggingface_hub through a gateway, and from nginx.

    bench/gateway/run.py --potluck target/release/potluck --stand-in target/debug/potluck-stand-in \
        [--mib 1024] [--rounds 3] [--results FILE.md]

nginx has the files of the same repository on disk; what the hub says about them comes from the stand-in
in both cases. Needs nginx, and huggingface_hub in the Python that runs this. Prints a table.
"""

import argparse
import hashlib
import json
import os
import pathlib
import platform
import shutil
import socket
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request

FILES = 4
TICKS = os.sysconf("SC_CLK_TCK")
CLIENT = """
import os, sys, time
from huggingface_hub import snapshot_download
before, cpu = time.monotonic(), time.process_time()
snapshot_download("org/repo", local_dir=sys.argv[1], max_workers=4)
print(time.monotonic() - before, time.process_time() - cpu)
"""


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def cpu_seconds(pid):
    """User and system time of a process."""
    fields = pathlib.Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / TICKS


class Bench:
    def __init__(self, args):
        self.args = args
        self.work = pathlib.Path(tempfile.mkdtemp(prefix="gateway-bench-", dir=args.folder))
        self.processes = []

    def start(self, *command):
        log = open(self.work / f"{len(self.processes)}.log", "w+")
        process = subprocess.Popen(command, stdout=log, stderr=log, env=self.environment())
        self.processes.append(process)
        return process, log

    def environment(self):
        return {**os.environ, "HOME": str(self.work), "XDG_DATA_HOME": str(self.work / "data")}

    def server(self, *command):
        """Starts a program of ours; its process and its address."""
        process, log = self.start(*command)
        deadline = time.monotonic() + 120
        while time.monotonic() < deadline:
            log.seek(0)
            for line in log.read().splitlines():
                if line.startswith("listening on "):
                    return process, line.split()[-1]
            time.sleep(0.1)
        raise SystemExit(f"{command[0]} does not start")

    def gateway(self, name, hub, index):
        return self.server(
            self.args.potluck, "gateway", "--listen", "127.0.0.1:0", "--home", str(self.work / name),
            "--hf", f"http://{hub}", "--index", f"http://{index}")

    def nginx(self, hub):
        """nginx as the hub, with the content from its own disk."""
        port = free_port()
        storage = self.work / "storage"
        storage.mkdir()
        for path in (self.work / "repo").iterdir():
            digest = hashlib.sha256(path.read_bytes()).hexdigest()
            os.link(path, storage / digest)
        host = hub.split(":")[1]
        (self.work / "nginx.conf").write_text(f"""
daemon off; pid {self.work}/nginx.pid; error_log {self.work}/nginx.log; user root;
events {{}}
http {{
  access_log off; sendfile on;
  client_body_temp_path {self.work}/t1; proxy_temp_path {self.work}/t2; fastcgi_temp_path {self.work}/t3;
  uwsgi_temp_path {self.work}/t4; scgi_temp_path {self.work}/t5;
  server {{
    listen 127.0.0.1:{port};
    location /_storage/ {{ alias {storage}/; }}
    location / {{ proxy_pass http://{hub}; proxy_redirect ~^http://localhost:\\d+/(.*)$ http://localhost:{port}/$1; }}
  }}
}}
""")
        process, _ = self.start("nginx", "-c", str(self.work / "nginx.conf"))
        time.sleep(1)
        return process, f"127.0.0.1:{port}"

    def client(self, address):
        """Seconds and CPU seconds of `snapshot_download` into an empty folder."""
        target = self.work / "copy"
        shutil.rmtree(target, ignore_errors=True)
        environment = {**self.environment(), "HF_ENDPOINT": f"http://{address}",
                       "HF_HUB_DISABLE_PROGRESS_BARS": "1", "HF_HUB_DISABLE_XET": "1"}
        done = subprocess.run([sys.executable, "-c", CLIENT, str(target)], env=environment,
                              capture_output=True, text=True)
        if done.returncode:
            raise SystemExit(f"the client of {address} failed:\n{done.stderr}")
        for path in (self.work / "repo").iterdir():
            if (target / path.name).stat().st_size != path.stat().st_size:
                raise SystemExit(f"{path.name} is incomplete")
        seconds, cpu = done.stdout.split()[-2:]
        return float(seconds), float(cpu)

    def first_byte(self, address):
        """Milliseconds to the first byte of a range, with the hub's access check: median and 99 %."""
        times = []
        url = f"http://{address}/org/repo/resolve/main/model-0.safetensors"
        for at in range(300):
            request = urllib.request.Request(url, headers={"Range": f"bytes={at * 1000}-"})
            before = time.monotonic()
            with urllib.request.urlopen(request) as response:
                response.read(1)
                times.append((time.monotonic() - before) * 1000)
        times.sort()
        return times[len(times) // 2], times[len(times) * 99 // 100]

    def hub_bytes(self, hub):
        with urllib.request.urlopen(f"http://{hub}/_log") as response:
            return sum(entry["bytes"] for entry in json.load(response))

    def run(self):
        size = self.args.mib << 20
        repo = self.work / "repo"
        repo.mkdir()
        for number in range(FILES):
            with open(repo / f"model-{number}.safetensors", "wb") as file:
                for _ in range(size // FILES >> 20):
                    file.write(os.urandom(1 << 20))
        gib = size / (1 << 30)
        _, hub = self.server(self.args.stand_in, "--repository", f"models/org/repo={repo}")
        _, index = self.server(self.args.potluck, "index", "--listen", "127.0.0.1:0", "--store", "memory")
        first, first_address = self.gateway("first", hub, index)
        second, second_address = self.gateway("second", hub, index)
        _, nginx = self.nginx(hub)
        rows = []

        def measure(name, address, process=None):
            before = cpu_seconds(process.pid) if process else 0
            seconds, client_cpu = self.client(address)
            cpu = f"{(cpu_seconds(process.pid) - before) / gib:.2f}" if process else ""
            rows.append((name, f"{seconds:.2f}", f"{size / seconds / 1e6:.0f}", cpu, f"{client_cpu / gib:.2f}"))
            print(*rows[-1], sep="\t", flush=True)
            return seconds

        measure("gateway, from the hub", first_address, first)
        sent = self.hub_bytes(hub)
        measure("second gateway, from the first", second_address, second)
        again = self.hub_bytes(hub) - sent
        cached, direct = [], []
        for _ in range(self.args.rounds):
            cached.append(measure("gateway, from its cache", first_address, first))
            direct.append(measure("nginx", nginx))
        median, late = self.first_byte(first_address)
        ratio = statistics.median(direct) / statistics.median(cached)
        lines = [
            f"{size >> 20} MiB in {FILES} files, {os.cpu_count()} processors, Linux {platform.release()}, "
            f"load {os.getloadavg()[0]:.1f} at the end.", "",
            "| client | s | MB/s | CPU s/GiB of the gateway | CPU s/GiB of the client |", "|---|---|---|---|---|",
            *(f"| {' | '.join(row)} |" for row in rows), "",
            f"The cache is {ratio:.2f} times as fast as nginx (medians). The hub sent {sent / size:.2f} copies "
            f"for the first client, and {again / size:.3f} for the second gateway. First byte with the access "
            f"check: {median:.1f} ms (median), {late:.1f} ms (99 %)."]
        text = "\n".join(lines) + "\n"
        print(text)
        if self.args.results:
            pathlib.Path(self.args.results).write_text(text)

    def close(self):
        for process in self.processes:
            process.terminate()
        for process in self.processes:
            process.wait()
        shutil.rmtree(self.work, ignore_errors=True)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--potluck", default="target/release/potluck")
    parser.add_argument("--stand-in", default="target/debug/potluck-stand-in")
    parser.add_argument("--mib", type=int, default=1024)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--folder", help="where the files go [default: the folder for temporary files]")
    parser.add_argument("--results", help="a file for the table")
    bench = Bench(parser.parse_args())
    try:
        bench.run()
    finally:
        bench.close()


if __name__ == "__main__":
    main()
