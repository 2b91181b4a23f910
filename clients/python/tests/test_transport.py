"""Addresses, which strangers choose."""

from __future__ import annotations

import pytest

from potluck import InvalidRequestError
from potluck.transport import Address


@pytest.mark.parametrize(
    ("text", "target"),
    [
        ("127.0.0.1:80", "ipv4:127.0.0.1:80"),
        ("http://127.0.0.1:80", "ipv4:127.0.0.1:80"),
        ("[::1]:80", "ipv6:[::1]:80"),
        ("https://index.example:1313/", "dns:///index.example:1313"),
        ("index.example", "dns:///index.example:1313"),
    ],
)
def test_addresses_become_targets(text: str, target: str) -> None:
    assert Address.parse(text, 1313).target == target


@pytest.mark.parametrize(
    "text", ["", "a:b", "a:0", "a:65536", "http://a/b", "unix:/run/x", "a b:1", ":1"]
)
def test_other_texts_are_refused(text: str) -> None:
    with pytest.raises(InvalidRequestError):
        Address.parse(text, 1313)


@pytest.mark.parametrize(
    "host", ["unix:/run/x", "unix", "dns:///a", "/a", "a/b", "", "xds:a", "a,b", "-"]
)
def test_a_host_of_a_stranger_is_never_another_kind_of_target(host: str) -> None:
    try:
        assert Address(host, 5).target == f"dns:///{host}:5"
    except InvalidRequestError:
        return
    assert host == "unix", "a plain name"


@pytest.mark.parametrize(
    ("host", "is_local"),
    [("127.0.0.1", True), ("::1", True), ("::ffff:127.0.0.1", True), ("169.254.169.254", True)]
    + [("0.0.0.0", True), ("224.0.0.1", True), ("fe80::1", True), ("localhost", True)]
    + [("192.0.2.1", False), ("2001:db8::1", False), ("host.example", False)],
)
def test_addresses_that_mean_something_else_on_each_machine(host: str, is_local: bool) -> None:
    assert Address(host, 1).is_local == is_local
