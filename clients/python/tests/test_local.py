"""Control of a running peer."""

from __future__ import annotations

from pathlib import Path
from typing import List

import pytest
from conftest import Service, content

import potluck
from potluck import LocalPeer
from potluck.v1 import control_pb2


async def test_a_peer_shares_and_another_gets(
    index: Service, peers: List[Service], work: Path, tmp_path: Path
) -> None:
    path = work / "local.bin"
    path.write_bytes(content(3 << 20, 5))
    async with LocalPeer(peers[0].socket) as one, LocalPeer(peers[1].socket) as two:
        (item,) = await one.share([path])
        status = await one.status()
        assert status.registered and status.index == f"http://{index.address}"
        states: List[int] = []
        done = await two.get(
            item.file.file_id, tmp_path / "copy", progress=lambda t: states.append(t.state)
        )
        assert done.state == states[-1] == control_pb2.TRANSFER_STATE_DONE
        assert (tmp_path / "copy").read_bytes() == path.read_bytes()
        assert done.transfer_id in [transfer.transfer_id for transfer in await two.transfers()]
        assert item.file.file_id in [item.file.file_id for item in await two.library()]
        (removed,) = await two.unshare(path=tmp_path / "copy")
        assert removed.file.file_id == item.file.file_id
        assert len(await one.unshare(id=item.file.file_id)) == 1


async def test_failures_name_their_reason(peers: List[Service], work: Path, tmp_path: Path) -> None:
    (work / "exists").write_text("x")
    async with LocalPeer(peers[0].socket) as peer:
        with pytest.raises(potluck.ShareError) as failure:
            await peer.share([work / "nothing", work / "exists"])
        assert failure.value.reason == "NOT_FOUND"
        assert [item.name for item in failure.value.shared] == ["exists"]
        (item,) = failure.value.shared
        (tmp_path / "copy").write_text("precious")
        with pytest.raises(potluck.TargetError) as refused:
            await peer.get(item.file.file_id, tmp_path / "copy")
        assert refused.value.reason == "TARGET_EXISTS"
        with pytest.raises(potluck.NotFoundError):
            await peer.pause(1 << 40)
        with pytest.raises(potluck.InvalidRequestError):
            await peer.get("abc")
        await peer.unshare(id=item.file.file_id)


async def test_without_a_peer_there_is_no_answer(tmp_path: Path) -> None:
    async with LocalPeer(tmp_path / "control.sock", timeout=5) as peer:
        with pytest.raises(potluck.UnavailableError):
            await peer.status()
