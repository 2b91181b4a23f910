#!/usr/bin/env python3
"""A preprocessor of mdBook, which book.toml names.

It adds the pages of docs/decisions below the page that lists them. And it makes text of links to files
of the repository that are not in the book, because they would lead nowhere. Otherwise, documents link
to each other as files, so they also work without mdBook.

    preprocess.py supports html     what mdBook asks first
    preprocess.py < INPUT           INPUT: `[context, book]` in JSON; prints the book
"""

import json
import posixpath
import re
import sys
from pathlib import Path

DOCS = Path(__file__).resolve().parent
LINK = re.compile(r"\[((?:[^\[\]]|\[[^\]]*\])*)\]\(([^)\s]+)\)")
FENCE = re.compile(r"^(```.*?^```[^\n]*$)", re.M | re.S)
TITLE = re.compile(r"^# (.+)$", re.M)


def items(book):
    """The list of chapters; its name differs between versions of mdBook."""
    return book["sections"] if "sections" in book else book["items"]


def chapters(listed):
    """All chapters of a list, at any depth, that have a page."""
    for item in listed:
        chapter = item.get("Chapter") if isinstance(item, dict) else None
        if chapter and chapter.get("path"):
            yield chapter
            yield from chapters(chapter["sub_items"])


def add_decisions(listed):
    """Adds each record as a page below the list of decisions."""
    for parent in list(chapters(listed)):
        if parent["path"] != "decisions/README.md":
            continue
        for file in sorted((DOCS / "decisions").glob("[0-9]*.md")):
            text, path = file.read_text(), f"decisions/{file.name}"
            chapter = {"name": TITLE.search(text)[1].replace("`", ""), "content": text, "number": None, "sub_items": [],
                       "path": path, "source_path": path,
                       "parent_names": [*parent.get("parent_names", []), parent["name"]]}
            parent["sub_items"].append({"Chapter": chapter})


def rewrite(text, page, pages):
    """The text of a page with the links as the book needs them."""

    def link(found):
        label, target = found[1], found[2]
        path, hash_mark, anchor = target.partition("#")
        if not path or re.match(r"[a-z]+:", target):
            return found[0]
        full = posixpath.normpath(posixpath.join(posixpath.dirname(page), path))
        if full in pages:
            # mdBook renders README.md as index.html.
            path = re.sub(r"README\.md$", "index.md", path)
            return f"[{label}]({path}{hash_mark}{anchor})"
        file = posixpath.normpath(posixpath.join("docs", full))
        return label if label.strip("`") in (file, posixpath.basename(file)) else f"{label} (`{file}`)"

    # Text in fences stays as it is.
    return "".join(part if FENCE.match(part) else LINK.sub(link, part) for part in FENCE.split(text))


def main():
    if sys.argv[1:2] == ["supports"]:
        sys.exit(0 if sys.argv[2:] == ["html"] else 1)
    _, book = json.load(sys.stdin)
    add_decisions(items(book))
    pages = {chapter["path"] for chapter in chapters(items(book))}
    for chapter in chapters(items(book)):
        chapter["content"] = rewrite(chapter["content"], chapter["path"], pages)
    json.dump(book, sys.stdout)


if __name__ == "__main__":
    main()
