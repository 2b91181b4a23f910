"""The interface of a program in a transfer."""

from __future__ import annotations

from abc import ABC, abstractmethod
from pathlib import Path

from common.unavailable import Unavailable

from ..transfer import Transfer


class System(ABC):
    """One program in one transfer; each transfer creates another instance."""

    name: str

    def __init__(self, options: dict[str, str]):
        self.options = options

    @classmethod
    @abstractmethod
    def version(cls, options: dict[str, str]) -> str:
        """The program's version. Raises `Unavailable` if it is not installed."""

    @abstractmethod
    def launch(self, transfer: Transfer) -> None:
        """Starts all processes. When it returns, all sources are ready to send and the sinks wait
        for `begin`."""

    @abstractmethod
    def begin(self, transfer: Transfer) -> None:
        """Starts the downloads of all sinks. The results go to `transfer.done` and
        `transfer.fail`."""

    @abstractmethod
    def arrived(self, transfer: Transfer) -> list[Path]:
        """The complete files; none for a program that stores nothing."""


def require_one_sink(transfer: Transfer, who: str) -> None:
    """Raises `Unavailable` if the transfer has several sinks."""
    if transfer.shape.sinks > 1:
        raise Unavailable(f"{who} is measured with one downloader only")
