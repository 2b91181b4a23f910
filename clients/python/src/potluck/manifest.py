"""The manifest of a collection, as in docs/protocol.md. Pure.

A manifest has one encoding. `Manifest.decode` accepts nothing else, so a folder has one id, and
every path and link of a decoded manifest is safe.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Dict, Iterator, List, Sequence, Set, Tuple, Union

from .identity import EMPTY_FILE, HASH_LEN, MAX_SIZE, FileId, piece_size

MAGIC = b"PLCOLL1\n"
MAX_MANIFEST_SIZE = 64 << 20
MAX_ENTRIES = 1 << 20
MAX_FOLDERS = 1 << 18
FREE_FOLDERS = 4096
FOLDERS_PER_ENTRY = 16
MAX_UNITS = 1 << 22
MAX_COMPONENT_LEN = 255
MAX_PATH_LEN = 4096
MAX_DEPTH = 256

# Default_Ignorable_Code_Point of Unicode 16 and the blank braille pattern. A fixed list: the
# validity of a manifest must not depend on the Unicode version of Python.
_INVISIBLE: Sequence[Tuple[int, int]] = (
    (0xAD, 0xAD), (0x34F, 0x34F), (0x61C, 0x61C), (0x115F, 0x1160), (0x17B4, 0x17B5),
    (0x180B, 0x180F),
    (0x200B, 0x200F), (0x202A, 0x202E), (0x2060, 0x206F), (0x2800, 0x2800), (0x3164, 0x3164),
    (0xFE00, 0xFE0F), (0xFEFF, 0xFEFF), (0xFFA0, 0xFFA0), (0xFFF0, 0xFFF8), (0x1BCA0, 0x1BCA3),
    (0x1D173, 0x1D17A), (0xE0000, 0xE0FFF),
)  # fmt: skip

# White_Space of Unicode. `str.isspace` also counts U+001C to U+001F, which are control characters.
_WHITE_SPACE = frozenset(
    "\t\n\v\f\r \x85\xa0\u1680\u2000\u2001\u2002\u2003\u2004\u2005\u2006\u2007\u2008\u2009\u200a"
    "\u2028\u2029\u202f\u205f\u3000"
)


class ManifestError(ValueError):
    """The bytes are not a valid manifest, or a path or link is unsafe."""


@dataclass(frozen=True)
class File:
    """A regular file of a collection."""

    path: str
    file_id: FileId
    size: int
    executable: bool = False


@dataclass(frozen=True)
class EmptyFolder:
    """A folder without entries."""

    path: str


@dataclass(frozen=True)
class Link:
    """A symbolic link."""

    path: str
    target: str


Entry = Union[File, EmptyFolder, Link]


def check_path(path: str) -> None:
    """Raises ManifestError if a path is not safe and relative."""
    if len(_utf8(path)) > MAX_PATH_LEN:
        raise ManifestError(f"a path has at most {MAX_PATH_LEN} bytes")
    components = path.split("/")
    if len(components) > MAX_DEPTH:
        raise ManifestError(f"a path has at most {MAX_DEPTH} components")
    for component in components:
        check_name(component)


def check_name(name: str) -> None:
    """Raises ManifestError if this is not a plain and visible file name."""
    if name in ("", ".", ".."):
        raise ManifestError(f"{name!r} is not a file name")
    if len(_utf8(name)) > MAX_COMPONENT_LEN:
        raise ManifestError(f"a name has at most {MAX_COMPONENT_LEN} bytes")
    if "/" in name:
        raise ManifestError("slashes are not allowed in a name")
    _check_characters(name)
    if all(c in _WHITE_SPACE or _is_invisible(c) for c in name):
        raise ManifestError("a name needs at least one visible character")


def check_link(path: str, target: str) -> None:
    """Raises ManifestError if a link could lead out, alone or through other links.

    Every `..` must precede all names: a `..` after a name could start from the target of another
    link.
    """
    if not target or target.startswith("/") or len(_utf8(target)) > MAX_PATH_LEN:
        raise ManifestError(
            f"{path!r}: the target of a link is relative, and not empty or too long"
        )
    _check_characters(target)
    depth = path.count("/")
    named = False
    for part in target.split("/"):
        if part in ("", "."):
            continue
        if part == "..":
            if named or depth == 0:
                raise ManifestError(f"{path!r}: the target {target!r} leads out of the collection")
            depth -= 1
        else:
            named = True
            depth += 1
        if depth > MAX_DEPTH:
            raise ManifestError(f"{path!r}: the target is too deep")


def _utf8(text: str) -> bytes:
    try:
        return text.encode()
    except UnicodeEncodeError as failure:
        raise ManifestError(f"{text!r} is not UTF-8") from failure


def _check_characters(text: str) -> None:
    for c in text:
        code = ord(c)
        if code < 0x20 or 0x7F <= code < 0xA0:
            raise ManifestError("control characters are not allowed")
        if c == "\\":
            raise ManifestError("backslashes are not allowed")
        if 0x2028 <= code <= 0x202E or 0x2066 <= code <= 0x2069:
            raise ManifestError("characters that change the direction of text are not allowed")


def _is_invisible(c: str) -> bool:
    code = ord(c)
    return any(first <= code <= last for first, last in _INVISIBLE)


class Manifest:
    """The entries of a folder, sorted by path. Always valid."""

    def __init__(self, entries: Sequence[Entry]) -> None:
        """Takes entries in any order.

        Raises ManifestError if they do not form a valid manifest.
        """
        self.entries: List[Entry] = sorted(entries, key=lambda entry: _utf8(entry.path))
        _check_entries(self.entries)
        if len(self.encode()) > MAX_MANIFEST_SIZE:
            raise ManifestError("the manifest is over 64 MiB")

    @classmethod
    def decode(cls, data: bytes) -> Manifest:
        """Raises ManifestError if the bytes are not the encoding of a valid manifest."""
        if len(data) > MAX_MANIFEST_SIZE:
            raise ManifestError("the manifest is over 64 MiB")
        if not data.startswith(MAGIC):
            raise ManifestError("the bytes do not begin like a manifest")
        at = len(MAGIC)
        entries: List[Entry] = []
        while at < len(data):
            if len(entries) == MAX_ENTRIES:
                raise ManifestError("too many entries")
            body, at = _field(0x0A, data, at)
            entries.append(_decode_entry(body))
        _check_entries(entries)
        manifest = cls.__new__(cls)
        manifest.entries = entries
        return manifest

    def encode(self) -> bytes:
        """The bytes of the collection's file."""
        return MAGIC + b"".join(_encode_entry(entry) for entry in self.entries)

    def files(self) -> List[File]:
        """The files in path order."""
        return [entry for entry in self.entries if isinstance(entry, File)]

    def distinct_files(self) -> List[File]:
        """The first file of each content, in path order."""
        seen: Dict[bytes, File] = {}
        for file in self.files():
            seen.setdefault(file.file_id, file)
        return list(seen.values())

    def folders(self) -> Iterator[str]:
        """All folders, implied and empty, each once and after its parent."""
        previous = ""
        for entry in self.entries:
            for end in _new_folders(previous, entry.path):
                yield entry.path[:end]
            if isinstance(entry, EmptyFolder):
                yield entry.path
            previous = entry.path

    @property
    def content_size(self) -> int:
        """The sum of the sizes of all files, with copies."""
        return sum(file.size for file in self.files())

    @property
    def distinct_size(self) -> int:
        """The sum of the sizes of all distinct files."""
        return sum(file.size for file in self.distinct_files())

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Manifest) and self.entries == other.entries

    def __repr__(self) -> str:
        return f"<Manifest of {len(self.entries)} entries>"


def _new_folders(previous: str, path: str) -> Iterator[int]:
    """Ends of the ancestors of `path` that `previous` does not have, outermost first."""
    shared = 0
    for a, b in zip(previous, path):
        if a != b:
            break
        shared += 1
    at = path.find("/", shared)
    while at >= 0:
        yield at
        at = path.find("/", at + 1)


def _check_entries(entries: Sequence[Entry]) -> None:
    if len(entries) > MAX_ENTRIES:
        raise ManifestError("too many entries")
    open_paths: List[str] = []  # the last path, and the earlier ones that are its prefixes
    previous = ""
    folders = 0
    sizes: Dict[bytes, int] = {}
    total = 0
    for entry in entries:
        path = entry.path
        check_path(path)
        if open_paths and _utf8(open_paths[-1]) >= _utf8(path):
            raise ManifestError(f"{path!r} is out of order or there twice")
        while open_paths and not path.startswith(open_paths[-1]):
            open_paths.pop()
        for parent in open_paths:
            if path[len(parent)] == "/":
                raise ManifestError(f"{path!r} is beneath {parent!r}, which is not a folder")
        open_paths.append(path)
        folders += sum(1 for _ in _new_folders(previous, path))
        previous = path
        if isinstance(entry, File):
            if len(entry.file_id) != HASH_LEN or not 0 <= entry.size <= MAX_SIZE:
                raise ManifestError(f"{path!r} has an invalid id or size")
            if (entry.file_id == EMPTY_FILE) != (entry.size == 0):
                raise ManifestError(f"{path!r}: size and id do not match")
            if sizes.setdefault(entry.file_id, entry.size) != entry.size:
                raise ManifestError(f"{path!r}: one id has two sizes")
            total += entry.size
        elif isinstance(entry, Link):
            check_link(path, entry.target)
        else:
            folders += 1
        if folders > MAX_FOLDERS:
            raise ManifestError("too many folders")
    if folders > FREE_FOLDERS + FOLDERS_PER_ENTRY * len(entries):
        raise ManifestError("too many folders for its entries")
    if total >= 1 << 64:
        raise ManifestError("the sum of its sizes exceeds 64 bits")
    distinct = sum(sizes.values())
    if len(sizes) + distinct // piece_size(distinct) > MAX_UNITS:
        raise ManifestError("too many pieces")


def _varint(number: int) -> bytes:
    out = bytearray()
    while number >= 0x80:
        out.append(number & 0x7F | 0x80)
        number >>= 7
    out.append(number)
    return bytes(out)


def _encode_field(key: int, body: bytes) -> bytes:
    return bytes([key]) + _varint(len(body)) + body


def _encode_entry(entry: Entry) -> bytes:
    if isinstance(entry, File):
        body = _encode_field(0x0A, entry.file_id)
        if entry.size:
            body += b"\x10" + _varint(entry.size)
        if entry.executable:
            body += b"\x18\x01"
        content = _encode_field(0x12, body)
    elif isinstance(entry, EmptyFolder):
        content = _encode_field(0x1A, b"")
    else:
        content = _encode_field(0x22, _encode_field(0x0A, _utf8(entry.target)))
    return _encode_field(0x0A, _encode_field(0x0A, _utf8(entry.path)) + content)


def _decode_varint(data: bytes, at: int) -> Tuple[int, int]:
    number = 0
    for index in range(10):
        if at + index >= len(data):
            break
        byte = data[at + index]
        number |= (byte & 0x7F) << (7 * index)
        if byte < 0x80:
            if number >= 1 << 64 or (byte == 0 and index > 0):
                break
            return number, at + index + 1
    raise ManifestError(f"not canonical at byte {at}")


def _field(key: int, data: bytes, at: int) -> Tuple[bytes, int]:
    if at >= len(data) or data[at] != key:
        raise ManifestError(f"not canonical at byte {at}")
    length, start = _decode_varint(data, at + 1)
    if length > len(data) - start:
        raise ManifestError(f"not canonical at byte {at}")
    return data[start : start + length], start + length


def _text(data: bytes) -> str:
    try:
        return data.decode()
    except UnicodeDecodeError as failure:
        raise ManifestError("a path or target is not UTF-8") from failure


def _decode_entry(data: bytes) -> Entry:
    raw_path, at = _field(0x0A, data, 0)
    path = _text(raw_path)
    key = data[at] if at < len(data) else None
    if key not in (0x12, 0x1A, 0x22):
        raise ManifestError(f"{path!r} has no known content")
    body, end = _field(key, data, at)
    if end != len(data):
        raise ManifestError(f"{path!r} has unknown fields")
    if key == 0x1A:
        if body:
            raise ManifestError(f"{path!r} has unknown fields")
        return EmptyFolder(path)
    if key == 0x22:
        target, end = _field(0x0A, body, 0)
        if end != len(body):
            raise ManifestError(f"{path!r} has unknown fields")
        return Link(path, _text(target))
    raw_id, at = _field(0x0A, body, 0)
    if len(raw_id) != HASH_LEN:
        raise ManifestError(f"{path!r} has an invalid id")
    size = 0
    if body[at : at + 1] == b"\x10":
        size, at = _decode_varint(body, at + 1)
        if size == 0:
            raise ManifestError(f"{path!r} is not canonical")
    if body[at:] not in (b"", b"\x18\x01"):
        raise ManifestError(f"{path!r} is not canonical")
    return File(path, FileId(raw_id), size, bool(body[at:]))


def implied_names(manifest: Manifest) -> Set[str]:
    """Every path that the restored folder has: files, links and all folders."""
    return {entry.path for entry in manifest.entries} | set(manifest.folders())
