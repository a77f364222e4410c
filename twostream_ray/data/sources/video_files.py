"""Input files of prediction: expands folders, s3:// prefixes, globs and tables of URIs into a list of videos."""

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
"""Suffixes of tables and lists of URIs."""

_MAGIC = re.compile(r"[*?\[]")
_ABSOLUTE_URI = re.compile(r"[a-zA-Z][a-zA-Z0-9+.-]*://|/|~")
_GLOB_WORDS = re.compile(r"\*\*/?|\*|\?|\[!?\]?[^\]]*\]|[^*?\[]+|\[")

KindOf = Callable[[str], Literal["folder", "file"] | None]
"""Name -> its kind; None if it does not exist or, in an object store, was not checked."""


@dataclass(frozen=True, kw_only=True, slots=True)
class VideoFiles:
    """Videos in the order of the arguments; those of a folder, prefix or glob sorted by name."""

    uris: tuple[str, ...]
    """Without duplicates."""
    notes: tuple[str, ...]
    """Sentences on skipped files."""


def find_videos(named: Sequence[str], *, kind_of: KindOf, list_files: ListFiles, read_bytes: ReadBytes) -> VideoFiles:
    """Expand command-line arguments into videos.

    - a folder or s3:// prefix: every file below it with the suffix of a video, except hidden ones;
    - a glob (`*`, `?`, `[ab]` within a path component, `**` across components): the files that match;
    - a table (.csv, .tsv, .parquet) with a column `uri`, or a .txt file with one URI per line: the videos that it
      names, relative paths being relative to the table's folder;
    - anything else: one video, whether it exists or not.

    Raises:
        CatalogError: a folder without a video, a glob without a match, or a malformed table.
        StorageError: a folder or table cannot be read.
    """
    uris: list[str] = []
    notes: list[str] = []
    for argument in named:
        suffix = PurePosixPath(argument).suffix.lower()
        kind = kind_of(argument)
        if kind == "folder":
            found, skipped = _videos_below(argument, list_files=list_files)
            uris += found
            notes += skipped
        elif suffix in TABLE_SUFFIXES:
            uris += _read_uris(argument, is_list=suffix == ".txt", read_bytes=read_bytes)
        elif kind is None and _MAGIC.search(argument):
            uris += _expand_glob(argument, list_files=list_files)
        else:
            uris.append(argument)
    return VideoFiles(uris=tuple(dict.fromkeys(uris)), notes=tuple(notes))


def is_video_name(uri: str) -> bool:
    """Whether a name has the suffix of a video."""
    return PurePosixPath(uri).suffix.lower() in VIDEO_SUFFIXES


def _videos_below(folder: str, *, list_files: ListFiles) -> tuple[list[str], list[str]]:
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
            f"other files{f' such as {printable(others[0])}' if others else ''}: give the folder of the videos"
        )
    notes = []
    if others:
        notes.append(f"files under {folder} that are not videos, left out: {len(others)}, for example {others[0]}")
    if unusable:
        first = unusable[0]
        notes.append(
            f"entries under {folder} that cannot be used, left out: {len(unusable)}, for example "
            f"{first.path} ({first.why})"
        )
    return found, notes


def _expand_glob(glob: str, *, list_files: ListFiles) -> list[str]:
    """Files that match a glob, sorted by name."""
    magic = _MAGIC.search(glob)
    assert magic is not None  # noqa: S101  (the caller has seen one)
    folder, _, _ = glob[: magic.start()].rpartition("/")
    if glob.startswith("s3://") and folder in ("s3:", "s3:/"):
        raise CatalogError(f"a glob may not cover the bucket's name, got {glob}: write s3://BUCKET/ before it")
    rest = glob[len(folder) + 1 :] if "/" in glob[: magic.start()] else glob
    root = folder or ("/" if glob.startswith("/") else ".")
    pattern = re.compile(_pattern(rest))
    found = [
        _joined(folder, entry[0]) if folder or glob.startswith("/") else entry[0]
        for entry in list_files(root)
        if not isinstance(entry, LeftOut) and not is_hidden(entry[0]) and pattern.fullmatch(entry[0])
    ]
    if not found:
        raise CatalogError(f"no file under {root} matches {glob}: check the pattern")
    return found


def _pattern(glob: str) -> str:
    """Translate a glob into a regular expression over relative posix paths."""
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


def _read_uris(table: str, *, is_list: bool, read_bytes: ReadBytes) -> list[str]:
    if is_list:
        lines = text_of(read_bytes(table), where=table).splitlines()
        rows = [(f"{table}, line {number}", line.strip()) for number, line in enumerate(lines, start=1)]
        rows = [(where, uri) for where, uri in rows if uri and not uri.startswith("#")]
    else:
        rows = [(where, row["uri"]) for where, row in read_rows(table, read_bytes=read_bytes, columns=("uri",)).rows]
    if not rows:
        raise CatalogError(f"{table}: expected URIs of videos, found none")
    folder = posixpath.dirname(table)
    uris = []
    for where, uri in rows:
        if not uri:
            raise CatalogError(f"{where}: expected the uri of a video, got an empty cell")
        uris.append(uri if _ABSOLUTE_URI.match(uri) or not folder else _joined(folder, uri))
    return uris


def _joined(folder: str, path: str) -> str:
    return f"{folder.rstrip('/')}/{path}"
