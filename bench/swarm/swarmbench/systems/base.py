"""The interface of a program in a trial."""

from __future__ import annotations

from abc import ABC, abstractmethod
from pathlib import Path
from typing import TYPE_CHECKING

from common.unavailable import Unavailable

if TYPE_CHECKING:
    from ..trial import Trial

__all__ = ["System", "Unavailable"]


class System(ABC):
    """One program in one trial; each trial creates another instance."""

    name: str

    def __init__(self, options: dict[str, str]):
        self.options = options

    @classmethod
    @abstractmethod
    def version(cls, options: dict[str, str]) -> str:
        """The program's version. Raises `Unavailable` if it is not installed."""

    @abstractmethod
    def launch(self, trial: "Trial") -> None:
        """Starts all nodes. When it returns, all sources are ready to send and all sinks wait for
        `begin`.

        Raises `Unavailable` for a scenario that this system does not support."""

    @abstractmethod
    def begin(self, trial: "Trial", sink: int) -> None:
        """Starts the sink's download. The results go to `trial.progress`, `trial.done` and
        `trial.failed`."""

    @abstractmethod
    def source_pid(self, source: int) -> int:
        """The process that the scenario's events suspend or kill."""

    @abstractmethod
    def arriving(self, sink: int) -> Path:
        """Path of the sink's partial file; it may not exist yet. Called only for a single file."""

    @abstractmethod
    def arrived(self, sink: int) -> Path:
        """Path of the complete file or folder."""

    def sent_by_sources(self, trial: "Trial") -> int | None:
        """Payload bytes that the sources sent, as counted by the program; called once, before the
        end."""
        return None

    def describe(self, trial: "Trial") -> dict:
        """Further fields for the results."""
        return {}
