"""Addresses and gRPC channels."""

from __future__ import annotations

import ipaddress
import re
from dataclasses import dataclass
from typing import List, Optional, Tuple, Union
from urllib.parse import urlsplit

import grpc
import grpc.aio

from .credentials import INDEX_NAME, Credentials, peer_name
from .errors import PotluckError, error
from .v1 import common_pb2

DEFAULT_PORT = 1313
"""The port of an index."""

MAX_PEER_MESSAGE = 2 << 20
"""The largest message of a peer, in bytes. A chunk has 1 MiB, two bitfields 512 KiB each."""

MAX_INDEX_MESSAGE = 16 << 20
"""The largest message of an index, in bytes. A page of 100 files takes about 1 MiB."""

_Ip = Union[ipaddress.IPv4Address, ipaddress.IPv6Address]

_HOST_NAME = re.compile(r"[A-Za-z0-9_]([A-Za-z0-9_.-]{0,252}[A-Za-z0-9_])?")


@dataclass(frozen=True)
class Address:
    """The address of a service: an IP address or a host name, and a port."""

    host: str
    port: int

    def __post_init__(self) -> None:
        # Anything else could be another kind of target for gRPC, such as `unix:` and a path.
        if not 0 < self.port < 65536 or (self._ip is None and not _HOST_NAME.fullmatch(self.host)):
            raise error("INVALID_ADDRESS", f"{self.host!r} port {self.port} is not an address")

    @classmethod
    def parse(cls, text: str, default_port: Optional[int] = None) -> Address:
        """Parses HOST:PORT, with an IPv6 address in brackets, or a URL with them."""
        try:
            parts = urlsplit(text if "://" in text else f"//{text}")
            port = default_port if parts.port is None else parts.port
        except ValueError as failure:
            raise error("INVALID_ADDRESS", f"{text!r}: {failure}") from failure
        if not parts.hostname or port is None or parts.path not in ("", "/"):
            raise error("INVALID_ADDRESS", f"{text!r} is not HOST:PORT or http://HOST:PORT")
        return cls(parts.hostname, port)

    @property
    def _ip(self) -> Optional[_Ip]:
        try:
            return ipaddress.ip_address(self.host)
        except ValueError:
            return None

    @property
    def target(self) -> str:
        """The target for gRPC."""
        ip = self._ip
        if ip is None:
            return f"dns:///{self.host}:{self.port}"
        return f"ipv{ip.version}:{self}"

    @property
    def is_loopback(self) -> bool:
        """Whether it is on this machine."""
        ip = _unmapped(self._ip)
        return self.host == "localhost" if ip is None else ip.is_loopback

    @property
    def is_local(self) -> bool:
        """Whether it means something else on each machine, or no single machine."""
        ip = _unmapped(self._ip)
        if ip is None:
            return self.host == "localhost"
        return ip.is_loopback or ip.is_link_local or ip.is_multicast or ip.is_unspecified

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


def _unmapped(ip: Optional[_Ip]) -> Optional[_Ip]:
    if isinstance(ip, ipaddress.IPv6Address) and ip.ipv4_mapped is not None:
        return ip.ipv4_mapped
    return ip


@dataclass(frozen=True)
class Provider:
    """A peer that has a file, or part of it, as the index says."""

    peer_id: bytes
    """Its public id; empty if only its address was given."""
    address: Address
    complete: bool

    @classmethod
    def from_message(cls, message: common_pb2.Provider) -> Optional[Provider]:
        """None if the index gave no valid address."""
        try:
            address = Address(message.address.host, message.address.port)
        except PotluckError:
            return None
        return cls(message.peer_id, address, message.complete)

    def __str__(self) -> str:
        return f"{self.peer_id.hex()[:12]} at {self.address}" if self.peer_id else str(self.address)


def index_channel(address: Address, credentials: Optional[Credentials]) -> grpc.aio.Channel:
    """A channel to an index."""
    options = _options(MAX_INDEX_MESSAGE)
    return _channel(address.target, options, credentials, INDEX_NAME)


def peer_channel(provider: Provider, credentials: Optional[Credentials]) -> grpc.aio.Channel:
    """A channel to a peer. In a private network its certificate must have the provider's id."""
    options = _options(MAX_PEER_MESSAGE)
    return _channel(provider.address.target, options, credentials, peer_name(provider.peer_id))


def unix_channel(path: str) -> grpc.aio.Channel:
    """A channel to a Unix socket."""
    return grpc.aio.insecure_channel(f"unix:{path}", options=_options(MAX_INDEX_MESSAGE))


def _options(max_message: int) -> List[Tuple[str, object]]:
    return [
        ("grpc.max_receive_message_length", max_message),
        # No proxies: peers are called directly. A connection must not outlive its channel.
        ("grpc.enable_http_proxy", 0),
        ("grpc.use_local_subchannel_pool", 1),
        # A connection whose other end is gone ends after a minute.
        ("grpc.keepalive_time_ms", 40_000),
        ("grpc.keepalive_timeout_ms", 20_000),
        ("grpc.initial_reconnect_backoff_ms", 250),
        ("grpc.max_reconnect_backoff_ms", 10_000),
    ]


def _channel(
    target: str,
    options: List[Tuple[str, object]],
    credentials: Optional[Credentials],
    name: str,
) -> grpc.aio.Channel:
    if credentials is None:
        return grpc.aio.insecure_channel(target, options=options)
    options = [*options, ("grpc.ssl_target_name_override", name)]
    return grpc.aio.secure_channel(target, credentials.channel_credentials(), options=options)
