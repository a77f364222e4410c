"""The formats in which data sets list their clips, classes and splits.

UCF101: Soomro, Zamir and Shah 2012. HMDB51: Kuehne et al. 2011. Kinetics: Kay et al. 2017. Every line becomes a
membership that knows where it was read, so that whatever is wrong later can be named by file and line.
"""

import csv
import io
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any

from twostream_ray.errors import CatalogError
from twostream_ray.local_files import LeftOut

ListFiles = Callable[[str], Iterable[tuple[str, int] | LeftOut]]
"""Directory or s3:// prefix -> (relative posix path, size in bytes) of every file below it.

A directory may be given as a path that ends in "/" (object stores keep such markers): then an empty class is seen. What
is neither file nor directory may be given as a `LeftOut`: then the notes name it.
"""

ReadBytes = Callable[[str], bytes]
"""Path or URI of a list -> its content."""

LIMIT_BYTES = 256 << 20
"""No list of clips comes near it."""

VIDEO_SUFFIXES = frozenset(
    {".avi", ".mp4", ".mkv", ".mov", ".webm", ".mpg", ".mpeg", ".m4v", ".gif", ".flv", ".wmv", ".3gp", ".ts"}
)

IMAGE_SUFFIXES = frozenset({".jpg", ".jpeg", ".png"})

ROLES = {"train": "train", "val": "val", "valid": "val", "validation": "val", "validate": "val", "test": "test"}
"""How a split may be called -> what it is called here."""

SPLIT = re.compile(r"(train|validation|validate|valid|val|test)(\d*)")
_UCF101_LIST = re.compile(r"(train|test)list(\d+)\.txt")
_UCF101_TRAIN_LINE = re.compile(r"(?P<path>.+?)\s+(?P<number>\d+)")
_HMDB51_LIST = re.compile(r"(.+)_test_split(\d+)\.txt")
_HMDB51_ROLES = {"1": "train", "2": "test"}
_KINETICS_COLUMNS = ("label", "youtube_id", "time_start", "time_end", "split")


@dataclass(frozen=True, kw_only=True, slots=True)
class Membership:
    """This video is in this split, says this line."""

    path: str
    class_name: str
    split: str
    where: str


def read_split_list(uri: str, *, read_bytes: ReadBytes, frames: bool = False) -> list[Membership]:
    """Lines `class/video split`; the video's name may hold spaces, the split is train, val or test with a number.

    With `frames` the name may be that of a folder.
    """
    memberships: list[Membership] = []
    for where, line in _lines(uri, read_bytes=read_bytes):
        path, *rest = line.rsplit(maxsplit=1)
        match = SPLIT.fullmatch("".join(rest))
        if match is None or not (_is_class_and_video(path) or (frames and path.count("/") == 1)):
            raise CatalogError(
                f"{where}: wanted `class/video split` with a split such as train, val, test or train1, got {line!r}"
            )
        memberships.append(
            Membership(path=path, class_name=path.split("/")[0], split=ROLES[match[1]] + match[2], where=where)
        )
    if not memberships:
        raise CatalogError(f"{uri} is empty: wanted lines `class/video split`")
    return memberships


def read_ucf101_lists(
    directory: str, *, list_files: ListFiles, read_bytes: ReadBytes
) -> tuple[dict[str, str], list[Membership]]:
    """Classes in classInd.txt's order, each with the line that names it, and every line of every train and test list.

    The label is that of the directory, for the archive itself has HandstandPushups/v_HandStandPushups_g01_c01.avi.
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
                path = match["path"] if match else line
                if (role == "train" and match is None) or not _is_class_and_video(path):
                    form = "`class/video.avi number`" if role == "train" else "`class/video.avi`"
                    raise CatalogError(f"{where}: wanted {form}, got {line!r}")
                name = path.split("/")[0]
                if name not in classes:
                    raise CatalogError(f"{where}: class {name!r} is not in {base}/classInd.txt; got {line!r}")
                if match and positions[name] != int(match["number"]):
                    raise CatalogError(
                        f"{where}: class {name!r} is number {positions[name]} in {base}/classInd.txt, "
                        f"the line says {match['number']}: the lists do not belong together"
                    )
                memberships.append(Membership(path=path, class_name=name, split=f"{role}{int(number)}", where=where))
    return classes, memberships


def _read_class_index(uri: str, *, read_bytes: ReadBytes) -> dict[str, str]:
    """Class name -> the line that names it; lines `number name`, numbered from 1 without a gap."""
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
    """Non-blank lines with where they are; CRLF line ends and a byte order mark are dropped."""
    for number, line in enumerate(_text(uri, read_bytes=read_bytes).split("\n"), start=1):
        if line.strip():
            yield f"{uri}, line {number}", line.strip()


def _is_class_and_video(path: str) -> bool:
    return path.count("/") == 1 and PurePosixPath(path).suffix.lower() in VIDEO_SUFFIXES


def _text(uri: str, *, read_bytes: ReadBytes) -> str:
    """A list's text without its byte order mark."""
    try:
        return read_bytes(uri).decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise CatalogError(f"{uri}: a UTF-8 text was wanted, byte {error.start} is not: save it as UTF-8") from error


def read_hmdb51_lists(
    directory: str, *, list_files: ListFiles, read_bytes: ReadBytes
) -> tuple[dict[str, str], list[Membership]]:
    """Lines `name code` of CLASS_test_splitN.txt: 1 trains, 2 tests, 0 takes no part; the class is the file's name."""
    base = directory.rstrip("/")
    found = {
        (match[1], int(match[2])): name for name, _ in list_files(directory) if (match := _HMDB51_LIST.fullmatch(name))
    }
    numbers = sorted({number for _, number in found})
    classes = {name: f"{base}/{name}_test_split*.txt" for name in sorted({name for name, _ in found})}
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
            path = f"{name}/{video}"
            if rest not in (["0"], ["1"], ["2"]) or not _is_class_and_video(path):
                raise CatalogError(f"{where}: wanted `video.avi code` with code 0, 1 or 2, got {line!r}")
            if rest[0] in _HMDB51_ROLES:
                split = f"{_HMDB51_ROLES[rest[0]]}{number}"
                memberships.append(Membership(path=path, class_name=name, split=split, where=where))
    return classes, memberships


def read_kinetics_lists(
    uri: str, *, videos: Mapping[str, int], list_files: ListFiles, read_bytes: ReadBytes
) -> tuple[list[Membership], list[str]]:
    """Rows label, youtube_id, time_start, time_end, split of a CSV file, or of every CSV file of a directory.

    A clip is the video ID_SSSSSS_EEEEEE (start and end in seconds), wherever it lies. Rows without a label, as test
    lists have, are counted in a note.
    """
    places = {PurePosixPath(path).stem: path for path in sorted(videos)}
    files = (
        [uri]
        if uri.endswith(".csv")
        else [f"{uri.rstrip('/')}/{name}" for name, _ in list_files(uri) if name.endswith(".csv")]
    )
    if not files:
        raise CatalogError(f"{uri} has no CSV file: wanted columns {', '.join(_KINETICS_COLUMNS)}")
    memberships: list[Membership] = []
    unlabelled = 0
    for file in files:
        for where, row in _rows(file, read_bytes=read_bytes, columns=_KINETICS_COLUMNS):
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
            path = places.get(stem, f"{row['label']}/{stem}.mp4")
            split = _split_of(row["split"], where=where)
            memberships.append(Membership(path=path, class_name=row["label"], split=split, where=where))
    return memberships, [f"{unlabelled} listed clips have no label and are left out"] if unlabelled else []


def read_table(uri: str, *, root: str, read_bytes: ReadBytes) -> list[Membership]:
    """Rows uri, label, split of a CSV or Parquet file; several splits are separated by ";" or blanks, none is "all".

    The uri is relative to root, or the whole place of a video below it.
    """
    rows = (
        _parquet_rows(uri, read_bytes=read_bytes, columns=("uri", "label"))
        if uri.endswith(".parquet")
        else _rows(uri, read_bytes=read_bytes, columns=("uri", "label"))
    )
    base = root.rstrip("/") + "/"
    memberships: list[Membership] = []
    for where, row in rows:
        path = row["uri"].removeprefix("file://").removeprefix(base)
        if not path or not row["label"] or "://" in path or path.startswith("/"):
            raise CatalogError(
                f"{where}: wanted a label and the uri of a video below catalog.root ({root}), got uri {row['uri']!r}, "
                f"label {row['label']!r}"
            )
        for split in row.get("split", "").replace(";", " ").split() or ["all"]:
            name = split if split == "all" else _split_of(split, where=where)
            memberships.append(Membership(path=path, class_name=row["label"], split=name, where=where))
    if not memberships:
        raise CatalogError(f"{uri} is empty: wanted rows with uri, label and, if there are several, split")
    return memberships


def _split_of(text: str, *, where: str) -> str:
    match = SPLIT.fullmatch(text.strip())
    if match is None:
        raise CatalogError(f"{where}: wanted a split such as train, val, test or train1, got {text!r}")
    return ROLES[match[1]] + match[2]


def _rows(uri: str, *, read_bytes: ReadBytes, columns: Iterable[str]) -> Iterator[tuple[str, dict[str, str]]]:
    """Rows of a CSV file with where they are."""
    reader = csv.DictReader(io.StringIO(_text(uri, read_bytes=read_bytes), newline=""), restkey="", restval="")
    try:
        _refuse_missing_columns(uri, found=reader.fieldnames or [], columns=columns)
        for row in reader:
            where = f"{uri}, line {reader.line_num}"
            if "" in row:
                raise CatalogError(f"{where}: wanted {len(reader.fieldnames or [])} values, got more")
            yield where, {name: value.strip() for name, value in row.items()}
    except csv.Error as error:
        raise CatalogError(f"{uri}, line {reader.line_num + 1}: a CSV file was wanted ({error})") from None


def _parquet_rows(uri: str, *, read_bytes: ReadBytes, columns: Iterable[str]) -> Iterator[tuple[str, dict[str, str]]]:
    """Rows of a Parquet file, as texts, with where they are; a list of splits is joined by ";"."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        table = pq.read_table(io.BytesIO(read_bytes(uri)))
    except (OSError, pa.ArrowException) as error:
        raise CatalogError(f"{uri}: a Parquet file was wanted ({' '.join(str(error).split())[:120]})") from error
    _refuse_missing_columns(uri, found=table.column_names, columns=columns)

    def text(value: Any) -> str:
        return ";".join(map(str, value)) if isinstance(value, list) else "" if value is None else str(value)

    for number, row in enumerate(table.to_pylist(), start=1):
        yield f"{uri}, row {number}", {name: text(value) for name, value in row.items()}


def _refuse_missing_columns(uri: str, *, found: Iterable[str], columns: Iterable[str]) -> None:
    missing = [name for name in columns if name not in set(found)]
    if missing:
        raise CatalogError(
            f"{uri}: wanted the columns {', '.join(columns)}, {missing[0]} is missing, "
            f"found {', '.join(found) or 'none'}"
        )
