"""Dataset layouts and split lists -> a table of labelled clips (UCF101: Soomro, Zamir and Shah 2012).

Split membership is data: a clip of UCF101 is listed once with its place in all three official splits, so that one
ingest serves them all. Nothing here touches a disk or a bucket: listing files and reading lists are handed in.
"""

import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Literal

from twostream_ray.errors import CatalogError, ConfigError

ListFiles = Callable[[str], Iterable[tuple[str, int]]]
"""Directory or s3:// prefix -> (relative posix path, size in bytes) of every file below it.

A directory may be given as a path that ends in "/" (object stores keep such markers): then an empty class is seen.
"""

ReadText = Callable[[str], str]
"""Path or URI of a list -> its text."""

VIDEO_SUFFIXES = frozenset(
    {".avi", ".mp4", ".mkv", ".mov", ".webm", ".mpg", ".mpeg", ".m4v", ".gif", ".flv", ".wmv", ".3gp", ".ts"}
)

_ROLES = {"train": "train", "val": "val", "valid": "val", "validation": "val", "test": "test"}
_SPLIT = re.compile(r"(train|validation|valid|val|test)(\d*)")
_UCF101_LIST = re.compile(r"(train|test)list(\d+)\.txt")
_UCF101_TRAIN_LINE = re.compile(r"(?P<path>.+?)\s+(?P<number>\d+)")


@dataclass(frozen=True, kw_only=True)
class CatalogConfig:
    """Where a data set's videos and lists are, and in which layout."""

    layout: Literal["folder", "ucf101"] = "folder"
    """folder: ROOT/split/class/video, or ROOT/class/video; ucf101: ROOT/class/video with the official lists."""

    root: str
    """Directory or s3:// prefix of the videos."""

    lists: str | None = None
    """ucf101: the directory with classInd.txt, trainlist0N.txt and testlist0N.txt. folder: a file with lines
    `class/video split` for ROOT/class/video; without it every clip of that form is in the split "all"."""

    def __post_init__(self) -> None:
        if self.layout not in ("folder", "ucf101"):
            raise ConfigError(f"catalog.layout must be folder or ucf101, got {self.layout!r}")
        if not self.root.strip():
            raise ConfigError("catalog.root must name the directory or s3:// prefix of the videos, got an empty string")
        if self.layout == "ucf101" and not self.lists:
            raise ConfigError(
                "catalog.lists must name the directory with classInd.txt, trainlist01.txt and testlist01.txt "
                "when catalog.layout is ucf101, got none"
            )


@dataclass(frozen=True, kw_only=True, slots=True)
class Clip:
    """A labelled video that is there to be read."""

    uri: str
    """Path or s3:// URI of the video file."""

    clip_id: str
    """Path relative to the data set's root, posix, with suffix; unique in the catalog."""

    class_name: str
    """Name of the class: the name of the directory the video lies in."""

    label: int
    """Index of the class in Catalog.classes, in [0, K)."""

    splits: tuple[str, ...]
    """The splits it belongs to: ("train",), or ("train1", "test2", "train3") for UCF101's three official splits."""

    size_bytes: int
    """Size of the video file."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Catalog:
    """The clips of a data set, and what the reader of the report should know about them."""

    clips: tuple[Clip, ...]
    """Sorted by clip_id."""

    classes: tuple[str, ...]
    """Class names; a clip's label is the index."""

    notes: tuple[str, ...]
    """Sentences for the report, such as "13291 of 13320 listed clips are not under videos"."""


@dataclass(frozen=True, kw_only=True, slots=True)
class _Membership:
    """This video is in this split, says this line."""

    path: str
    class_name: str
    split: str
    where: str


def read_catalog(config: CatalogConfig, *, list_files: ListFiles, read_text: ReadText) -> Catalog:
    """Read a data set's folders and lists into a table of labelled clips.

    Files that are no videos (by suffix), videos in no list and listed videos that are not there are counted in the
    notes; whatever would make a label or a split wrong is an error.

    Raises:
        CatalogError: no video, a video outside the layout, a malformed line, an unknown class or split, a clip listed
            twice or in train and test of one split, a class without clips.
    """
    videos, directories, notes = _scan(config.root, list_files=list_files)
    if config.lists is None:
        memberships, more_notes = _memberships_of_folders(config.root, videos=videos, directories=directories)
        notes += more_notes
        classes = dict.fromkeys(sorted({m.class_name for m in memberships}), config.root)
    elif config.layout == "folder":
        memberships = _read_split_list(config.lists, read_text=read_text)
        classes = dict.fromkeys(sorted({m.class_name for m in memberships}), config.lists)
    else:
        classes, memberships = _read_ucf101_lists(config.lists, list_files=list_files, read_text=read_text)
    _refuse_unlearnable_classes(classes, memberships=memberships)

    on_disk = _as_spelt_on_disk(memberships, videos=videos)
    by_path = _group_by_clip(on_disk)
    present = sorted(by_path.keys() & videos.keys())
    if not present:
        raise CatalogError(
            f"none of the {len(by_path)} clips listed in {config.lists} is under {config.root}: wanted for example "
            f"{min(by_path)}, found for example {min(videos)}; set catalog.root to the directory that holds the classes"
        )
    labels = {name: label for label, name in enumerate(classes)}
    clips = tuple(
        Clip(
            uri=f"{config.root.rstrip('/')}/{path}",
            clip_id=path,
            class_name=by_path[path][0].class_name,
            label=labels[by_path[path][0].class_name],
            splits=tuple(sorted((m.split for m in by_path[path]), key=lambda split: (_fold(split), split))),
            size_bytes=videos[path],
        )
        for path in present
    )

    respelt = sum(listed.path != found.path for listed, found in zip(memberships, on_disk, strict=True))
    if respelt:
        notes.append(f"{respelt} lines spell a file in another case than it has; the file's own name is used")
    if missing := sorted(by_path.keys() - videos.keys()):
        notes.append(
            f"{len(missing)} of {len(by_path)} listed clips are not under {config.root}, for example {missing[0]}"
        )
    if unlisted := sorted(videos.keys() - by_path.keys()):
        notes.append(f"{len(unlisted)} videos are in no list and left out, for example {unlisted[0]}")
    seen = {clip.class_name for clip in clips}
    if absent := [name for name in classes if name not in seen]:
        if config.layout == "folder":
            raise CatalogError(
                f"class {absent[0]!r} is listed in {config.lists} and has no video under {config.root}: "
                f"add its videos or take its lines out"
            )
        notes.append(f"{len(absent)} of {len(classes)} classes have no clip here, for example {absent[0]}")
    return Catalog(clips=clips, classes=tuple(classes), notes=tuple(notes))


def _scan(root: str, *, list_files: ListFiles) -> tuple[dict[str, int], list[str], list[str]]:
    """Videos with their sizes, directories that the listing names, and a note on other files."""
    videos: dict[str, int] = {}
    directories: list[str] = []
    others: list[str] = []
    for path, size_bytes in list_files(root):
        hidden = any(part.startswith(".") for part in path.split("/"))
        if path.endswith("/"):
            if not hidden and path.strip("/"):
                directories.append(path.rstrip("/"))
        elif hidden or PurePosixPath(path).suffix.lower() not in VIDEO_SUFFIXES:
            others.append(path)
            if not hidden:
                directories.append(str(PurePosixPath(path).parent))
        else:
            videos[path] = size_bytes
    if not videos:
        raise CatalogError(
            f"no video under {root}: wanted files ending in {' '.join(sorted(VIDEO_SUFFIXES))}, "
            f"found {len(others)} other files; check catalog.root"
        )
    notes = [f"{len(others)} files are no videos and left out, for example {min(others)}"] if others else []
    return videos, directories, notes


def _memberships_of_folders(
    root: str, *, videos: Mapping[str, int], directories: Sequence[str]
) -> tuple[list[_Membership], list[str]]:
    """ROOT/split/class/video where all folders of ROOT that hold videos are named as splits, else ROOT/class/video."""
    top = {path.split("/")[0] for path in videos}
    by_split = top <= _ROLES.keys()
    wanted = "split/class/video" if by_split else "class/video"
    depth = wanted.count("/") + 1
    memberships: list[_Membership] = []
    for path in sorted(videos):
        parts = path.split("/")
        if len(parts) != depth:
            names = " ".join(sorted(top & _ROLES.keys()))
            raise CatalogError(
                f"{path} under {root} does not fit {wanted}: "
                + (f"beside the splits {names} only split folders may hold videos; " if names and not by_split else "")
                + f"wanted split/class/video with splits named {' '.join(_ROLES)}, or class/video; move it"
            )
        split = _ROLES[parts[0]] if by_split else "all"
        memberships.append(_Membership(path=path, class_name=parts[-2], split=split, where=f"{root}, {path}"))

    filled = {str(PurePosixPath(path).parent) for path in videos}
    for directory in sorted(set(directories) - filled):
        is_class = directory.count("/") == depth - 2 and directory != "."
        if is_class and (not by_split or directory.split("/")[0] in _ROLES):
            raise CatalogError(f"class folder {directory} under {root} holds no video: add its videos or remove it")
    if by_split:
        return memberships, []
    return memberships, [
        'there is neither a split folder nor a split list: every clip is in the split "all"; '
        "to train, give catalog.lists a file with lines `class/video split`"
    ]


def _read_split_list(uri: str, *, read_text: ReadText) -> list[_Membership]:
    """Lines `class/video split`; the video's name may hold spaces, the split is train, val or test with a number."""
    memberships: list[_Membership] = []
    for where, line in _lines(uri, read_text=read_text):
        path, *rest = line.rsplit(maxsplit=1)
        match = _SPLIT.fullmatch("".join(rest))
        if match is None or not _is_class_and_video(path):
            raise CatalogError(
                f"{where}: wanted `class/video split` with a split such as train, val, test or train1, got {line!r}"
            )
        memberships.append(
            _Membership(path=path, class_name=path.split("/")[0], split=_ROLES[match[1]] + match[2], where=where)
        )
    if not memberships:
        raise CatalogError(f"{uri} is empty: wanted lines `class/video split`")
    return memberships


def _read_ucf101_lists(
    directory: str, *, list_files: ListFiles, read_text: ReadText
) -> tuple[dict[str, str], list[_Membership]]:
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
    classes = _read_class_index(f"{base}/classInd.txt", read_text=read_text)
    positions = {name: position for position, name in enumerate(classes, start=1)}
    memberships: list[_Membership] = []
    for number in numbers:
        for role in ("train", "test"):
            for where, line in _lines(f"{base}/{role}list{number}.txt", read_text=read_text):
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
                memberships.append(_Membership(path=path, class_name=name, split=f"{role}{int(number)}", where=where))
    return classes, memberships


def _read_class_index(uri: str, *, read_text: ReadText) -> dict[str, str]:
    """Class name -> the line that names it; lines `number name`, numbered from 1 without a gap."""
    classes: dict[str, str] = {}
    for where, line in _lines(uri, read_text=read_text):
        number, _, name = line.partition(" ")
        name = name.strip()
        if number != str(len(classes) + 1) or not name or name in classes:
            raise CatalogError(f"{where}: wanted `{len(classes) + 1} class name` with a new name, got {line!r}")
        classes[name] = where
    if not classes:
        raise CatalogError(f"{uri} is empty: wanted lines `number class name`")
    return classes


def _lines(uri: str, *, read_text: ReadText) -> Iterable[tuple[str, str]]:
    """Non-blank lines with where they are; CRLF line ends and a byte order mark are dropped."""
    for number, line in enumerate(read_text(uri).removeprefix("\ufeff").split("\n"), start=1):
        if line.strip():
            yield f"{uri}, line {number}", line.strip()


def _is_class_and_video(path: str) -> bool:
    return path.count("/") == 1 and PurePosixPath(path).suffix.lower() in VIDEO_SUFFIXES


def _fold(split: str) -> str:
    """The official split a split belongs to: "2" for test2, "" for train."""
    match = _SPLIT.fullmatch(split)
    return match[2] if match else ""


def _refuse_unlearnable_classes(classes: Mapping[str, str], *, memberships: Sequence[_Membership]) -> None:
    """Every class must have a clip in every train split, or it can only be answered wrongly."""
    for split in sorted({m.split for m in memberships if m.split.startswith("train")}):
        counts = Counter(m.class_name for m in memberships if m.split == split)
        for name, where in classes.items():
            if not counts[name]:
                raise CatalogError(
                    f"class {name!r} ({where}) has no clip in split {split}: give it some or take the class out"
                )


def _as_spelt_on_disk(memberships: Sequence[_Membership], *, videos: Mapping[str, int]) -> list[_Membership]:
    """Take the file's own spelling: copies of UCF101's lists differ from its archive in HandStand and Handstand."""
    by_folded_case: dict[str, list[str]] = {}
    for path in videos:
        by_folded_case.setdefault(path.casefold(), []).append(path)
    spelt: list[_Membership] = []
    for m in memberships:
        candidates = by_folded_case.get(m.path.casefold(), [])
        path = candidates[0] if m.path not in videos and len(candidates) == 1 else m.path
        spelt.append(_Membership(path=path, class_name=m.class_name, split=m.split, where=m.where))
    return spelt


def _group_by_clip(memberships: Sequence[_Membership]) -> dict[str, list[_Membership]]:
    """Memberships of each clip; a clip twice in a split, or in two roles of one official split, is refused."""
    by_path: dict[str, list[_Membership]] = {}
    for membership in memberships:
        earlier = by_path.setdefault(membership.path, [])
        for other in earlier:
            if other.split == membership.split:
                raise CatalogError(
                    f"{membership.where}: {membership.path} is in split {other.split} twice, first at {other.where}; "
                    f"remove one"
                )
            if _fold(other.split) == _fold(membership.split):
                raise CatalogError(
                    f"{membership.where}: {membership.path} is in {membership.split} and, at {other.where}, in "
                    f"{other.split}: a clip may have one role in a split; remove one line"
                )
        earlier.append(membership)
    return by_path
