"""The programs that are compared. Each is a subclass of `System`; adding one means adding it to
`SYSTEMS`."""

from .base import System, Unavailable
from .libtorrent_side import Libtorrent
from .origin_side import Direct, FromOrigin
from .potluck_side import Potluck

SYSTEMS: dict[str, type[System]] = {
    "potluck": Potluck,
    "libtorrent": Libtorrent,
    "origin": FromOrigin,
    "direct": Direct,
}
"""Those of `origin` scenarios are the last two."""

__all__ = ["SYSTEMS", "System", "Unavailable"]
