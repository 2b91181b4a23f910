"""Links of stated rates between nodes, all inside network namespaces of this program's own.

A node is a namespace with one interface, `eth0`. The switch is a Linux bridge in one more namespace that has no way out. Each link is
shaped in both directions by a token bucket where packets enter it: on the node's `eth0` for what it sends and on the bridge's end for
what it receives. No address, route or interface of the machine itself is touched.

Names begin with `plb<pid>-`, so that runs don't meet, and what a killed run left behind can be told from what is in use.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import subprocess
from dataclasses import dataclass, field
from pathlib import Path

from .scenario import Link

BURST = 32 * 1024
"""Bytes that may leave at line speed after a pause: 2.6 ms of 100 Mbit/s. Big enough that timers, which fire late on a busy
machine, cost no rate; small enough to give nobody a head start (0.05 % of 64 MiB)."""

QUEUE_SECONDS = 0.05
"""Length of the queue before each link, as time at its rate: what switches and home routers have, some hundred packets at 100 Mbit/s.
Both systems meet the same drops."""

MIN_QUEUE = 64 * 1024
"""Least queue in bytes, so that a slow link still takes one of the kernel's big segments."""

SEGMENT = 16 * 1024
"""Largest run of packets that the kernel handles as one, as network cards do too (segmentation offload). Less than the bucket, which
would cut longer ones into packets and set a timer for each: on two processors those timers, not the links, would be the limit."""

SUBNET = "10.77.0"
"""First three bytes of the addresses; they exist only inside the namespaces."""

_PREFIX = re.compile(r"^plb(\d+)-")


class NetworkError(Exception):
    """The links could not be made."""


@dataclass
class Node:
    """A machine on the switch."""

    name: str
    namespace: str
    address: str
    port: str
    """The bridge's end of its link."""
    link: Link
    home: Path = field(default_factory=Path)

    def command(self, *args: str) -> list[str]:
        """`args` as run inside this node; it becomes the process itself and dies with this program."""
        return ["ip", "netns", "exec", self.namespace, "setpriv", "--pdeathsig", "KILL", *args]


@dataclass(frozen=True)
class Traffic:
    """Bytes of Ethernet frames that a node sent and received."""

    sent: int
    received: int


class Network:
    """The switch and its nodes. Use as a context manager: everything is gone at its end, whatever happened."""

    def __init__(self, congestion_control: str | None = None):
        """`congestion_control` for TCP; `None` is the machine's own, which new namespaces inherit."""
        self._prefix = f"plb{os.getpid()}-"
        self._switch = self._prefix + "sw"
        self._namespaces: list[str] = []
        self._congestion_control = congestion_control
        self.nodes: list[Node] = []

    def __enter__(self) -> "Network":
        try:
            self._add_namespace(self._switch)
            self._in(self._switch, "link", "add", "br0", "type", "bridge", "stp_state", "0", "forward_delay", "0",
                     "mcast_snooping", "0")
            self._in(self._switch, "link", "set", "br0", "up")
            _bypass_firewall(self._switch)
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Removes every namespace; the links go with them."""
        self.nodes.clear()
        while self._namespaces:
            name = self._namespaces.pop()
            subprocess.run(["ip", "netns", "del", name], check=False, capture_output=True)

    def add(self, name: str, link: Link) -> Node:
        """A node with a link of its own."""
        number = len(self.nodes) + 1
        node = Node(
            name=name,
            namespace=self._prefix + name,
            address=f"{SUBNET}.{number}",
            port=f"v{number}",
            link=link,
        )
        self._add_namespace(node.namespace)
        segment = ("gso_max_size", str(SEGMENT))
        self._in(self._switch, "link", "add", node.port, *segment, "type", "veth", "peer", "name", "eth0", *segment,
                 "netns", node.namespace)
        self._in(self._switch, "link", "set", node.port, "master", "br0", "up")
        self._in(node.namespace, "addr", "add", f"{node.address}/24", "dev", "eth0")
        self._in(node.namespace, "link", "set", "eth0", "up")
        _shape(node.namespace, "eth0", link.up)
        _shape(self._switch, node.port, link.down)
        self.nodes.append(node)
        return node

    def traffic(self, node: Node) -> Traffic:
        """What went through the node's token buckets since it was made, headers of each packet included."""
        return Traffic(_queued_bytes(node.namespace, "eth0"), _queued_bytes(self._switch, node.port))

    def drops(self) -> int:
        """Packets dropped by full queues, all links together."""
        return sum(
            _queue(namespace, device)["drops"]
            for node in self.nodes
            for namespace, device in ((node.namespace, "eth0"), (self._switch, node.port))
        )

    def _add_namespace(self, name: str) -> None:
        _run("ip", "netns", "add", name)
        self._namespaces.append(name)
        self._in(name, "link", "set", "lo", "up")
        _run("ip", "netns", "exec", name, "sysctl", "-qw", "net.ipv6.conf.all.disable_ipv6=1",
             "net.ipv6.conf.default.disable_ipv6=1")
        if self._congestion_control:
            _run("ip", "netns", "exec", name, "sysctl", "-qw", f"net.ipv4.tcp_congestion_control={self._congestion_control}")

    @staticmethod
    def _in(namespace: str, *args: str) -> None:
        _run("ip", "-n", namespace, *args)


def remove_leftovers() -> list[str]:
    """Removes namespaces of runs whose process is gone; their names."""
    removed = []
    for line in _run("ip", "netns", "list").splitlines():
        name = line.split()[0] if line.split() else ""
        match = _PREFIX.match(name)
        if match and not Path(f"/proc/{match[1]}").exists():
            with contextlib.suppress(NetworkError):
                _run("ip", "netns", "del", name)
                removed.append(name)
    return removed


def _bypass_firewall(namespace: str) -> None:
    """Frames on the switch need no firewall's opinion; a kernel without one for bridges has no such setting."""
    for name in ("iptables", "ip6tables", "arptables"):
        with contextlib.suppress(NetworkError):
            _run("ip", "netns", "exec", namespace, "sysctl", "-qw", f"net.bridge.bridge-nf-call-{name}=0")


def _shape(namespace: str, device: str, rate: float) -> None:
    queue = max(MIN_QUEUE, int(rate / 8 * QUEUE_SECONDS))
    _run("tc", "-n", namespace, "qdisc", "add", "dev", device, "root", "tbf", "rate", f"{int(rate)}bit",
         "burst", str(BURST), "limit", str(queue))


def _queue(namespace: str, device: str) -> dict:
    queues = json.loads(_run("tc", "-n", namespace, "-s", "-j", "qdisc", "show", "dev", device))
    return next(queue for queue in queues if queue["kind"] == "tbf")


def _queued_bytes(namespace: str, device: str) -> int:
    return int(_queue(namespace, device)["bytes"])


def _run(*command: str) -> str:
    result = subprocess.run(command, check=False, capture_output=True, text=True)
    if result.returncode != 0:
        raise NetworkError(f"{' '.join(command)}: {result.stderr.strip() or result.returncode}")
    return result.stdout
