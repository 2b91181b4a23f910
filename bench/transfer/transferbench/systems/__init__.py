"""The programs compared. Each is a subclass of `System`; adding one means adding it to `SYSTEMS`."""

from .base import System
from .curl import Curl, CurlOpenssl
from .libtorrent import Libtorrent
from .potluck import Potluck

SYSTEMS: dict[str, type[System]] = {system.name: system for system in (Potluck, Libtorrent, CurlOpenssl, Curl)}

__all__ = ["SYSTEMS", "System"]
