"""Part files and folders, and how they get their final names.

A part is in the folder of its target, locked while a download uses it. Nothing about its content is
trusted when a download resumes: every unit is verified again. A target is never replaced.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import os
import shutil
import stat
import threading
from contextlib import contextmanager
from pathlib import Path
from typing import Iterator, Optional, Set

from .errors import PotluckError, error
from .identity import FileId
from .manifest import EmptyFolder, File, Link, Manifest, implied_names
from .plan import Plan, Span

_COPY = 1 << 20

_NOT_WRITABLE = (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOENT, errno.ENOTDIR, errno.ELOOP)


@contextmanager
def storing(target: Path) -> Iterator[None]:
    """Turns errors of the operating system at a target into those of Potluck."""
    try:
        yield
    except OSError as failure:
        text = f"{target}: {failure.strerror or failure}"
        if failure.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            raise error("DISK_FULL", text) from failure
        if failure.errno in _NOT_WRITABLE:
            raise error("TARGET_NOT_WRITABLE", text) from failure
        if failure.errno in (errno.EEXIST, errno.ENOTEMPTY, errno.EISDIR):
            raise error("TARGET_EXISTS", text) from failure
        if failure.errno in (errno.EMFILE, errno.ENFILE):
            raise error("TOO_MANY_OPEN_FILES", text) from failure
        if failure.errno in (errno.ENAMETOOLONG, errno.EINVAL, errno.EILSEQ):
            raise error("TARGET_UNSUITABLE", text) from failure
        raise


def check_target(target: Path) -> None:
    """Raises PotluckError if something is at the target."""
    if os.path.lexists(target):
        raise error("TARGET_EXISTS", f"{target} exists, and nothing is overwritten")
    if not target.name:
        raise error("UNSAFE_PATH", f"{target} does not name a file")


def _part_path(target: Path, wanted: FileId, kind: str) -> Path:
    # Short, whatever the length of the target's name; other targets have other parts.
    name = hashlib.sha256(os.fsencode(target.name)).hexdigest()[:8]
    return target.parent / f".potluck-{wanted.hex()[:16]}-{name}.{kind}"


def _lock(fd: int, path: Path) -> bool:
    """Locks an open part. False if the path no longer leads to it."""
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise error("TARGET_NOT_WRITABLE", f"another download uses {path}") from None
    try:
        now = os.stat(path, follow_symlinks=False)
    except FileNotFoundError:
        return False
    mine = os.fstat(fd)
    return (now.st_dev, now.st_ino) == (mine.st_dev, mine.st_ino)


def _sync_folder(folder: Path) -> None:
    fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


class _Part:
    """A locked part.

    A thread may still use it when its download was cancelled. Closing waits for that thread, and
    later uses fail: the number of a closed descriptor may already be that of another file.
    """

    def __init__(self, path: Path, flags: int) -> None:
        self.path = path
        self._guard = threading.RLock()
        while True:
            self._open_fd = os.open(path, flags | os.O_NOFOLLOW | os.O_CLOEXEC, 0o666)
            try:
                if _lock(self._open_fd, path):
                    break
            except BaseException:
                os.close(self._open_fd)
                raise
            os.close(self._open_fd)

    @contextmanager
    def _using(self) -> Iterator[int]:
        with self._guard:
            if self._open_fd < 0:
                raise OSError(errno.EBADF, "the part is closed")
            yield self._open_fd

    def close(self) -> None:
        """Closes the part, and leaves what is there for a later run."""
        with self._using() as fd:
            self._open_fd = -1
            os.close(fd)


class PartFile(_Part):
    """The part of a plain file, or of a manifest."""

    def __init__(self, target: Path, wanted: FileId, size: int) -> None:
        self.target = target
        super().__init__(_part_path(target, wanted, "part"), os.O_RDWR | os.O_CREAT)
        with self._using() as fd:
            self._old_size = os.fstat(fd).st_size
            os.ftruncate(fd, size)
        self._size = size

    def load(self, plan: Plan) -> Set[int]:
        """The units that are there, verified."""
        stored = set()
        for unit, spans in enumerate(plan.units):
            (span,) = spans
            if span.offset >= self._old_size:
                break
            if self._is_hole(span):
                continue
            data = self._read(span.offset, span.length)
            if plan.first_bad(span, memoryview(data)) is None:
                stored.add(unit)
        return stored

    def _is_hole(self, span: Span) -> bool:
        """Whether nothing was written to a span."""
        try:
            with self._using() as fd:
                return os.lseek(fd, span.offset, os.SEEK_DATA) >= span.offset + span.length
        except OSError as failure:
            return failure.errno == errno.ENXIO  # no data up to the end

    def write(self, span: Span, data: bytearray) -> None:
        """Stores the bytes of a span."""
        with self._using() as fd:
            _write_all(fd, data, span.offset)

    def _read(self, offset: int, length: int) -> bytes:
        parts = []
        while length:
            with self._using() as fd:
                part = os.pread(fd, length, offset)
            if not part:
                break
            parts.append(part)
            offset, length = offset + len(part), length - len(part)
        return b"".join(parts)

    def read_start(self, length: int) -> bytes:
        """The first bytes."""
        return self._read(0, min(length, self._size))

    def sha256(self) -> bytes:
        """The plain SHA-256 of all bytes."""
        plain = hashlib.sha256()
        for offset in range(0, self._size, _COPY):
            plain.update(self._read(offset, min(_COPY, self._size - offset)))
        return plain.digest()

    def finalize(self) -> None:
        """Gives the complete file its name."""
        with self._using() as fd:
            os.fsync(fd)
            try:
                os.link(self.path, self.target, follow_symlinks=False)
                os.unlink(self.path)
            except OSError as failure:
                if failure.errno not in (errno.EPERM, errno.ENOTSUP, errno.ENOSYS, errno.EMLINK):
                    raise
                # No hard links here: only an empty file of our own is replaced.
                flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
                os.close(os.open(self.target, flags))
                os.replace(self.path, self.target)
            _sync_folder(self.target.parent)

    def discard(self) -> None:
        """Removes the part."""
        self.path.unlink()


def _write_all(fd: int, data: bytearray, offset: int) -> None:
    view = memoryview(data)
    while view:
        written = os.pwrite(fd, view, offset)
        view, offset = view[written:], offset + written


class PartFolder(_Part):
    """The part of a collection: the contents by id, and at the end the tree of their paths."""

    def __init__(self, target: Path, wanted: FileId, manifest: Manifest) -> None:
        self.target = target
        self.manifest = manifest
        path = _part_path(target, wanted, "parts")
        self._contents = path / "contents"
        self._tree = path / "tree"
        path.mkdir(mode=0o700, exist_ok=True)
        super().__init__(path, os.O_RDONLY | os.O_DIRECTORY)
        self._contents.mkdir(mode=0o700, exist_ok=True)

    def _content(self, file_id: FileId) -> Path:
        return self._contents / str(file_id)

    def load(self, plan: Plan) -> Set[int]:
        """The units that are there, verified."""
        return {
            unit
            for unit, spans in enumerate(plan.units)
            if all(self._has(plan, span) for span in spans)
        }

    def _has(self, plan: Plan, span: Span) -> bool:
        try:
            with open(self._content(span.file_id), "rb") as file:
                file.seek(span.offset)
                data = file.read(span.length)
        except FileNotFoundError:
            return False
        return plan.first_bad(span, memoryview(data)) is None

    def write(self, span: Span, data: bytearray) -> None:
        """Stores the bytes of a span."""
        path = self._content(span.file_id)
        flags = os.O_WRONLY | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC
        with self._using():
            fd = os.open(path, flags, 0o666)
            try:
                if span.is_whole_file:
                    os.ftruncate(fd, 0)
                _write_all(fd, data, span.offset)
            finally:
                os.close(fd)

    def finalize(self) -> None:
        """Builds the tree and gives it its name.

        Every entry is created exclusively, so no two paths become one file, whatever names the file
        system treats as equal.
        """
        with self._using():
            if os.path.lexists(self._tree):
                shutil.rmtree(self._tree)  # of a run that stopped here
            self._tree.mkdir()
            try:
                self._build()
            except FileExistsError as failure:
                name = failure.filename2 or failure.filename
                text = f"the file system treats two names of the collection as one: {name}"
                raise error("TARGET_UNSUITABLE", text) from failure
            found = {
                os.path.relpath(os.path.join(folder, name), self._tree)
                for folder, folders, files in os.walk(self._tree)
                for name in (*folders, *files)
            }
            if found != implied_names(self.manifest):
                raise error("TARGET_UNSUITABLE", f"{self.target}: the file system changed names")
            os.sync()
            check_target(self.target)
            # Replaces nothing but an empty folder.
            os.rename(self._tree, self.target)
            _sync_folder(self.target.parent)
            self.discard()

    def _build(self) -> None:
        for folder in self.manifest.folders():
            (self._tree / folder).mkdir()
        placed: Set[FileId] = set()
        for entry in self.manifest.entries:
            path = self._tree / entry.path
            if isinstance(entry, EmptyFolder):
                continue
            if isinstance(entry, Link):
                os.symlink(entry.target, path)
                continue
            self._place(entry, path, entry.file_id in placed)
            placed.add(entry.file_id)

    def _place(self, entry: File, path: Path, is_copy: bool) -> None:
        source = self._content(entry.file_id)
        if not entry.size:
            os.close(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666))
        else:
            os.truncate(source, entry.size)
            if is_copy or not _link(source, path):
                with open(source, "rb") as original, open(path, "xb") as copy:
                    shutil.copyfileobj(original, copy, _COPY)
        if entry.executable:
            mode = stat.S_IMODE(os.stat(path).st_mode)
            # Whoever may read it may execute it: 0777 less the umask.
            os.chmod(path, mode | (mode & 0o444) >> 2)

    def discard(self) -> None:
        """Removes the part."""
        shutil.rmtree(self.path)


def _link(source: Path, path: Path) -> bool:
    """Gives a file a second name, if the file system can."""
    try:
        os.link(source, path, follow_symlinks=False)
    except OSError as failure:
        if failure.errno in (errno.EPERM, errno.ENOTSUP, errno.ENOSYS, errno.EMLINK):
            return False
        raise
    return True


def check_sha256(part: PartFile, expected: Optional[bytes]) -> Optional[PotluckError]:
    """The error if a complete part has another SHA-256 than the expected one."""
    if expected is None or part.sha256() == expected:
        return None
    return error(
        "VERIFICATION_FAILED", f"{part.target}: the SHA-256 differs from the requested one"
    )
