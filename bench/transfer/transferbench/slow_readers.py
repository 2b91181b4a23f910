"""Readers that request much from a peer and take a few bytes per second. A program:
`slow_readers.py CONFIG`, a JSON object with `port`, `file` (the id in hex), `size`, `readers`,
`connections` and `bytes_per_second`. Prints `ready` when all requests are sent, then its counters
every second.

It speaks HTTP/2 directly: each reader is a stream whose window limits its rate; the connection's
window never does.
"""

from __future__ import annotations

import asyncio
import json
import sys
from collections import Counter

WANTED = 64 << 20
"""Bytes that a reader requests: the maximum of one call."""

FIRST_WINDOW = 16 * 1024
"""Bytes that a reader takes at once: the first frame."""

PATH = "/potluck.v1.PeerService/Download"


def varint(number: int) -> bytes:
    out = bytearray()
    while number > 0x7F:
        out.append(number & 0x7F | 0x80)
        number >>= 7
    return bytes([*out, number])


def request(file: bytes, offset: int, length: int) -> bytes:
    """A DownloadRequest for one span with its gRPC header."""
    span = b"\x0a" + varint(len(file)) + file + b"\x10" + varint(offset) + b"\x18" + varint(length)
    message = b"\x0a" + varint(len(span)) + span
    return b"\0" + len(message).to_bytes(4, "big") + message


async def connection(config: dict, outcomes: Counter) -> None:
    """The readers of one connection."""
    from h2.config import H2Configuration
    from h2.connection import H2Connection
    from h2.events import DataReceived, ResponseReceived, StreamEnded, StreamReset, TrailersReceived
    from h2.settings import SettingCodes

    reader, writer = await asyncio.open_connection("127.0.0.1", config["port"])
    http = H2Connection(H2Configuration(client_side=True, header_encoding="utf-8"))
    http.initiate_connection()
    http.update_settings({SettingCodes.INITIAL_WINDOW_SIZE: FIRST_WINDOW})
    http.increment_flow_control_window(1 << 30)
    writer.write(http.data_to_send())
    # The library updates windows when data is acknowledged.
    while http.local_settings.initial_window_size != FIRST_WINDOW:
        http.receive_data(await reader.read(1 << 16))
        writer.write(http.data_to_send())
    streams: set[int] = set()
    for _ in range(config["readers"] // config["connections"]):
        stream = http.get_next_available_stream_id()
        http.send_headers(stream, [(":method", "POST"), (":scheme", "http"), (":authority", "127.0.0.1"), (":path", PATH),
                                   ("te", "trailers"), ("content-type", "application/grpc")])
        http.send_data(stream, request(bytes.fromhex(config["file"]), 0, min(WANTED, config["size"])), end_stream=True)
        streams.add(stream)
    writer.write(http.data_to_send())
    await writer.drain()
    outcomes["asked"] += len(streams)

    async def take() -> None:
        while streams:
            await asyncio.sleep(1)
            for stream in list(streams):
                http.increment_flow_control_window(config["bytes_per_second"], stream)
            writer.write(http.data_to_send())

    taking = asyncio.create_task(take())
    try:
        while data := await reader.read(1 << 16):
            for event in http.receive_data(data):
                match event:
                    case DataReceived():
                        outcomes["bytes"] += len(event.data)
                    case ResponseReceived() | TrailersReceived():
                        status = dict(event.headers).get("grpc-status")
                        outcomes["answered"] += isinstance(event, ResponseReceived)
                        if status not in (None, "0"):
                            outcomes[f"status {status}"] += 1
                    case StreamEnded() | StreamReset():
                        streams.discard(event.stream_id)
                        outcomes["ended"] += 1
            writer.write(http.data_to_send())
        outcomes["connections closed"] += 1
    except Exception as error:  # A connection that ends in silence would look like a patient one.
        outcomes[repr(error)] += 1
    finally:
        taking.cancel()
        writer.close()


async def main() -> None:
    config = json.loads(sys.argv[1])
    outcomes: Counter = Counter()
    tasks = [asyncio.create_task(connection(config, outcomes)) for _ in range(config["connections"])]
    while outcomes["asked"] < config["readers"]:
        await asyncio.sleep(0.02)
        if all(task.done() for task in tasks):
            break
    print("ready", flush=True)
    while True:
        await asyncio.sleep(1)
        print(json.dumps(outcomes), flush=True)


if __name__ == "__main__":
    asyncio.run(main())
