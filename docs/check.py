#!/usr/bin/env python3
"""Checks the documents of the repository.

- Every relative link leads to a file, and its anchor to a heading.
- docs/SUMMARY.md lists every page, except that decisions/README.md lists the decisions.
- The preprocessor of the book leaves no link that leads out of it.
"""

import json
import re
import subprocess
import sys
from pathlib import Path
from urllib.parse import unquote

DOCS = Path(__file__).resolve().parent
ROOT = DOCS.parent
sys.path.insert(0, str(DOCS))
sys.dont_write_bytecode = True
from preprocess import FENCE, LINK, chapters, items  # noqa: E402

DEFINITION = re.compile(r"^\[[^\]]+\]:\s*(\S+)", re.M)
HEADING = re.compile(r"^#{1,6} +(.+?) *#*$", re.M)


def documents():
    """All documents of the repository, except what is generated or not part of it."""
    listed = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard", "*.md"],
        cwd=ROOT, capture_output=True, text=True, check=True,
    ).stdout.split("\n")
    return [ROOT / path for path in listed if path and (ROOT / path).exists()]


def prose(text):
    """The text without code blocks."""
    return FENCE.sub("", text)


def anchors(text):
    """The anchors of the headings, as GitHub and mdBook make them."""
    found = set()
    for heading in HEADING.findall(prose(text)):
        heading = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", heading).lower()
        anchor = re.sub(r"[^\w\- ]", "", heading).replace(" ", "-")
        number = 0
        while (unique := anchor if number == 0 else f"{anchor}-{number}") in found:
            number += 1
        found.add(unique)
    return found


def broken_links(path):
    text = prose(path.read_text())
    for target in [found[2] for found in LINK.finditer(text)] + DEFINITION.findall(text):
        if re.match(r"[a-z]+:", target):
            continue
        name, _, anchor = unquote(target).partition("#")
        file = (path.parent / name).resolve() if name else path
        if not file.exists():
            yield f"the link to {target} leads nowhere"
        elif anchor and file.suffix == ".md" and anchor not in anchors(file.read_text()):
            yield f"{target}: there is no such heading"


def unlisted():
    """The pages that the lists miss."""
    for page in sorted(DOCS.rglob("*.md")):
        name = page.relative_to(DOCS).as_posix()
        if name == "SUMMARY.md":
            continue
        decision = name.startswith("decisions/") and name != "decisions/README.md"
        listing = DOCS / ("decisions/README.md" if decision else "SUMMARY.md")
        if f"({page.relative_to(listing.parent).as_posix()})" not in listing.read_text():
            yield f"{listing.relative_to(ROOT)} does not list {name}"


def book():
    """The book as mdBook gives it to a preprocessor."""
    listed = []
    for title, path in re.findall(r"\[([^\]]+)\]\(([^)]+)\)", (DOCS / "SUMMARY.md").read_text()):
        content = (DOCS / path).read_text()
        listed.append({"Chapter": {"name": title, "content": content, "number": None, "sub_items": [],
                                   "path": path, "source_path": path, "parent_names": []}})
    return {"sections": listed, "__non_exhaustive": None}


def links_out_of_the_book():
    done = subprocess.run(
        [sys.executable, DOCS / "preprocess.py"], input=json.dumps([{}, book()]),
        capture_output=True, text=True, check=True,
    )
    pages = {chapter["path"]: chapter for chapter in chapters(items(json.loads(done.stdout)))}
    for path, chapter in pages.items():
        for _, target in LINK.findall(prose(chapter["content"])):
            name = target.partition("#")[0].replace("index.md", "README.md")
            if not name or re.match(r"[a-z]+:", target):
                continue
            full = ((DOCS / path).parent / name).resolve()
            if not full.is_relative_to(DOCS) or full.relative_to(DOCS).as_posix() not in pages:
                yield f"in the book, {path} links to {target}, which is not in it"


def main():
    pages = documents()
    problems = [f"{page.relative_to(ROOT)}: {problem}" for page in pages for problem in broken_links(page)]
    problems += [*unlisted(), *links_out_of_the_book()]
    for problem in problems:
        print(f"documents: {problem}", file=sys.stderr)
    if problems:
        sys.exit(1)
    print(f"documents: {len(pages)} files, all links lead somewhere")


if __name__ == "__main__":
    main()
