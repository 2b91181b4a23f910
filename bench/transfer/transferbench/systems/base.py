"""What a transfer asks of a program, whichever it is."""

from __future__ import annotations

from abc import ABC, abstractmethod
from pathlib import Path

from common.unavailable import Unavailable

from ..transfer import Transfer


class System(ABC):
    """One program in one transfer: made anew for each."""

    name: str

    def __init__(self, options: dict[str, str]):
        self.options = options

    @classmethod
    @abstractmethod
    def version(cls, options: dict[str, str]) -> str:
        """What is measured. Raises `Unavailable` if it is not here."""

    @abstractmethod
    def launch(self, transfer: Transfer) -> None:
        """Starts everything. When it returns, all sources are ready to send and the sinks wait for `begin`."""

    @abstractmethod
    def begin(self, transfer: Transfer) -> None:
        """The users of all sinks ask for the file now. What comes of it goes to `transfer.done` and `transfer.fail`."""

    @abstractmethod
    def arrived(self, transfer: Transfer) -> list[Path]:
        """The finished files; none for a program that keeps nothing."""


def only_one(transfer: Transfer, who: str) -> None:
    """For programs that are measured with one sink."""
    if transfer.shape.sinks > 1:
        raise Unavailable(f"{who} is measured with one downloader only")
