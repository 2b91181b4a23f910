"""`python -m potluck get NAME-OR-ID TARGET`, and `search WORDS`: for machines with Python alone."""

from __future__ import annotations

import argparse
import asyncio
import sys

from . import Client, Credentials, PotluckError


async def run(arguments: argparse.Namespace) -> None:
    """Runs a command."""
    credentials = None
    if arguments.credentials is not None:
        credentials = Credentials.load(arguments.credentials)
    index = arguments.index or (None if credentials else "http://127.0.0.1:1313")
    async with Client(index, credentials=credentials) as client:
        if arguments.command == "search":
            for file in await client.search(arguments.words):
                print(file.file_id, file.size, *map(repr, file.names[:1]))
            return
        done = await client.download(await client.resolve(arguments.file), arguments.target)
        print(f"{done.path}: {done.size} bytes from {len(done.peers)} peers, verified")
        for peer in done.peers:
            if peer.banned:
                print(f"banned {peer.provider}: {peer.banned}", file=sys.stderr)


def main() -> int:
    """The exit code."""
    parser = argparse.ArgumentParser(prog="python -m potluck", description=__doc__)
    parser.add_argument("--index", help="URL of the index [default: http://127.0.0.1:1313]")
    parser.add_argument("--credentials", help="folder of a private network's credentials")
    commands = parser.add_subparsers(dest="command", required=True)
    search = commands.add_parser("search", help="find files by words of their names")
    search.add_argument("words")
    get = commands.add_parser("get", help="download a file or folder, by name, id or digits of one")
    get.add_argument("file")
    get.add_argument("target")
    try:
        asyncio.run(run(parser.parse_args()))
    except (PotluckError, OSError) as failure:
        print(f"error: {failure}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
