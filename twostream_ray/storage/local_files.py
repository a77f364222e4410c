"""Local files: opened only when they are regular, replaced atomically, walked without loops."""

from __future__ import annotations

import errno
import os
import re
import stat
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO, NamedTuple

from twostream_ray.errors import AccessError, MissingError, StorageError, own_error
from twostream_ray.redaction import one_line, printable

FILE_URI = re.compile(r"file:(?:(?=/[^/])|//(?:localhost(?=/))?)", re.IGNORECASE)
"""Prefix of a file URI of this machine; a percent-encoded path follows (RFC 8089)."""

_REASONS = {
    (errno.EACCES, errno.EPERM): "access denied; check the permissions of the path",
    (errno.EROFS,): "the file system is read-only; choose a path that can be written",
    (errno.ENOSPC, errno.EDQUOT): "the disk is full or its quota used up; free some space",
    (errno.EFBIG,): "the file exceeds the size limit; raise `ulimit -f` or choose another file system",
    (errno.EMFILE, errno.ENFILE): "too many files are open; raise `ulimit -n`",
    (errno.ENAMETOOLONG,): "the name is too long; choose a shorter one",
    (errno.ENOTDIR, errno.EEXIST): "expected a directory, found a file or a broken link; check the path",
    (errno.EISDIR,): "expected a file, found a directory; check the path",
    (errno.ELOOP,): "it is a cyclic symbolic link; check the path",
}
_OF_ONE_PATH = frozenset(
    {errno.EACCES, errno.EPERM, errno.ENAMETOOLONG, errno.ENOTDIR, errno.EEXIST, errno.EISDIR, errno.ELOOP}
)
PART_BYTES = 16 << 20
"""Of a large file, read and written at once."""
_LONGEST_NAME = 200
OF_THE_SYSTEM = frozenset({"lost+found", "System Volume Information", "$RECYCLE.BIN", "__MACOSX", "@eaDir"})
"""Directories that file systems, archives and network disks add to the user's."""
_TRIAL_BYTES = 1 << 16


class LeftOut(NamedTuple):
    """A directory entry that is skipped because it is neither a regular file nor a directory that can be entered."""

    path: str
    """Relative path in printable form: invalid bytes are escaped as \\xe9."""
    why: str
    """The reason, to follow the path in parentheses."""


def reason(error: OSError) -> str:
    """An OSError in words, with a remedy."""
    return next((words for codes, words in _REASONS.items() if error.errno in codes), one_line(error))


def explained(error: OSError, named: str, *, path: Path) -> StorageError:
    """Translate an OSError into a StorageError; `named` says what failed, such as "cannot read x"."""
    if isinstance(error, FileNotFoundError):
        if path.is_symlink():
            return AccessError(f"{named}: it is a broken link; fix or remove it")
        return MissingError(f"{named}: it does not exist; check the path")
    at = str(error.filename or "")
    where = f" ({printable(at)})" if at not in ("", str(path)) and not at.endswith(".partial") else ""
    kind = AccessError if error.errno in _OF_ONE_PATH else StorageError
    return kind(f"{named}: {reason(error)}{where}")


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Translate OSErrors of the block, which writes to `path`, into StorageErrors.

    Raises:
        StorageError: writing failed.
    """
    try:
        yield
    except OSError as error:
        if not error.filename:  # a write knows the file by its number alone; PyAV's errors name it, and are read-only
            error.filename = str(path)
        full = own_error(error)
        raise full or explained(error, f"cannot write {printable(str(path))}", path=path) from error


def write_parts(read: Callable[[int], bytes], path: Path) -> None:
    """Write a file from what `read` returns for a size in bytes, until it returns nothing; never in memory as a whole.

    Raises:
        StorageError: `path` cannot be written; what `read` raises is passed on as it is.
    """
    with writing(path):
        copy = path.open("wb", buffering=0)  # with a buffer, closing would write, and fail, once more
    with copy:
        while part := memoryview(read(PART_BYTES)):
            with writing(path):
                while part:
                    part = part[copy.write(part) :]


def require_writable(path: Path) -> None:
    """Check that a file can be written, without creating it.

    Raises:
        OSError: it cannot, or the disk is full.
    """
    folder = next(parent for parent in path.parents if parent.exists())
    trial = folder / f".{uuid.uuid4().hex}.partial"
    try:
        with trial.open("xb") as file:
            file.write(bytes(_TRIAL_BYTES))
    finally:
        trial.unlink(missing_ok=True)


def open_regular(path: Path, *, limit_bytes: int | None = None) -> BinaryIO:
    """Open a regular file, or a link to one, for reading; not a FIFO or device, on which reads may never end.

    Raises:
        AccessError: it is something else, or larger than `limit_bytes`.
        OSError: it is not there or cannot be opened.
    """
    refuse_special(path)  # opening a device may do something already
    # Non-blocking: the path may have become a FIFO, on which open would block.
    file = os.fdopen(os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC), "rb")
    try:
        info = os.fstat(file.fileno())
        if not stat.S_ISREG(info.st_mode):
            refuse_special(path)
        refuse_larger(info.st_size, str(path), limit_bytes=limit_bytes)
    except BaseException:
        file.close()
        raise
    return file


def refuse_special(path: Path) -> None:
    """Raise AccessError unless an existing path is a regular file, or a link to one."""
    mode = path.stat().st_mode
    if not stat.S_ISREG(mode):
        raise AccessError(f"cannot read {printable(str(path))}: expected a regular file, found {_kind(mode)}")


def _kind(mode: int) -> str:
    return "a directory" if stat.S_ISDIR(mode) else "a FIFO, socket or device"


def refuse_larger(size_bytes: int, named: str, *, limit_bytes: int | None) -> None:
    """Raise AccessError if a file exceeds a size limit."""
    if limit_bytes is not None and size_bytes > limit_bytes:
        raise AccessError(
            f"cannot read {printable(named)}: it may have at most {limit_bytes} bytes, it has {size_bytes}"
        )


def replace(target: Path, fill: Callable[[BinaryIO], object]) -> None:
    """Write a file atomically, by a temporary file and a rename; a link is replaced, its target is left alone.

    Raises:
        AccessError: what is there is neither a regular file nor a link to one or to nothing.
        OSError: it cannot be written.
    """
    _refuse_to_replace(target)
    target.parent.mkdir(parents=True, exist_ok=True)
    name = target.name if len(os.fsencode(target.name)) <= _LONGEST_NAME else "long"
    partial = target.with_name(f".{name}.{uuid.uuid4().hex[:8]}.partial")
    with partial.open("xb") as file:  # never a file or link that is there
        try:
            fill(file)
            file.flush()
            os.fsync(file.fileno())
            partial.replace(target)
        except BaseException:
            partial.unlink(missing_ok=True)
            raise


def _refuse_to_replace(target: Path) -> None:
    try:
        mode = target.stat().st_mode
    except OSError:
        return  # nothing is there, or writing says what is wrong
    if not stat.S_ISREG(mode):
        raise AccessError(f"cannot write {printable(str(target))}: expected a file, found {_kind(mode)}")


def remove(path: Path) -> None:
    """Remove a regular file or a link; a missing one is not an error.

    Raises:
        AccessError: it is something else.
        OSError: it cannot be removed.
    """
    try:
        mode = path.lstat().st_mode
        if not (stat.S_ISREG(mode) or stat.S_ISLNK(mode)):
            raise AccessError(f"cannot delete {printable(str(path))}: expected a file, found {_kind(mode)}")
        path.unlink(missing_ok=True)
    except (FileNotFoundError, NotADirectoryError):
        return


def exists(path: Path) -> bool:
    """Whether the path exists; False for a broken link.

    Raises:
        OSError: it cannot be determined.
    """
    try:
        path.stat()
    except (FileNotFoundError, NotADirectoryError):
        return False
    return True


def contains(outer: Path, inner: Path) -> bool:
    """Whether `inner` is `outer` or below it, by any name: through links, `..`, a second mount."""
    wide, narrow = Path(os.path.realpath(outer)), Path(os.path.realpath(inner))
    if narrow.is_relative_to(wide):
        return True
    with suppress(OSError):
        mark = wide.stat()
        return any(folder.exists() and os.path.samestat(folder.stat(), mark) for folder in narrow.parents)
    return False


def walk(root: Path) -> Iterator[tuple[str, int] | LeftOut]:
    """The files below a directory, links followed: (relative path, size in bytes), ("path/", 0) of empty directories.

    Hidden directories and those of the system that cannot be read are left out; any other is an error, for its
    files would be missing in silence.

    Raises:
        OSError: the root or a directory below it cannot be read; its name is the error's.
    """
    pending: list[tuple[str, tuple[tuple[int, int], ...]]] = [("", (_identity(root.stat()),))]
    while pending:
        below, above = pending.pop()
        try:
            with os.scandir(root / below) as found:
                entries = list(found)
        except OSError as error:
            if below and isinstance(error, FileNotFoundError):
                continue  # it went away
            if not below or not is_hidden(below):
                raise
            yield LeftOut(below, reason(error))
            continue
        if below and not entries:
            yield f"{below}/", 0
        for entry in entries:
            path = f"{below}/{entry.name}" if below else entry.name
            seen = _look_at(entry, path)
            if isinstance(seen, LeftOut):
                yield seen
            elif seen is not None and stat.S_ISREG(seen.st_mode):
                yield path, seen.st_size
            elif seen is not None and _identity(seen) in above:
                yield LeftOut(path, "a link to a directory above it")
            elif seen is not None:
                pending.append((path, (*above, _identity(seen))))


def _look_at(entry: os.DirEntry[str], path: str) -> os.stat_result | LeftOut | None:
    """The entry's state, links followed; None: it went away."""
    if os.fsencode(entry.name).decode("utf-8", "replace") != entry.name:
        return LeftOut(printable(path), "its name is not UTF-8: rename it")
    try:
        seen = entry.stat()
    except OSError as error:
        if not entry.is_symlink():
            if isinstance(error, FileNotFoundError):
                return None
            raise
        gone = isinstance(error, FileNotFoundError)
        return LeftOut(printable(path), "a link to nothing" if gone else f"a link that cannot be read: {reason(error)}")
    if not (stat.S_ISREG(seen.st_mode) or stat.S_ISDIR(seen.st_mode)):
        return LeftOut(printable(path), _kind(seen.st_mode))
    return seen


def is_hidden(path: str) -> bool:
    """Whether a component of a relative path is hidden or a system directory, so not the user's data."""
    return any(part.startswith(".") or part in OF_THE_SYSTEM for part in path.split("/"))


def _identity(info: os.stat_result) -> tuple[int, int]:
    return info.st_dev, info.st_ino
