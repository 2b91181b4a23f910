"""Control of the peer on this machine, through the socket that only its owner can open."""

from __future__ import annotations

import os
from pathlib import Path
from types import TracebackType
from typing import (
    TYPE_CHECKING,
    Awaitable,
    Callable,
    Iterable,
    List,
    Optional,
    Sequence,
    Type,
    TypeVar,
    Union,
)

import grpc
import grpc.aio

from .client import AnyId, _parse_hash, _parse_id
from .errors import PotluckError, error, from_rpc
from .peers import read
from .transport import unix_channel
from .v1 import control_pb2, control_pb2_grpc

if TYPE_CHECKING:
    from .v1.control_pb2_grpc import ControlServiceAsyncStub

T = TypeVar("T")


def default_socket(port: int = 12349) -> Path:
    """The control socket of this user's peer on a port."""
    data = os.environ.get("XDG_DATA_HOME") or os.path.expanduser("~/.local/share")
    return Path(data) / "potluck" / f"peer-{port}" / "control.sock"


class ShareError(PotluckError):
    """Some paths could not be shared. `shared` has those that were."""

    def __init__(
        self, failures: Sequence[control_pb2.ShareFailure], shared: List[control_pb2.LibraryItem]
    ) -> None:
        first = failures[0].failure
        text = "; ".join(f"{failed.path}: {failed.failure.message}" for failed in failures)
        super().__init__(first.reason, text)
        self.failures = list(failures)
        self.shared = shared


class LocalPeer:
    """A running peer. Its answers are the messages of control.proto, which documents each field.

    async with LocalPeer() as peer:
        await peer.share(["/data/model.bin"])
        await peer.get(file_id, "/data/copy.bin")
    """

    def __init__(self, socket: Union[str, Path, None] = None, *, timeout: float = 30.0) -> None:
        """Takes the control socket. `timeout` is in seconds, for calls that do not stream."""
        self._socket = os.path.abspath(socket if socket is not None else default_socket())
        self._timeout = timeout
        self._channel: Optional[grpc.aio.Channel] = None

    async def __aenter__(self) -> LocalPeer:
        self._channel = unix_channel(self._socket)
        return self

    async def __aexit__(
        self,
        kind: Optional[Type[BaseException]],
        value: Optional[BaseException],
        trace: Optional[TracebackType],
    ) -> None:
        if self._channel is not None:
            await self._channel.close()
            self._channel = None

    async def status(self) -> control_pb2.GetStatusResponse:
        """The peer's own state. Raises PotluckError."""
        request = control_pb2.GetStatusRequest()
        return await self._call(self._stub().GetStatus(request, timeout=self._timeout))

    async def share(
        self,
        paths: Iterable[Union[str, Path]],
        *,
        strict: bool = False,
        exclude: Sequence[str] = (),
        progress: Optional[Callable[[control_pb2.ShareProgress], None]] = None,
        registered_within: float = 30.0,
    ) -> List[control_pb2.LibraryItem]:
        """Shares files and folders in place, and waits until the index knows them.

        `strict` refuses a folder with an entry that cannot be shared, `exclude` has patterns of
        `.gitignore`. `registered_within` is how many seconds to wait for the index; 0: not at all.

        Raises ShareError with what could not be shared, or another PotluckError.
        """
        request = control_pb2.ShareRequest(
            paths=[os.path.abspath(path) for path in paths],
            options=control_pb2.ShareOptions(strict=strict, exclude=exclude),
        )
        shared: List[control_pb2.LibraryItem] = []
        failures: List[control_pb2.ShareFailure] = []
        async for event in read(self._stub().Share(request), None):
            if event.HasField("shared"):
                shared.append(event.shared)
            elif event.HasField("failed"):
                failures.append(event.failed)
            elif event.HasField("progress") and progress is not None:
                progress(event.progress)
        if failures:
            raise ShareError(failures, shared)
        if registered_within:
            await self.await_registration(registered_within)
        return shared

    async def await_registration(self, seconds: float = 30.0) -> None:
        """Waits until the index has acknowledged everything that the peer shares.

        Raises PotluckError with the reason if it has not.
        """
        request = control_pb2.AwaitRegistrationRequest(timeout_ms=int(seconds * 1000))
        call = self._stub().AwaitRegistration(request, timeout=seconds + self._timeout)
        answer = await self._call(call)
        if not answer.registered and answer.HasField("failure"):
            raise error(answer.failure.reason, answer.failure.message)

    async def unshare(
        self, *, id: Optional[AnyId] = None, path: Union[str, Path, None] = None
    ) -> List[control_pb2.LibraryItem]:
        """Stops sharing an item, by id or path: what is no longer shared. Raises PotluckError."""
        if (id is None) == (path is None):
            raise ValueError("unshare takes one of id and path")
        request = control_pb2.UnshareRequest()
        if id is not None:
            request.file_id = _parse_id(id)
        else:
            request.path = os.path.abspath(path or "")
        answer = await self._call(self._stub().Unshare(request, timeout=self._timeout))
        return list(answer.removed)

    async def library(self) -> List[control_pb2.LibraryItem]:
        """What the peer shares, oldest first. Raises PotluckError."""
        items: List[control_pb2.LibraryItem] = []
        token = ""
        while True:
            request = control_pb2.ListLibraryRequest(page_size=1000, page_token=token)
            answer = await self._call(self._stub().ListLibrary(request, timeout=self._timeout))
            items.extend(answer.items)
            token = answer.next_page_token
            if not token:
                return items

    async def get(
        self,
        id: AnyId,
        target: Union[str, Path, None] = None,
        *,
        sha256: Union[bytes, str, None] = None,
        detach: bool = False,
        progress: Optional[Callable[[control_pb2.Transfer], None]] = None,
    ) -> control_pb2.Transfer:
        """Downloads a file or folder with the peer, which then shares it: the ended transfer.

        Without a target, it goes to the folder of the peer. With `detach`, returns the first state
        of a transfer that goes on by itself.

        Raises PotluckError with the reason if the transfer fails or is cancelled.
        """
        request = control_pb2.StartTransferRequest(
            file_id=_parse_id(id),
            target=os.path.abspath(target) if target is not None else "",
            sha256=_parse_hash(sha256) if sha256 is not None else b"",
            detach=detach,
        )
        last: Optional[control_pb2.Transfer] = None
        events = read(self._stub().StartTransfer(request), None)
        async for event in events:
            last = event.transfer
            if progress is not None:
                progress(last)
            if detach:
                await events.aclose()
                return last
        if last is None:
            raise error("INTERNAL", "the peer did not say how the transfer ended")
        if last.state == control_pb2.TRANSFER_STATE_FAILED:
            raise error(last.error.reason, last.error.message)
        if last.state != control_pb2.TRANSFER_STATE_DONE:
            raise error("CANCELLED", "the transfer was paused or cancelled by its owner")
        return last

    async def transfers(self) -> List[control_pb2.Transfer]:
        """Transfers that run, are paused or ended recently, newest first. Raises PotluckError."""
        transfers: List[control_pb2.Transfer] = []
        token = ""
        while True:
            request = control_pb2.ListTransfersRequest(page_size=200, page_token=token)
            answer = await self._call(self._stub().ListTransfers(request, timeout=self._timeout))
            transfers.extend(answer.transfers)
            token = answer.next_page_token
            if not token:
                return transfers

    async def pause(self, transfer_id: int) -> control_pb2.Transfer:
        """Pauses a transfer. Raises PotluckError."""
        request = control_pb2.PauseTransferRequest(transfer_id=transfer_id)
        call = self._stub().PauseTransfer(request, timeout=self._timeout)
        return (await self._call(call)).transfer

    async def resume(self, transfer_id: int) -> control_pb2.Transfer:
        """Resumes a paused or failed transfer. Raises PotluckError."""
        request = control_pb2.ResumeTransferRequest(transfer_id=transfer_id)
        call = self._stub().ResumeTransfer(request, timeout=self._timeout)
        return (await self._call(call)).transfer

    async def cancel(self, transfer_id: int) -> control_pb2.Transfer:
        """Cancels a transfer and removes its bytes. Raises PotluckError."""
        request = control_pb2.CancelTransferRequest(transfer_id=transfer_id)
        call = self._stub().CancelTransfer(request, timeout=self._timeout)
        return (await self._call(call)).transfer

    @property
    def stub(self) -> ControlServiceAsyncStub:
        """The generated stub, for calls that have no method here."""
        return self._stub()

    def _stub(self) -> ControlServiceAsyncStub:
        if self._channel is None:
            raise error("INVALID_ADDRESS", "the connection to the peer is not open")
        stub: ControlServiceAsyncStub = control_pb2_grpc.ControlServiceStub(self._channel)  # type: ignore
        return stub

    async def _call(self, call: Awaitable[T]) -> T:
        try:
            return await call
        except grpc.aio.AioRpcError as failure:
            raise from_rpc(failure) from failure
