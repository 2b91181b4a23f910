"""Makes an honest peer misbehave: a TCP proxy in front of it that flips one byte in a given
fraction of the pieces it sends.

Everything else passes unchanged, so that only verification can detect it. It knows the framing of
HTTP/2 (Potluck: middle bytes of large DATA frames, which are file content) and of BitTorrent (PIECE
messages, by their piece number).

Run as a program with one argument, a JSON object: `listen` and `forward` (HOST, PORT), `protocol` (`http2` or `bittorrent`), `share`
(0 to 1), `piece` (bytes), `seed`.
"""

from __future__ import annotations

import asyncio
import json
import random
import sys

READ = 256 * 1024
"""Bytes taken from a socket at once."""

HTTP2_DATA = 0
HTTP2_HEADER = 9
SMALLEST_CONTENT = 4 * 1024
"""DATA frames of at least this length are file content: other messages are shorter."""

BITTORRENT_HANDSHAKE = 68
BITTORRENT_PIECE = 7


class Http2:
    """Corrupts about a `share` of the pieces: every `piece` bytes of content on a connection are
    corrupted with that probability."""

    def __init__(self, share: float, piece: int, dice: random.Random):
        self._share, self._piece, self._dice = share, piece, dice
        self._until_next = 0
        self._buffer = bytearray()

    def feed(self, data: bytes) -> bytes:
        """Takes received bytes and returns the complete frames to forward."""
        self._buffer += data
        at = 0
        while len(self._buffer) - at >= HTTP2_HEADER:
            length = int.from_bytes(self._buffer[at:at + 3], "big")
            end = at + HTTP2_HEADER + length
            if len(self._buffer) < end:
                break
            if self._buffer[at + 3] == HTTP2_DATA and length >= SMALLEST_CONTENT:
                self._content(at + HTTP2_HEADER, length)
            at = end
        out = bytes(self._buffer[:at])
        del self._buffer[:at]
        return out

    def _content(self, start: int, length: int) -> None:
        self._until_next -= length
        if self._until_next <= 0:
            self._until_next += self._piece
            if self._dice.random() < self._share:
                self._buffer[start + length // 2] ^= 0xFF


class BitTorrent:
    """Corrupts the first block of each piece whose number is in the chosen fraction."""

    def __init__(self, share: float, piece: int, dice: random.Random):
        self._share = share
        self._salt = dice.random()
        self._skip = BITTORRENT_HANDSHAKE
        self._buffer = bytearray()

    def feed(self, data: bytes) -> bytes:
        self._buffer += data
        at = min(self._skip, len(self._buffer))
        self._skip -= at
        while not self._skip and len(self._buffer) - at >= 4:
            end = at + 4 + int.from_bytes(self._buffer[at:at + 4], "big")
            if len(self._buffer) < end:
                break
            if end - at > 13 and self._buffer[at + 4] == BITTORRENT_PIECE:
                piece = int.from_bytes(self._buffer[at + 5:at + 9], "big")
                begin = int.from_bytes(self._buffer[at + 9:at + 13], "big")
                if begin == 0 and random.Random(f"{self._salt}/{piece}").random() < self._share:
                    self._buffer[(at + 13 + end) // 2] ^= 0xFF
            at = end
        out = bytes(self._buffer[:at])
        del self._buffer[:at]
        return out


class Untouched:
    """Forwards the other direction unchanged."""

    @staticmethod
    def feed(data: bytes) -> bytes:
        return data


FRAMINGS = {"http2": Http2, "bittorrent": BitTorrent}


async def pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, through) -> None:
    try:
        while data := await reader.read(READ):
            writer.write(through.feed(data))
            await writer.drain()
    except (ConnectionError, asyncio.IncompleteReadError):
        pass
    finally:
        writer.close()


async def main() -> None:
    config = json.loads(sys.argv[1])
    dice = random.Random(config["seed"])

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            other_reader, other_writer = await asyncio.open_connection(*config["forward"])
        except ConnectionError:
            writer.close()
            return
        liar = FRAMINGS[config["protocol"]](config["share"], config["piece"], dice)
        await asyncio.gather(pump(reader, other_writer, Untouched), pump(other_reader, writer, liar))

    server = await asyncio.start_server(serve, *config["listen"])
    print("ready", flush=True)
    async with server:
        await server.serve_forever()


if __name__ == "__main__":
    asyncio.run(main())
