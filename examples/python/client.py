"""A client of Potluck: finds a file by name, downloads it from all its peers, and verifies it.

pip install grpcio grpcio-tools
python -m grpc_tools.protoc -I proto --python_out=. --grpc_python_out=. proto/potluck/v1/*.proto
python client.py 127.0.0.1:1313 numbers.txt copy.txt
"""

import hashlib
import sys

import grpc
from potluck.v1 import common_pb2, index_pb2, index_pb2_grpc, peer_pb2, peer_pb2_grpc

LEAF = 16 * 1024  # bytes that one leaf of the Merkle tree covers
RANGE = 8 * 1024 * 1024  # bytes per call; a call may ask for at most 64 MiB


def sha256(data):
    return hashlib.sha256(data).digest()


def merkle_root(data):
    """The root of the BitTorrent v2 tree: SHA-256 leaves, padded with zeros to a power of two."""
    layer = [sha256(data[i : i + LEAF]) for i in range(0, len(data), LEAF)] or [sha256(b"")]
    while len(layer) & (len(layer) - 1):
        layer.append(bytes(32))
    while len(layer) > 1:
        layer = [sha256(a + b) for a, b in zip(layer[::2], layer[1::2])]
    return layer[0]


def file_id(size, root):
    return sha256(b"potluck/file/v1\0" + size.to_bytes(8, "little") + root)


def find(index, name):
    """The one file that has the name."""
    (found,) = index.Query(index_pb2.QueryRequest(name=name)).files
    return found


def download(peers, wanted):
    """The bytes of a file, each range from the next peer, and their root; checked against the id."""
    data = bytearray()
    while len(data) < wanted.size:
        peer = peers[len(data) // RANGE % len(peers)]
        span = peer_pb2.Span(
            file_id=wanted.file_id, offset=len(data), length=min(RANGE, wanted.size - len(data))
        )
        for chunk in peer.Download(peer_pb2.DownloadRequest(spans=[span])):
            data += chunk.data
    root = merkle_root(data)
    if len(data) != wanted.size or file_id(len(data), root) != wanted.file_id:
        sys.exit(f"the bytes do not match the id {wanted.file_id.hex()}")
    return data, root


def main(index_address, name, target):
    index = index_pb2_grpc.IndexServiceStub(grpc.insecure_channel(index_address))
    found = find(index, name)
    peers = [
        peer_pb2_grpc.PeerServiceStub(grpc.insecure_channel(f"{p.address.host}:{p.address.port}"))
        for p in found.providers
        if p.complete
    ]
    data, root = download(peers, found.file)
    with open(target, "xb") as file:
        file.write(data)
    print(f"{target}: {len(data)} bytes from {len(peers)} peers, verified")

    # Announce the copy. A real program would also serve it on port 5000. The token in the response
    # owns the registration: only its holder can remove it.
    record = common_pb2.FileRecord(size=len(data), root=root)
    registration = index_pb2.Registration(file=record, names=[name], complete=True)
    mine = index.Register(
        index_pb2.RegisterRequest(address=common_pb2.Address(port=5000), files=[registration])
    )
    removed = index.Unregister(index_pb2.UnregisterRequest(token=mine.token, all=True)).removed
    print(f"registered as peer {mine.peer_id.hex()[:12]}, then unregistered {removed} file")


if __name__ == "__main__":
    main(*sys.argv[1:])
