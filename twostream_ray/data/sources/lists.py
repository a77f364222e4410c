"""Parsers for annotation files: split lists of UCF101, HMDB51 and Kinetics, and CSV or Parquet tables.

UCF101: Soomro, Zamir and Shah 2012. HMDB51: Kuehne et al. 2011. Kinetics: Kay et al. 2017. Every line becomes a
`Membership` with its file and line number, for error messages.
"""

import os
import posixpath
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache, partial
from pathlib import PurePosixPath
from urllib.parse import unquote

from twostream_ray.data.sources.classes import in_order
from twostream_ray.data.sources.tables import SPLIT_TITLES, Table, read_rows, text_of
from twostream_ray.errors import CatalogError
from twostream_ray.storage.local_files import FILE_URI, LeftOut

ListFiles = Callable[[str], Iterable[tuple[str, int] | LeftOut]]
"""Directory or s3:// prefix -> (relative posix path, size in bytes) of every file below it.

It may also yield directories, as paths that end in "/" (object stores keep such markers), so that empty classes are
noticed, and a `LeftOut` for what is neither file nor directory, to be named in the notes.
"""

TO_SPLIT = "to train, give --catalog.split '[0.7, 0.15, 0.15]' (train, val, test)"
"""The hint of notes on data sets without splits."""

ReadBytes = Callable[[str], bytes]
"""Path or URI of a list -> its content."""

LIMIT_BYTES = 256 << 20
"""Maximum size of a list, far above that of any real one."""

_CONTAINERS = (
    "3g2 3gp 3gpp asf avi dav divx dv f4v flv gif ivf m2p m2t m2ts m4v mk3d mkv mod mov mp4 mpe mpeg mpg mts mxf "
    "nut ogm ogv qt rm rmvb tod trp ts vob vro webm wmv wtv xvid y4m"
)
VIDEO_SUFFIXES = frozenset(f".{name}" for name in _CONTAINERS.split())
"""Containers with timestamps that PyAV's build of FFmpeg opens; raw streams (.h264, .m2v) have no frame rate."""

IMAGE_SUFFIXES = frozenset({".jpg", ".jpeg", ".png"})

ROLES = {
    "train": "train",
    "training": "train",
    "val": "val",
    "valid": "val",
    "validation": "val",
    "validate": "val",
    "test": "test",
    "testing": "test",
}
"""Accepted name of a split, case-insensitive -> its canonical name."""

SPLIT = re.compile(r"(training|train|validation|validate|valid|val|testing|test)([0-9]{0,9})", re.IGNORECASE)
_UCF101_LIST = re.compile(r"(train|test)list([0-9]{1,9})\.txt")
_UCF101_TRAIN_LINE = re.compile(r"(?P<path>.+?)\s+(?P<number>[0-9]{1,9})")
_HMDB51_LIST = re.compile(r"([^/]+)_test_split([1-9][0-9]{0,8})\.txt")
_HMDB51_ROLES = {"1": "train", "2": "test"}
_TABLE_SUFFIXES = (".csv", ".tsv", ".txt")
_S3_SCHEMES = re.compile(r"s3[an]?://", re.IGNORECASE)
_INTEGER = re.compile(r"([+-]?\d+)(\.0*)?", re.ASCII)
_KINETICS_COLUMNS = ("label", "youtube_id", "time_start", "time_end", "split")


@dataclass(frozen=True, kw_only=True, slots=True)
class Membership:
    """One line of a list: a video, its class and a split that it belongs to."""

    path: str
    """Posix path relative to the root."""
    class_name: str
    split: str
    where: str
    """File and line, for error messages."""
    other_path: str = ""
    """The path without percent-decoding; "" if that is the same."""
    group: str = ""
    """The source that it was cut from, from a table's group column; "" if unknown."""


def read_split_list(uri: str, *, read_bytes: ReadBytes, frames: bool = False) -> list[Membership]:
    """Read lines `class/video split`.

    The video's name may contain spaces; the split is train, val or test, optionally with a number. With `frames` the
    name may be that of a folder.

    Raises:
        CatalogError: a malformed line, or an empty list.
    """
    memberships: list[Membership] = []
    for where, line in _lines(uri, read_bytes=read_bytes):
        name, *rest = line.rsplit(maxsplit=1)
        path, match = _plain(name), SPLIT.fullmatch("".join(rest))
        if match is None or not (_is_class_and_video(path) or (frames and path.count("/") == 1)):
            raise CatalogError(
                f"{where}: wanted `class/video split` with a split such as train, val, test or train1, got {line!r}"
            )
        memberships.append(Membership(path=path, class_name=path.split("/")[0], split=_role(match), where=where))
    if not memberships:
        raise CatalogError(f"{uri} is empty: wanted lines `class/video split`")
    return memberships


def read_ucf101_lists(
    directory: str, *, list_files: ListFiles, read_bytes: ReadBytes
) -> tuple[dict[str, str], list[Membership]]:
    """Read UCF101's lists: class -> the line that names it, in classInd.txt's order; all train and test list entries.

    The class is the directory's name: the archive contains HandstandPushups/v_HandStandPushups_g01_c01.avi.

    Raises:
        CatalogError: a missing or malformed list, or lists that contradict each other.
    """
    base = directory.rstrip("/")
    found = {name for name, _ in list_files(directory)}
    numbers = sorted({match[2] for match in map(_UCF101_LIST.fullmatch, found) if match})
    wanted = {f"{role}list{number}.txt" for number in numbers for role in ("train", "test")} | {"classInd.txt"}
    if not numbers or wanted - found:
        lacking = min(wanted - found) if numbers else "trainlist01.txt"
        raise CatalogError(
            f"{directory} has no {lacking}: wanted classInd.txt and, per split, trainlist0N.txt and testlist0N.txt, "
            f"found {' '.join(sorted(found)[:8]) or 'nothing'}"
        )
    classes = _read_class_index(f"{base}/classInd.txt", read_bytes=read_bytes)
    positions = {name: position for position, name in enumerate(classes, start=1)}
    memberships: list[Membership] = []
    for number in numbers:
        for role in ("train", "test"):
            for where, line in _lines(f"{base}/{role}list{number}.txt", read_bytes=read_bytes):
                match = _UCF101_TRAIN_LINE.fullmatch(line) if role == "train" else None
                path = _plain(match["path"] if match else line)
                if (role == "train" and match is None) or not _is_class_and_video(path):
                    form = "`class/video.avi number`" if role == "train" else "`class/video.avi`"
                    raise CatalogError(f"{where}: wanted {form}, got {line!r}")
                name = path.split("/")[0]
                if name not in classes:
                    raise CatalogError(f"{where}: class {name!r} is not in {base}/classInd.txt; got {line!r}")
                if match and positions[name] != int(match["number"]):
                    raise CatalogError(
                        f"{where}: class {name!r} is number {positions[name]} in {base}/classInd.txt, "
                        f"the line says {match['number']}: use lists of one release"
                    )
                memberships.append(Membership(path=path, class_name=name, split=f"{role}{int(number)}", where=where))
    return classes, memberships


def _read_class_index(uri: str, *, read_bytes: ReadBytes) -> dict[str, str]:
    """Read lines `number name`, numbered from 1 without a gap: class name -> the line that names it."""
    classes: dict[str, str] = {}
    for where, line in _lines(uri, read_bytes=read_bytes):
        number, _, name = line.partition(" ")
        name = name.strip()
        if number != str(len(classes) + 1) or not name or name in classes:
            raise CatalogError(f"{where}: wanted `{len(classes) + 1} class name` with a new name, got {line!r}")
        classes[name] = where
    if not classes:
        raise CatalogError(f"{uri} is empty: wanted lines `number class name`")
    return classes


def _lines(uri: str, *, read_bytes: ReadBytes) -> Iterable[tuple[str, str]]:
    """(file and line number, text) of every non-blank line; CRLF line ends and a byte order mark are dropped."""
    for number, line in enumerate(re.split(r"\r\n|\n|\r", text_of(read_bytes(uri), where=uri)), start=1):
        if line.strip():
            yield f"{uri}, line {number}", line.strip()


def _is_class_and_video(path: str) -> bool:
    return path.count("/") == 1 and PurePosixPath(path).suffix.lower() in VIDEO_SUFFIXES


def _plain(path: str) -> str:
    """A normalised posix path: without ./ and with slashes."""
    return posixpath.normpath(path if "/" in path else path.replace("\\", "/"))


def read_hmdb51_lists(
    directory: str, *, list_files: ListFiles, read_bytes: ReadBytes
) -> tuple[dict[str, str], list[Membership]]:
    """Read HMDB51's lists CLASS_test_splitN.txt of lines `video code`: 1 is train, 2 is test, 0 is unused.

    Returns class -> the lists that name it, in label order, and all train and test list entries.

    Raises:
        CatalogError: a missing list, or a malformed line.
    """
    base = directory.rstrip("/")
    found = {
        (match[1], int(match[2])): name
        for name, _ in list_files(directory)
        if (match := _HMDB51_LIST.fullmatch(name)) and not name.startswith(".")
    }
    numbers = sorted({number for _, number in found})
    classes = {name: f"{base}/{name}_test_split*.txt" for name in in_order({name for name, _ in found})}
    lacking = [
        f"{name}_test_split{number}.txt" for name in classes for number in numbers if (name, number) not in found
    ]
    if not found or lacking:
        raise CatalogError(
            f"{directory} has no {lacking[0] if lacking else 'CLASS_test_split1.txt'}: wanted such a list for every "
            f"class and split, found {len(found)}"
        )
    memberships: list[Membership] = []
    for (name, number), file in sorted(found.items()):
        for where, line in _lines(f"{base}/{file}", read_bytes=read_bytes):
            video, *rest = line.rsplit(maxsplit=1)
            path = f"{name}/{_plain(video)}"
            if rest not in (["0"], ["1"], ["2"]) or not _is_class_and_video(path):
                raise CatalogError(f"{where}: wanted `video.avi code` with code 0, 1 or 2, got {line!r}")
            if rest[0] in _HMDB51_ROLES:
                split = f"{_HMDB51_ROLES[rest[0]]}{number}"
                memberships.append(Membership(path=path, class_name=name, split=split, where=where))
    return classes, memberships


def read_kinetics_lists(
    uri: str, *, videos: Mapping[str, int], list_files: ListFiles, read_bytes: ReadBytes
) -> tuple[list[Membership], list[str]]:
    """Read Kinetics' rows label, youtube_id, time_start, time_end, split from one CSV file or a directory of them.

    A clip is the video ID_SSSSSS_EEEEEE (start and end in seconds), anywhere below the root; of several with that name,
    the one in a folder named like its label. Rows without a label, as in test lists, are counted in a note.

    Raises:
        CatalogError: no CSV file, a missing column, a malformed row, or a clip that several videos could be.
    """
    paths_of: dict[str, list[str]] = {}
    for path in sorted(videos):
        paths_of.setdefault(PurePosixPath(path).stem, []).append(path)
    files = (
        [uri]
        if uri.lower().endswith(_TABLE_SUFFIXES)
        else [
            f"{uri.rstrip('/')}/{name}"
            for name, _ in list_files(uri)
            if name.lower().endswith(_TABLE_SUFFIXES) and not any(part.startswith(".") for part in name.split("/"))
        ]
    )
    if not files:
        raise CatalogError(f"{uri} has no CSV file: wanted columns {', '.join(_KINETICS_COLUMNS)}")
    memberships: list[Membership] = []
    unlabelled = 0
    for file in files:
        for where, row in read_rows(file, read_bytes=read_bytes, columns=_KINETICS_COLUMNS).rows:
            if not row["label"]:
                unlabelled += 1
                continue
            try:
                stem = f"{row['youtube_id']}_{round(float(row['time_start'])):06d}_{round(float(row['time_end'])):06d}"
            except (ValueError, OverflowError):
                raise CatalogError(
                    f"{where}: wanted seconds in time_start and time_end, got {row['time_start']!r} and "
                    f"{row['time_end']!r}"
                ) from None
            path = _kinetics_video(paths_of.get(stem, []), stem=stem, label=row["label"], where=where)
            split = _split_of(row["split"], where=where)
            memberships.append(Membership(path=path, class_name=row["label"], split=split, where=where))
    return memberships, [f"{unlabelled} listed clips have no label and are left out"] if unlabelled else []


def _kinetics_video(paths: Sequence[str], *, stem: str, label: str, where: str) -> str:
    if len(paths) > 1:
        own = [path for path in paths if PurePosixPath(path).parent.name == label]
        if len(own) != 1:
            raise CatalogError(
                f"{where}: one video {stem} of class {label} was wanted, {len(paths)} have that name, as {paths[0]} "
                f"and {paths[1]}: keep one, or move it into a folder {label}"
            )
        return own[0]
    return paths[0] if paths else f"{label}/{stem}.mp4"


def read_table(uri: str, *, root: str, read_bytes: ReadBytes) -> tuple[list[Membership], list[str]]:
    """Read rows uri, label, split of a CSV or Parquet file, and notes.

    Several splits of a clip are separated by ";" or blanks; without any split the clip is in "all". An optional column
    group names the source that a clip was cut from. The uri is relative to root, or the absolute path of a video below
    it, or its file:// URI, percent-encoded (RFC 8089). Integer labels may be written as 1.0, as pandas writes a column
    with empty cells.

    Raises:
        CatalogError: a missing column, a malformed row, a uri outside root, or an empty table.
    """
    table = read_rows(uri, read_bytes=read_bytes, columns=("uri", "label"), optional=("split", "group"))
    notes = _notes_on_splits(uri, table)
    labels = _labels(table)
    own_part = lru_cache(maxsize=None)(partial(_below_the_same_directory, root=root))
    memberships: list[Membership] = []
    for (where, row), label in zip(table.rows, labels, strict=True):
        path, other_path = _below(row["uri"], root=root, own_part=own_part)
        if not path or not label:
            raise CatalogError(
                f"{where}: wanted a label and the uri of a video below catalog.root ({root}), got uri {row['uri']!r}, "
                f"label {row['label']!r}"
            )
        for split in ["all"] if notes else row["split"].replace(";", " ").split() or [""]:
            name = split if split == "all" else _split_of(split, where=where)
            memberships.append(
                Membership(
                    path=path,
                    class_name=label,
                    split=name,
                    where=where,
                    other_path=other_path,
                    group=row.get("group", ""),
                )
            )
    if not memberships:
        raise CatalogError(f"{uri} is empty: wanted rows with uri, label and, if there are several, split")
    return memberships, notes


def _notes_on_splits(uri: str, table: Table) -> list[str]:
    """A note if no row has a split; if only some rows have one, the others are an error later."""
    if "split" in table.columns and any(row["split"] for _, row in table.rows):
        return []
    lack = "its column of splits is empty" if "split" in table.columns else f"no column {' or '.join(SPLIT_TITLES)}"
    unread = f"; ignored columns: {', '.join(table.unread)[:200]}" if table.unread else ""
    return [f'{uri}: {lack}, every clip is in the split "all"; {TO_SPLIT}{unread}']


def _labels(table: Table) -> list[str]:
    labels = [row["label"] for _, row in table.rows]
    integers = [_INTEGER.fullmatch(label) for label in labels]
    return [match[1] for match in integers if match] if all(integers) else labels


def _below(uri: str, *, root: str, own_part: Callable[[str], str | None]) -> tuple[str, str]:
    """The path relative to root, "" if it is outside, and the same without percent-decoding if that differs."""
    scheme = FILE_URI.match(uri)
    if scheme is None:
        return _relative(uri, root=root, own_part=own_part), ""
    literal = uri[scheme.end() :]
    decoded = unquote(literal, errors="surrogateescape")
    paths = [_relative(path, root=root, own_part=own_part) for path in dict.fromkeys((decoded, literal))]
    return paths[0], paths[-1] if len(paths) > 1 else ""


def _relative(uri: str, *, root: str, own_part: Callable[[str], str | None]) -> str:
    base = root.rstrip("/") + "/"
    uri = _S3_SCHEMES.sub("s3://", uri, count=1) if "://" in uri else uri
    path = _normal(uri.removeprefix(base).lstrip("/") if uri.startswith(base) else uri)
    if path or "://" in uri or "://" in base or not uri.startswith("/"):
        return path
    folder, _, name = uri.rpartition("/")
    below = own_part(folder)
    return "" if below is None else _normal(f"{below}/{name}")


def _normal(path: str) -> str:
    """A relative path without ./ and a/../; "" if it leads outside."""
    normal = posixpath.normpath(path) if path and "://" not in path else ".."
    return "" if normal in (".", "..") or normal.startswith(("../", "/")) else normal


def _below_the_same_directory(folder: str, *, root: str) -> str | None:
    """A directory's path relative to root after resolving symbolic links; None if it is outside root."""
    wanted = os.path.realpath(root)
    for above in (PurePosixPath(folder), *PurePosixPath(folder).parents):
        if os.path.realpath(above) == wanted:
            return str(PurePosixPath(folder).relative_to(above))
    return None


def _split_of(text: str, *, where: str) -> str:
    match = SPLIT.fullmatch(text.strip())
    if match is None:
        raise CatalogError(f"{where}: wanted a split such as train, val, test or train1, got {text!r}")
    return _role(match)


def _role(match: re.Match[str]) -> str:
    return ROLES[match[1].casefold()] + match[2]
