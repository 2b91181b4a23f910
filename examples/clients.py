"""Runs the shell blocks of the book's pages about clients, and compares the answers with the pages.

    clients.py BIN      BIN: the folder of the programs

A page is a session: its `sh` blocks run in order, in one shell, against real services on free ports.
A `json` block is the answer of the `sh` block before it. Its keys must be those of the real answer,
and so must its values, except those that differ from run to run. A line `…` stands for keys that the
page leaves out, and `…` at the end of a text for the rest of it. Other responses of a stream than
those in the page are ignored. The pages must call every method of every service.
"""

import json
import os
import re
import signal
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path

DOCS = Path(__file__).resolve().parent.parent / "docs"
PAGES = ["clients.md", *(f"clients/{name}-service.md" for name in ("index", "peer", "control", "network"))]
PORTS = ("1313", "1414", "12349", "12350")
FILES = {"numbers.txt": 100_000, "letters.txt": 50_000}
# Values that differ from run to run.
VOLATILE = re.compile(
    "token|peerId|memberId|clusterId|digest|version|certificate|authority|revocations.*|.*Ms|.*UnixSeconds|"
    "bytesPerSecond|bytesDone|.*Bytes|unitsDone|units|requests|peers"
)
# Keys that an answer has only if their value is not 0, which depends on the time.
OPTIONAL = {"reachability", "uploadedBytes", "watchers"}
BLOCK = re.compile(r"^```(sh|json|text)\n(.*?)^```$", re.M | re.S)
METHOD = re.compile(r"(potluck\.v1\.\w+|grpc\.health\.v1\.Health)/(\w+)")
MARK = "\x1e"
# Prints all methods of all services, after the pages have started these.
LIST_METHODS = r'''
for service in $(grpcurl -plaintext 127.0.0.1:1313 list); do
  grpcurl -plaintext 127.0.0.1:1313 list $service
done
grpcurl -plaintext 127.0.0.1:12349 list potluck.v1.PeerService
grpcurl -plaintext -unix ~/.local/share/potluck/peer-12349/control.sock list potluck.v1.ControlService
keys=~/.config/potluck/network
grpcurl -cacert $keys/ca.crt -cert $keys/member.crt -key $keys/member.key \
  -authority index.potluck.internal 127.0.0.1:1414 list potluck.v1.NetworkService'''


def free_ports():
    """As many free ports as the pages use."""
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in PORTS]
    ports = [str(s.getsockname()[1]) for s in sockets]
    for s in sockets:
        s.close()
    return dict(zip(PORTS, ports))


def wait_until(what, condition):
    deadline = time.monotonic() + 60
    while not condition():
        if time.monotonic() > deadline:
            sys.exit(f"clients: {what} did not happen within a minute")
        time.sleep(0.05)


class Lab:
    """The services that the pages start, and what the pages' paths and ports are here."""

    def __init__(self, programs, folder):
        self.folder = folder
        self.servers = []
        self.ports = free_ports()
        home = folder / "home"
        home.mkdir()
        for name, lines in FILES.items():
            (folder / name).write_text("".join(f"{n}\n" for n in range(1, lines + 1)))
        self.environment = {
            key: value for key, value in os.environ.items() if not key.startswith(("POTLUCK", "XDG"))
        }
        self.environment |= {
            "HOME": str(home),
            "PATH": f"{programs}:{os.environ['PATH']}",
            "POTLUCK_INDEX_LISTEN": f"127.0.0.1:{self.ports['1313']}",
            "POTLUCK_PEER_LISTEN": f"127.0.0.1:{self.ports['12349']}",
        }

    def localize(self, text):
        """The text of a page with the ports and folders of this run."""
        text = text.replace("/tmp/", f"{self.folder}/").replace("~/", f"{self.environment['HOME']}/")
        return re.sub(r"\b(" + "|".join(PORTS) + r")\b", lambda found: self.ports[found[0]], text)

    def generalize(self, text):
        """The opposite: an answer as it reads on the page."""
        for port, here in self.ports.items():
            text = re.sub(rf"\b{here}\b", port, text)
        text = text.replace(self.environment["HOME"], "/home/you")
        return text.replace(f"{self.folder}/", "/tmp/")

    def start(self, command):
        """Starts a service, and waits until it is ready and the index has its files."""
        log = self.folder / f"server-{len(self.servers)}"
        environment = self.environment | {
            "POTLUCK_INDEX": f"http://127.0.0.1:{self.ports['1313']}",
        }
        if "network" in command:
            del environment["POTLUCK_INDEX"]
        with open(log, "wb") as out, open(f"{log}.err", "wb") as err:
            self.servers.append(
                subprocess.Popen(
                    ["sh", "-c", f"exec {self.localize(command)}"], env=environment, stdout=out, stderr=err
                )
            )
        wait_until(f"`{command}` listens", lambda: b"listening on" in log.read_bytes())
        for name in FILES:
            if f"/{name}" in command:
                query = ["potluck", "--index", f"127.0.0.1:{self.ports['1313']}", "--json", "query", name]
                wait_until(
                    f"{name} is registered with its SHA-256",
                    lambda: '"sha256":"' in subprocess.run(
                        query, env=environment, capture_output=True, text=True
                    ).stdout.replace('": "', '":"'),
                )

    def run(self, blocks):
        """Runs blocks of one shell; returns what each wrote."""
        script = ["set -eu", 'grpcurl() { command grpcurl "$@" 2>&1 || [ $? -ge 64 ]; }']
        for block in blocks:
            script += [self.localize(block), f"printf '{MARK}'"]
        done = subprocess.run(
            ["bash", "-c", "\n".join(script)], env=self.environment, cwd=DOCS.parent,
            capture_output=True, text=True, timeout=300,
        )
        if done.returncode != 0:
            sys.exit(f"clients: a block failed: {done.stdout[-2000:]}\n{done.stderr}")
        return [self.generalize(text) for text in done.stdout.split(MARK)[:-1]]

    def stop(self):
        for server in reversed(self.servers):
            server.send_signal(signal.SIGTERM)
        for server in self.servers:
            server.wait(timeout=30)


def messages(text):
    """The JSON documents in a text, one after the other."""
    decoder, rest, found = json.JSONDecoder(), text.strip(), []
    while rest:
        value, end = decoder.raw_decode(rest)
        found.append(value)
        rest = rest[end:].lstrip()
    return found


def documented(text):
    """The JSON documents of a page. A line `…` becomes a key `…`."""
    lines = [line.strip().rstrip(",").replace("…", '"…": 0') if line.strip(" ,") == "…"
             else line.strip().rstrip(",") for line in text.strip().split("\n")]
    depth, result = 0, []
    for line, following in zip(lines, [*lines[1:], "}"]):
        depth += line.endswith(("{", "[")) - line.startswith(("}", "]"))
        ends = line.endswith(("{", "[")) or following.startswith(("}", "]")) or depth == 0
        result.append(line if ends else line + ",")
    return messages("\n".join(result))


def differences(page, real, key="the answer"):
    """What is different between the answer of the page and the real one."""
    if isinstance(page, dict) and isinstance(real, dict):
        partial = "…" in page
        for name in page.keys() - {"…"} - real.keys() - OPTIONAL:
            yield f"{key} has no `{name}`"
        if not partial:
            for name in real.keys() - page.keys() - OPTIONAL:
                yield f"`{name}` of {key} is missing in the page"
        for name in page.keys() & real.keys():
            yield from differences(page[name], real[name], name)
    elif isinstance(page, list) and isinstance(real, list):
        if len(page) != len(real):
            yield f"{key} has {len(real)} elements, not {len(page)}"
        for one, other in zip(page, real):
            yield from differences(one, other, key)
    elif type(page) is not type(real):
        yield f"{key} is {real!r}, not {page!r}"
    elif page != real and not VOLATILE.fullmatch(key):
        shortened = isinstance(page, str) and page.endswith("…") and str(real).startswith(page[:-1])
        if not shortened:
            yield f"{key} is {real!r}, not {page!r}"


def compare(kind, page, real):
    """The differences between an answer in the page and the real output."""
    if kind == "text":
        lines = [line.rstrip() for line in page.strip().split("\n")]
        for line in lines:
            if line.strip() != "…" and line not in real:
                yield f"no line `{line}` in:\n{real}"
        return
    # `-max-time` ends a stream with this error.
    real = re.split(r"^ERROR:\n  Code: DeadlineExceeded", real, flags=re.M)[0]
    try:
        answers = messages(real)
    except json.JSONDecodeError:
        yield f"not JSON:\n{real}"
        return
    rest = list(answers)
    for message in documented(page):
        found = None
        while rest and found is None:
            candidate = rest.pop(0)
            problems = list(differences(message, candidate))
            if not problems:
                found = candidate
        if found is None:
            yield "; ".join(problems) if answers else "there was no answer"
            return


def main():
    programs = Path(sys.argv[1]).resolve()
    called, problems, calls = set(), [], 0
    with tempfile.TemporaryDirectory(prefix="clients-") as folder:
        lab = Lab(programs, Path(folder))
        try:
            for page in PAGES:
                path = DOCS / page
                text = path.read_text()
                blocks = list(BLOCK.finditer(text))
                shell = [block for block in blocks if block[1] == "sh"]
                commands = []
                for block in shell:
                    if re.match(r"potluck (index|peer)\b", block[2]):
                        if commands:
                            sys.exit("clients: services must start before the calls of a page")
                        for line in block[2].strip().split("\n"):
                            lab.start(line)
                    elif block[2].startswith("potluck network create"):
                        lab.run([block[2]])
                    else:
                        commands.append(block)
                outputs = dict(zip((block.start() for block in commands), lab.run([b[2] for b in commands])))
                last = None
                for block in blocks:
                    if block[1] == "sh":
                        last = block
                        called |= set(METHOD.findall(block[2]))
                        calls += block[2].count("grpcurl ")
                        continue
                    for problem in compare(block[1], block[2], outputs[last.start()]):
                        problems.append(f"docs/{page}: after `{last[2].strip()}`: {problem}")
            listed = {tuple(line.rsplit(".", 1)) for line in lab.run([LIST_METHODS])[0].split()}
        finally:
            lab.stop()
    for service, method in sorted(listed - called):
        problems.append(f"no page of docs/clients calls {service}/{method}")
    for problem in problems:
        print(f"clients: {problem}", file=sys.stderr)
    if problems:
        sys.exit(1)
    print(f"clients: {len(listed)} methods, {calls} calls as in docs/clients")


if __name__ == "__main__":
    main()
