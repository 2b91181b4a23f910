"""Client of Potluck: finds files at an index, and downloads and verifies them from many peers.

`Client` talks to an index and its peers, `LocalPeer` to the peer that runs on this machine.
"""

from .client import Client, Download, FoundFile, Lease, Registration
from .credentials import Credentials, PeerIdentity
from .errors import (
    AccessError,
    AmbiguousNameError,
    CancelledError,
    InternalError,
    InvalidRequestError,
    LimitError,
    NotFoundError,
    PotluckError,
    RefusedError,
    TargetError,
    UnavailableError,
    VerificationError,
)
from .fetch import Progress
from .identity import FileHashes, FileId, hash_file
from .local import LocalPeer, ShareError
from .manifest import Manifest, ManifestError
from .peers import PeerReport
from .transport import Address, Provider

__version__ = "0.1.0"

__all__ = [
    "AccessError",
    "Address",
    "AmbiguousNameError",
    "CancelledError",
    "Client",
    "Credentials",
    "Download",
    "FileHashes",
    "FileId",
    "FoundFile",
    "InternalError",
    "InvalidRequestError",
    "Lease",
    "LimitError",
    "LocalPeer",
    "Manifest",
    "ManifestError",
    "NotFoundError",
    "PeerIdentity",
    "PeerReport",
    "PotluckError",
    "Progress",
    "Provider",
    "RefusedError",
    "Registration",
    "ShareError",
    "TargetError",
    "UnavailableError",
    "VerificationError",
    "hash_file",
]
