#!/usr/bin/env python3
"""Makes roots.json: Computes Merkle roots of generated files with libtorrent, as test vectors for
Potluck.

    python3 -m venv /tmp/vectors && /tmp/vectors/bin/pip install libtorrent
    /tmp/vectors/bin/python tests/vectors/make.py tests/vectors/roots.json

(or Debian's python3-libtorrent). It takes under a minute and 3 GiB in the temporary folder (TMPDIR).

The content, the same in tests/golden.rs: blocks of 16,381 bytes, a prime, so that no two leaves begin alike. Block k is k as
8 bytes little-endian, and then the first 16,373 bytes of SHA-256(0) || SHA-256(1) || ..., each number as 8 bytes little-endian.
"""

import hashlib
import json
import os
import struct
import sys
import tempfile

import libtorrent

KIB, MIB, GIB = 1 << 10, 1 << 20, 1 << 30
SIZES = [
    1, 16 * KIB - 1, 16 * KIB, 16 * KIB + 1, 32 * KIB - 1, 32 * KIB, 32 * KIB + 1, 48 * KIB, 48 * KIB + 1,
    256 * KIB - 1, 256 * KIB, 256 * KIB + 1, 512 * KIB, 512 * KIB + 1, 768 * KIB, MIB - 1, MIB, MIB + 1,
    3 * MIB + 5, 4 * MIB, 4 * MIB + 1, 100 * MIB + 7, GIB + 1, 3 * GIB + 12345,
]

BLOCK = 16381
TAIL = b"".join(hashlib.sha256(struct.pack("<Q", i)).digest() for i in range(BLOCK // 32 + 1))[: BLOCK - 8]


def write_content(path, size):
    with open(path, "wb", buffering=MIB) as out:
        for block in range(-(-size // BLOCK)):
            out.write((struct.pack("<Q", block) + TAIL)[: size - block * BLOCK])
    assert os.path.getsize(path) == size


def pieces_root(folder, name, size):
    """`pieces root` of BEP 52. Piece sizes differ from Potluck's because the root must not depend
    on them."""
    files = libtorrent.file_storage()
    files.add_file(name, size)
    torrent = libtorrent.create_torrent(files, piece_size=64 * KIB, flags=libtorrent.create_torrent.v2_only)
    libtorrent.set_piece_hashes(torrent, folder)
    return torrent.generate()[b"info"][b"file tree"][name.encode()][b""][b"pieces root"]


def file_id(size, root):
    return hashlib.sha256(b"potluck/file/v1\0" + struct.pack("<Q", size) + root).digest()


def vector(size, root):
    return {"size": size, "root": root.hex(), "id": file_id(size, root).hex()}


def main(target):
    # BEP 52 defines no root for an empty file; Potluck uses SHA-256 of the empty string.
    vectors = [vector(0, hashlib.sha256(b"").digest())]
    with tempfile.TemporaryDirectory() as folder:
        for size in SIZES:
            path = os.path.join(folder, "content")
            write_content(path, size)
            vectors.append(vector(size, pieces_root(folder, "content", size)))
            os.remove(path)
            print(size, vectors[-1]["root"], file=sys.stderr)
    with open(target, "w") as out:
        out.write('{"made_by": %s, "vectors": [\n' % json.dumps(f"libtorrent {libtorrent.__version__}"))
        out.write(",\n".join("  " + json.dumps(v) for v in vectors))
        out.write("\n]}\n")


if __name__ == "__main__":
    main(sys.argv[1])
