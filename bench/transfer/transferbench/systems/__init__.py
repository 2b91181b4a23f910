"""The programs that are compared. Each is a subclass of `System`; adding one means adding it to
`SYSTEMS`."""

from .aria2 import Aria2
from .bare import Bare
from .base import System
from .curl import Curl, CurlOpenssl
from .folders import Rsync, Tar
from .iperf3 import Iperf3
from .libtorrent import Libtorrent
from .potluck import Potluck
from .rqbit import Rqbit

SYSTEMS: dict[str, type[System]] = {
    system.name: system for system in (Potluck, Libtorrent, Rqbit, Aria2, CurlOpenssl, Bare, Curl, Iperf3, Rsync, Tar)
}

__all__ = ["SYSTEMS", "System"]
