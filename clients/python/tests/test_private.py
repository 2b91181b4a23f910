"""A private network: certificates at both ends, and names that are verified."""

from __future__ import annotations

import os
import socket
import subprocess
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Iterator

import pytest
from conftest import Service, content, program, running

import potluck
from potluck import Client, Credentials, Provider, Registration
from potluck.credentials import peer_name
from potluck.identity import hash_chunks
from potluck.transport import Address

DATA = content((1 << 20) + 5, 8)


@dataclass
class Network:
    folder: Path
    """The credentials of a member."""
    index: Service
    peer: Service


def potluck_command(*arguments: str) -> str:
    command = [program("potluck"), *arguments]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


def create(work: Path, name: str, port: int) -> Path:
    """A network with a member: its folder. The credentials are beside it, in `member`."""
    folder = work / name / "network"
    code = potluck_command("network", "create", str(folder), "--index", f"https://127.0.0.1:{port}")
    (work / name / "code").write_text(code)
    return folder


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


@pytest.fixture(scope="session")
def network(work: Path) -> Iterator[Network]:
    port = free_port()
    folder = create(work, "private", port)
    member = work / "private/member"
    (work / "private/model.bin").write_bytes(DATA)
    index = [
        program("potluck-index"),
        "--listen",
        f"127.0.0.1:{port}",
        "--network",
        str(folder),
        "--store",
        "memory",
    ]
    with running(work / "private/index", *index) as index_service:
        potluck_command(
            "--credentials",
            str(member),
            "network",
            "join",
            "--code-file",
            str(work / "private/code"),
        )
        home = work / "private/peer"
        peer = [
            program("potluck-peer"),
            "--listen",
            "127.0.0.1:0",
            "--home",
            str(home),
            "--credentials",
            str(member),
        ]
        with running(home, *peer, "--share", str(work / "private/model.bin")) as peer_service:
            yield Network(member, index_service, peer_service)


async def found(client: Client) -> potluck.FoundFile:
    """The file, once its peer has registered it."""
    while True:
        for file in await client.query(name="model.bin"):
            if file.providers:
                return file


async def test_a_member_downloads(network: Network, tmp_path: Path) -> None:
    credentials = Credentials.load(network.folder)
    assert "PRIVATE" not in repr(credentials)
    async with Client(credentials=credentials) as client:
        file = await found(client)
        done = await client.download(file, tmp_path / "copy")
    assert (tmp_path / "copy").read_bytes() == DATA
    (report,) = done.peers
    assert report.provider.peer_id and str(report.provider.address) == network.peer.address


async def test_a_peer_of_the_member_registers(network: Network) -> None:
    credentials = Credentials.load(network.folder)
    async with Client(credentials=credentials) as client:
        identity = await client.enroll_peer()
        assert identity == replace(
            await client.enroll_peer(identity.key), certificate=identity.certificate
        )
        assert "PRIVATE" not in repr(identity)
    async with Client(credentials=credentials.with_identity(identity)) as client:
        lease = await client.register([Registration.of(hash_chunks([b"new"]), ["new.txt"])], port=9)
        assert (lease.peer_id, lease.token) == (identity.peer_id, b"")
        (file,) = await client.query(name="new.txt")
        assert [provider.peer_id for provider in file.providers] == [identity.peer_id]
        assert await client.renew(lease) > 0
        assert await client.unregister() == 1


async def test_another_peer_at_the_address_is_refused(network: Network, tmp_path: Path) -> None:
    """The name in the certificate follows from the id that the index returned."""
    async with Client(credentials=Credentials.load(network.folder)) as client:
        file = await found(client)
        impostor = Provider(bytes(32), Address.parse(network.peer.address), complete=True)
        bare = replace(file, providers=())
    async with Client() as nobody:
        nobody._credentials = Credentials.load(network.folder)
        with pytest.raises(potluck.UnavailableError):
            await nobody.download(bare, tmp_path / "copy", providers=[impostor], patience=2)
        with pytest.raises(potluck.InvalidRequestError, match="peer id"):
            await nobody.download(bare, tmp_path / "copy", providers=[network.peer.address])
        assert not (tmp_path / "copy").exists()
        await nobody.download(bare, tmp_path / "copy", providers=file.providers)
    assert (tmp_path / "copy").read_bytes() == DATA


async def test_without_a_certificate_of_the_network_there_is_no_answer(
    network: Network, work: Path
) -> None:
    credentials = Credentials.load(network.folder)
    async with Client(network.index.address, timeout=3) as plaintext:
        with pytest.raises(potluck.PotluckError):
            await plaintext.search("")
    other = create(work, "other", 1)
    stranger = replace(credentials, authority=(other / "ca.crt").read_bytes())
    async with Client(credentials=stranger, timeout=3) as client:
        with pytest.raises(potluck.UnavailableError):
            await client.search("")


def test_credentials_are_never_sent_in_plaintext(network: Network) -> None:
    credentials = Credentials.load(network.folder)
    with pytest.raises(potluck.InvalidRequestError):
        Client(f"http://{network.index.address}", credentials=credentials)
    with pytest.raises(potluck.InvalidRequestError):
        Client(f"https://{network.index.address}")


def test_a_folder_without_credentials_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(FileNotFoundError):
        Credentials.load(tmp_path)
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    with pytest.raises(FileNotFoundError, match="potluck/network"):
        Credentials.load()
    (tmp_path / "network.json").write_text('{"version": 2}')
    with pytest.raises(ValueError, match="newer"):
        Credentials.load(tmp_path)


def test_names_of_peers_are_those_of_the_protocol() -> None:
    assert peer_name(bytes(32)) == "a" * 52 + ".peer.potluck.internal"
    assert os.path.commonprefix([peer_name(b"\xff" * 32), "7777"]) == "7777"
