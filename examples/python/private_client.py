"""A client of a private network: enrols a peer, downloads a file over mutual TLS, registers it.

Run it on a machine that joined with `potluck network join CODE`:

pip install grpcio grpcio-tools cryptography
python -m grpc_tools.protoc -I proto --python_out=. --grpc_python_out=. proto/potluck/v1/*.proto
python private_client.py ~/.config/potluck/network index.example:1313 model.bin copy.bin
"""

import base64
import sys
from pathlib import Path

import grpc
from client import download, find
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from potluck.v1 import common_pb2, index_pb2, index_pb2_grpc, network_pb2, network_pb2_grpc, peer_pb2_grpc

PEM = serialization.Encoding.PEM


def secure_channel(address, name, authority, key, certificate):
    """A channel that requires the certificate of `name`, whatever the address is."""
    credentials = grpc.ssl_channel_credentials(authority, key, certificate)
    return grpc.secure_channel(address, credentials, [("grpc.ssl_target_name_override", name)])


def peer_name(peer_id):
    """The name in the certificate of a peer."""
    return base64.b32encode(peer_id).decode().rstrip("=").lower() + ".peer.potluck.internal"


def enrol_peer(index):
    """A new key and its certificate, as a peer of the member that calls. A real peer keeps both."""
    key = ec.generate_private_key(ec.SECP256R1())
    request = x509.CertificateSigningRequestBuilder(x509.Name([])).sign(key, hashes.SHA256())
    answer = network_pb2_grpc.NetworkServiceStub(index).EnrollPeer(
        network_pb2.EnrollPeerRequest(signing_request=request.public_bytes(serialization.Encoding.DER))
    )
    private = key.private_bytes(PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    return private, x509.load_der_x509_certificate(answer.certificate).public_bytes(PEM)


def main(folder, index_address, name, target):
    folder = Path(folder)
    authority, key, certificate = (
        (folder / file).read_bytes() for file in ("ca.crt", "member.key", "member.crt")
    )
    member = secure_channel(index_address, "index.potluck.internal", authority, key, certificate)
    key, certificate = enrol_peer(member)
    channel = secure_channel(index_address, "index.potluck.internal", authority, key, certificate)
    index = index_pb2_grpc.IndexServiceStub(channel)

    found = find(index, name)
    peers = [
        peer_pb2_grpc.PeerServiceStub(
            secure_channel(f"{p.address.host}:{p.address.port}", peer_name(p.peer_id), authority, key, certificate)
        )
        for p in found.providers
        if p.complete
    ]
    data, root = download(peers, found.file)
    with open(target, "xb") as file:
        file.write(data)
    print(f"{target}: {len(data)} bytes from {len(peers)} peers over TLS, verified")

    # No token: the certificate says who the peer is, and so owns the registration.
    record = common_pb2.FileRecord(size=len(data), root=root)
    registration = index_pb2.Registration(file=record, complete=True)
    mine = index.Register(
        index_pb2.RegisterRequest(address=common_pb2.Address(port=5000), files=[registration])
    )
    removed = index.Unregister(index_pb2.UnregisterRequest(all=True)).removed
    print(f"registered as peer {mine.peer_id.hex()[:12]}, then unregistered {removed} file")


if __name__ == "__main__":
    main(*sys.argv[1:])
