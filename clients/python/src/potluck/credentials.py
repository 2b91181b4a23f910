"""Private networks: the files of a member, peers under it, and their names in TLS."""

from __future__ import annotations

import base64
import json
import os
from dataclasses import dataclass, replace
from pathlib import Path
from typing import List, Optional, Tuple, Union

import grpc

INDEX_NAME = "index.potluck.internal"
"""The name in the certificate of a network's index."""


def peer_name(peer_id: bytes) -> str:
    """The name in the certificate of a peer."""
    return base64.b32encode(peer_id).decode().rstrip("=").lower() + ".peer.potluck.internal"


def default_folder() -> Path:
    """The folder into which `potluck network join` puts the credentials of this machine."""
    config = os.environ.get("XDG_CONFIG_HOME") or os.path.expanduser("~/.config")
    return Path(config) / "potluck" / "network"


@dataclass(frozen=True)
class Credentials:
    """What a program needs to connect in a private network. All certificates and keys are in PEM.

    A certificate is valid for seven days. The commands and peers of the machine renew it in its
    second half; a program that runs for long loads the files again.
    """

    name: str
    """The network's name."""
    indexes: Tuple[str, ...]
    """The URLs of its index."""
    authority: bytes
    """The certificate of the network's authority."""
    certificate: bytes
    """The certificate of the member or peer."""
    key: bytes
    """Its private key."""

    @classmethod
    def load(cls, folder: Union[str, Path, None] = None) -> Credentials:
        """Reads the credentials of a member, by default those of this machine.

        Raises FileNotFoundError if the folder has none, ValueError if they are damaged or newer.
        """
        path = Path(folder) if folder is not None else default_folder()
        network = json.loads((path / "network.json").read_text(encoding="utf-8"))
        if not isinstance(network, dict) or network.get("version") != 1:
            raise ValueError(f"{path}/network.json was written by a newer version of potluck")
        return cls(
            name=str(network["name"]),
            indexes=tuple(str(url) for url in network["indexes"]),
            authority=(path / "ca.crt").read_bytes(),
            certificate=(path / "member.crt").read_bytes(),
            key=(path / "member.key").read_bytes(),
        )

    def with_identity(self, identity: PeerIdentity) -> Credentials:
        """The same network, as one of the member's peers."""
        return replace(self, certificate=identity.certificate, key=identity.key)

    def channel_credentials(self) -> grpc.ChannelCredentials:
        """For TLS with certificates at both ends."""
        return grpc.ssl_channel_credentials(self.authority, self.key, self.certificate)

    def __repr__(self) -> str:
        return f"<Credentials of {self.name}>"


@dataclass(frozen=True)
class PeerIdentity:
    """The key and certificate of a peer. Keep both: the peer's id follows from the key."""

    peer_id: bytes
    certificate: bytes
    key: bytes

    def __repr__(self) -> str:
        return f"<PeerIdentity {self.peer_id.hex()[:12]}>"


def signing_request(key: Optional[bytes] = None) -> Tuple[bytes, bytes]:
    """A key in PEM, new unless it is given, and a PKCS#10 request for its certificate in DER.

    Needs the `cryptography` package: install `potluck-client[network]`.
    """
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    private: ec.EllipticCurvePrivateKey
    if key is None:
        private = ec.generate_private_key(ec.SECP256R1())
    else:
        loaded = serialization.load_pem_private_key(key, None)
        if not isinstance(loaded, ec.EllipticCurvePrivateKey):
            raise ValueError("the key of a peer is a P-256 key")
        private = loaded
    pem = private.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    builder = x509.CertificateSigningRequestBuilder(x509.Name([]))
    request = builder.sign(private, hashes.SHA256())
    return pem, request.public_bytes(serialization.Encoding.DER)


def certificate_pem(der: bytes) -> bytes:
    """A certificate in PEM."""
    text = base64.b64encode(der).decode()
    lines: List[str] = [text[at : at + 64] for at in range(0, len(text), 64)]
    return "\n".join(
        ["-----BEGIN CERTIFICATE-----", *lines, "-----END CERTIFICATE-----", ""]
    ).encode()
