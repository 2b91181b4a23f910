"""Links with given rates between nodes, all inside this program's own network namespaces.

A node is a namespace with one interface, `eth0`. The switch is a Linux bridge in another namespace,
which has no route to the outside. Each link is shaped in both directions by a token bucket where
packets enter it: on the node's `eth0` for outgoing packets and on the bridge's end for incoming
ones. No address, route or interface of the machine itself is changed.

Names begin with `plb<pid>-`, so runs do not collide, and namespaces left by a killed run can be
told from those in use.
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
"""Bytes that may leave at line speed after a pause: 2.6 ms at 100 Mbit/s. Large enough that timers,
which fire late on a busy machine, do not reduce the rate; small enough to give no peer a head start
(0.05 % of 64 MiB)."""

QUEUE_SECONDS = 0.05
"""Length of the queue before each link, as time at its rate. Switches and home routers have similar
queues: a few hundred packets at 100 Mbit/s. Both systems see the same drops."""

MIN_QUEUE = 64 * 1024
"""Minimum length of the queue in bytes, so that a slow link can still hold one of the kernel's
large segments."""

SEGMENT = 16 * 1024
"""Largest segment in bytes that the kernel handles at once (segmentation offload, as network cards
do it). Smaller than the bucket, which would split a larger segment into packets and set a timer for
each: on two processors those timers would be the limit instead of the links."""

SUBNET = "10.77.0"
"""First three bytes of the addresses, which exist only inside the namespaces."""

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
    """The bridge's end of the node's link."""
    link: Link
    home: Path = field(default_factory=Path)

    def command(self, *args: str) -> list[str]:
        """The command that runs `args` inside this node. It becomes the process itself and ends
        with this program."""
        return ["ip", "netns", "exec", self.namespace, "setpriv", "--pdeathsig", "KILL", *args]


@dataclass(frozen=True)
class Traffic:
    """Bytes of Ethernet frames that a node has sent and received."""

    sent: int
    received: int


class Network:
    """The switch and its nodes. Use it as a context manager: it removes everything at its end, also
    after an exception."""

    def __init__(self, congestion_control: str | None = None):
        """`congestion_control` is for TCP; `None` keeps the machine's default, which new namespaces
        inherit."""
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
        """Removes every namespace and thereby the links."""
        self.nodes.clear()
        while self._namespaces:
            name = self._namespaces.pop()
            subprocess.run(["ip", "netns", "del", name], check=False, capture_output=True)

    def add(self, name: str, link: Link) -> Node:
        """Adds a node with its link."""
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
        """Bytes that have passed the node's token buckets, packet headers included."""
        return Traffic(_queued_bytes(node.namespace, "eth0"), _queued_bytes(self._switch, node.port))

    def drops(self) -> int:
        """Total number of packets dropped by full queues."""
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
    """Removes the namespaces of runs whose process has ended; returns their names."""
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
    """Frames on the switch bypass the firewall. A kernel without bridge netfilter has no such
    setting."""
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
