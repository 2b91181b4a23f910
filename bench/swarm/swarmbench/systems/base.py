"""What a trial asks of a program, whichever it is."""

from __future__ import annotations

from abc import ABC, abstractmethod
from pathlib import Path
from typing import TYPE_CHECKING

from common.unavailable import Unavailable

if TYPE_CHECKING:
    from ..trial import Trial

__all__ = ["System", "Unavailable"]


class System(ABC):
    """One program in one trial: made anew for each."""

    name: str

    def __init__(self, options: dict[str, str]):
        self.options = options

    @classmethod
    @abstractmethod
    def version(cls, options: dict[str, str]) -> str:
        """What is measured. Raises `Unavailable` if it is not here."""

    @abstractmethod
    def launch(self, trial: "Trial") -> None:
        """Starts everything. When it returns, all sources are ready to send and all sinks wait for `begin`.

        Raises `Unavailable` for a scenario that this system cannot play."""

    @abstractmethod
    def begin(self, trial: "Trial", sink: int) -> None:
        """The sink's user asks for the file now. What comes of it goes to `trial.progress`, `trial.done` and `trial.failed`."""

    @abstractmethod
    def source_pid(self, source: int) -> int:
        """The process to stop, or to end, where the scenario wants that."""

    @abstractmethod
    def arriving(self, sink: int) -> Path:
        """Where the sink's bytes are while it is under way; may not exist yet. Asked only where it is one file."""

    @abstractmethod
    def arrived(self, sink: int) -> Path:
        """Where the finished file or folder is."""

    def sent_by_sources(self, trial: "Trial") -> int | None:
        """Payload bytes that the sources sent, by the program's own count; asked once, before the end."""
        return None

    def describe(self, trial: "Trial") -> dict:
        """Anything else worth keeping with the results."""
        return {}
