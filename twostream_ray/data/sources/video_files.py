"""Input files of prediction: what folders, prefixes, globs and tables of URIs mean, as a list of videos."""

from __future__ import annotations

import posixpath
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Literal

from twostream_ray.data.sources.lists import VIDEO_SUFFIXES, ListFiles, ReadBytes
from twostream_ray.data.sources.tables import read_rows, text_of
from twostream_ray.errors import CatalogError
from twostream_ray.redaction import printable
from twostream_ray.storage.local_files import LeftOut, is_hidden

TABLE_SUFFIXES = (".csv", ".tsv", ".parquet", ".pq", ".txt")
"""Endings of files that name videos."""

_MAGIC = re.compile(r"[*?\[]")
_WHOLE_URI = re.compile(r"[a-zA-Z][a-zA-Z0-9+.-]*://|/|~")
_GLOB_WORDS = re.compile(r"\*\*/?|\*|\?|\[!?\]?[^\]]*\]|[^*?\[]+|\[")

KindOf = Callable[[str], Literal["folder", "file"] | None]
"""Name -> what is there; None: nothing, or, of an object store, nobody has looked."""


@dataclass(frozen=True, kw_only=True, slots=True)
class VideoFiles:
    """Videos in the order in which they were named; what a folder, prefix or glob holds in order of name."""

    uris: tuple[str, ...]
    """Each once."""
    notes: tuple[str, ...]
    """Sentences on what was left out."""


def find_videos(named: Sequence[str], *, kind_of: KindOf, list_files: ListFiles, read_bytes: ReadBytes) -> VideoFiles:
    """The videos that are meant by what was named on a command line.

    - a folder or s3:// prefix: every file below it whose ending is that of a video, hidden ones left out;
    - a glob (`*`, `?`, `[ab]` within a folder's name, `**` for any folders): the files that it fits;
    - a table (.csv, .tsv, .parquet) with a column `uri`, or a .txt file with a URI a line: what it names, paths being
      relative to the folder that the table is in;
    - anything else: one video, whether it is there or not.

    Raises:
        CatalogError: a folder or glob holds no video, or a table is none.
        StorageError: one cannot be read.
    """
    uris: list[str] = []
    notes: list[str] = []
    for one in named:
        suffix = PurePosixPath(one).suffix.lower()
        kind = kind_of(one)
        if kind == "folder":
            found, left_out = _below(one, list_files=list_files)
            uris += found
            notes += left_out
        elif suffix in TABLE_SUFFIXES:
            uris += _named_in(one, is_list=suffix == ".txt", read_bytes=read_bytes)
        elif kind is None and _MAGIC.search(one):
            uris += _fitting(one, list_files=list_files)
        else:
            uris.append(one)
    return VideoFiles(uris=tuple(dict.fromkeys(uris)), notes=tuple(notes))


def is_video_name(uri: str) -> bool:
    """Whether a name ends as a video's does."""
    return PurePosixPath(uri).suffix.lower() in VIDEO_SUFFIXES


def _below(folder: str, *, list_files: ListFiles) -> tuple[list[str], list[str]]:
    found: list[str] = []
    others: list[str] = []
    unusable: list[LeftOut] = []
    for entry in list_files(folder):
        if isinstance(entry, LeftOut):
            unusable.append(entry)
        elif is_hidden(entry[0]) or not is_video_name(entry[0]):
            others += [] if entry[0].endswith("/") or is_hidden(entry[0]) else [entry[0]]
        else:
            found.append(_joined(folder, entry[0]))
    if not found:
        raise CatalogError(
            f"no video under {folder}: wanted files ending in {' '.join(sorted(VIDEO_SUFFIXES))}, found {len(others)} "
            f"other files{f', as {printable(others[0])}' if others else ''}: name the folder of the videos"
        )
    notes = []
    if others:
        notes.append(f"files under {folder} that are no videos, left out: {len(others)}, for example {others[0]}")
    if unusable:
        first = unusable[0]
        notes.append(
            f"entries under {folder} that cannot be used, left out: {len(unusable)}, for example "
            f"{first.path} ({first.why})"
        )
    return found, notes


def _fitting(glob: str, *, list_files: ListFiles) -> list[str]:
    """Files that a glob fits, in order of name."""
    magic = _MAGIC.search(glob)
    assert magic is not None  # noqa: S101  (the caller has seen one)
    folder, _, _ = glob[: magic.start()].rpartition("/")
    if glob.startswith("s3://") and folder in ("s3:", "s3:/"):
        raise CatalogError(f"a bucket's own name was wanted behind s3://, got {glob}")
    rest = glob[len(folder) + 1 :] if "/" in glob[: magic.start()] else glob
    root = folder or ("/" if glob.startswith("/") else ".")
    fits = re.compile(_pattern(rest))
    found = [
        _joined(folder, entry[0]) if folder or glob.startswith("/") else entry[0]
        for entry in list_files(root)
        if not isinstance(entry, LeftOut) and not is_hidden(entry[0]) and fits.fullmatch(entry[0])
    ]
    if not found:
        raise CatalogError(f"no file fits {glob}: wanted videos, looked under {root}")
    return found


def _pattern(glob: str) -> str:
    """A glob as a regular expression over relative posix paths."""
    words = []
    for word in _GLOB_WORDS.findall(glob):
        if word.startswith("**"):
            words.append(r"(?:[^/]+/)*" if word.endswith("/") else r".*")
        elif word == "*":
            words.append(r"[^/]*")
        elif word == "?":
            words.append(r"[^/]")
        elif word.startswith("[") and len(word) > 1:
            negated = word[1] == "!"
            members = word[2 if negated else 1 : -1].replace("\\", r"\\").replace("[", r"\[").replace("^", r"\^")
            words.append(f"[{'^/' if negated else ''}{members}]")
        else:
            words.append(re.escape(word))
    return "".join(words)


def _named_in(table: str, *, is_list: bool, read_bytes: ReadBytes) -> list[str]:
    if is_list:
        lines = text_of(read_bytes(table), where=table).splitlines()
        rows = [(f"{table}, line {number}", line.strip()) for number, line in enumerate(lines, start=1)]
        rows = [(where, uri) for where, uri in rows if uri and not uri.startswith("#")]
    else:
        rows = [(where, row["uri"]) for where, row in read_rows(table, read_bytes=read_bytes, columns=("uri",)).rows]
    if not rows:
        raise CatalogError(f"{table}: URIs of videos were wanted, it names none")
    folder = posixpath.dirname(table)
    uris = []
    for where, uri in rows:
        if not uri:
            raise CatalogError(f"{where}: the uri of a video was wanted, got none")
        uris.append(uri if _WHOLE_URI.match(uri) or not folder else _joined(folder, uri))
    return uris


def _joined(folder: str, path: str) -> str:
    return f"{folder.rstrip('/')}/{path}"
