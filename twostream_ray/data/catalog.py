"""Data set layouts and split lists -> a table of labelled clips.

Split membership is data: a clip of UCF101 is listed once with its place in all three official splits, so that one
ingest serves them all. Nothing here touches a disk or a bucket: listing files and reading lists are handed in.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import PurePosixPath
from typing import Literal, get_args

from twostream_ray.data.lists import (
    IMAGE_SUFFIXES,
    ROLES,
    SPLIT,
    VIDEO_SUFFIXES,
    ListFiles,
    Membership,
    ReadBytes,
    read_hmdb51_lists,
    read_kinetics_lists,
    read_split_list,
    read_table,
    read_ucf101_lists,
)
from twostream_ray.errors import CatalogError, ConfigError

Layout = Literal["folder", "ucf101", "hmdb51", "kinetics", "table"]


@dataclass(frozen=True, kw_only=True)
class CatalogConfig:
    """Where a data set's videos and lists are, and in which layout."""

    layout: Layout = "folder"
    """folder: ROOT/split/class/video, or ROOT/class/video; ucf101, hmdb51: ROOT/class/video with the official lists;
    kinetics: videos ID_SSSSSS_EEEEEE anywhere below ROOT; table: whatever the table names."""

    root: str
    """Directory or s3:// prefix of the videos."""

    lists: str | None = None
    """ucf101: the directory with classInd.txt, trainlist0N.txt and testlist0N.txt. hmdb51: that with
    CLASS_test_splitN.txt. kinetics: a CSV file with label, youtube_id, time_start, time_end, split, or a directory of
    such. table: a CSV or Parquet file with uri, label, split. folder: a file with lines `class/video split` for
    ROOT/class/video; without it every clip of that form is in the split "all"."""

    frames: bool = False
    """Clips are folders of numbered images (ROOT/class/clip/img_00001.jpg) instead of videos; lists name the videos."""

    flow_images: str | None = None
    """Directory or s3:// prefix of flow images that exist already and are taken instead of computed:
    CLIP/flow_x_00001.jpg and flow_y_00001.jpg, or u/CLIP/frame000001.jpg and v/CLIP/..., CLIP with or without its class
    folder. Say how they were made in flow.algorithm, flow.bound_px, flow.short_side_px and, as a rule, flow.coding
    legacy255."""

    name: str = ""
    """Name of the data set: wanted, and different, where several are ingested together."""

    def __post_init__(self) -> None:
        if self.layout not in get_args(Layout):
            raise ConfigError(f"catalog.layout must be one of {', '.join(get_args(Layout))}, got {self.layout!r}")
        if not self.root.strip():
            raise ConfigError("catalog.root must name the directory or s3:// prefix of the videos, got an empty string")
        wanted = {
            "ucf101": "the directory with classInd.txt, trainlist01.txt and testlist01.txt",
            "hmdb51": "the directory with CLASS_test_split1.txt for every class",
            "kinetics": "a CSV file with label, youtube_id, time_start, time_end and split, or a directory of such",
            "table": "a CSV or Parquet file with uri, label and split",
        }
        if self.layout in wanted and not self.lists:
            raise ConfigError(
                f"catalog.lists must name {wanted[self.layout]} when catalog.layout is {self.layout}, got none"
            )
        if set(self.name) & set("/\\ "):
            raise ConfigError(f"catalog.name must be a word without blanks and slashes, got {self.name!r}")


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
    """Size of the video file, or of all images."""

    flow_images: str = ""
    """Where flow images that exist already are, or "" to compute flow."""

    frames: bool = False
    """The uri is a folder of images."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Catalog:
    """The clips of a data set, and what the reader of the report should know about them."""

    clips: tuple[Clip, ...]
    """Sorted by clip_id."""

    classes: tuple[str, ...]
    """Class names; a clip's label is the index."""

    notes: tuple[str, ...]
    """Sentences for the report, such as "13291 of 13320 listed clips are not under videos"."""

    head_classes: tuple[int, ...] = ()
    """Classes of each data set, in the order of `classes`; () is one data set."""


def read_catalogs(configs: Sequence[CatalogConfig], *, list_files: ListFiles, read_bytes: ReadBytes) -> Catalog:
    """One catalog over several data sets, for multi-task training (Simonyan and Zisserman 2014, sec. 4).

    Classes follow one another data set by data set. With more than one, a clip's id and a class's name begin with the
    name of the data set.

    Raises:
        ConfigError: several data sets lack names of their own.
        CatalogError: as `read_catalog`.
    """
    names = [config.name for config in configs]
    if len(configs) > 1 and (not all(names) or len(set(names)) < len(names)):
        raise ConfigError(f"several data sets want catalog names of their own, got {', '.join(map(repr, names))}")
    read = [read_catalog(config, list_files=list_files, read_bytes=read_bytes) for config in configs]
    if len(configs) == 1:
        return read[0]
    starts = [sum(len(catalog.classes) for catalog in read[:number]) for number in range(len(read))]
    clips = [
        replace(
            clip,
            clip_id=f"{name}/{clip.clip_id}",
            class_name=f"{name}/{clip.class_name}",
            label=start + clip.label,
        )
        for name, start, catalog in zip(names, starts, read, strict=True)
        for clip in catalog.clips
    ]
    named = list(zip(names, read, strict=True))
    return Catalog(
        clips=tuple(sorted(clips, key=lambda clip: clip.clip_id)),
        classes=tuple(f"{name}/{label}" for name, catalog in named for label in catalog.classes),
        notes=tuple(f"{name}: {note}" for name, catalog in named for note in catalog.notes),
        head_classes=tuple(len(catalog.classes) for catalog in read),
    )


def read_catalog(config: CatalogConfig, *, list_files: ListFiles, read_bytes: ReadBytes) -> Catalog:
    """Read a data set's folders and lists into a table of labelled clips.

    Files that are no videos (by suffix), videos in no list and listed videos that are not there are counted in the
    notes; whatever would make a label or a split wrong is an error.

    Raises:
        CatalogError: no video, a video outside the layout, a malformed line, an unknown class or split, a clip listed
            twice or in train and test of one split, a class without clips.
    """
    videos, directories, notes = _scan(config, list_files=list_files)
    lists = config.lists
    if lists is None:
        memberships, more_notes = _memberships_of_folders(config.root, videos=videos, directories=directories)
        notes += more_notes
        classes = dict.fromkeys(sorted({m.class_name for m in memberships}), config.root)
    elif config.layout == "ucf101":
        classes, memberships = read_ucf101_lists(lists, list_files=list_files, read_bytes=read_bytes)
    elif config.layout == "hmdb51":
        classes, memberships = read_hmdb51_lists(lists, list_files=list_files, read_bytes=read_bytes)
    else:
        if config.layout == "kinetics":
            memberships, more_notes = read_kinetics_lists(
                lists, videos=videos, list_files=list_files, read_bytes=read_bytes
            )
            notes += more_notes
        elif config.layout == "table":
            memberships = read_table(lists, root=config.root, read_bytes=read_bytes)
        else:
            memberships = read_split_list(lists, read_bytes=read_bytes)
        first = {m.class_name: m.where for m in reversed(memberships)}
        classes = {name: first[name] for name in sorted(first)}
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
            flow_images=config.flow_images or "",
            frames=config.frames,
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
        if config.layout in ("folder", "table"):
            raise CatalogError(
                f"{classes[absent[0]]}: class {absent[0]!r} has no video under {config.root}: "
                f"add its videos or take its lines out"
            )
        notes.append(f"{len(absent)} of {len(classes)} classes have no clip here, for example {absent[0]}")
    return Catalog(clips=clips, classes=tuple(classes), notes=tuple(notes))


def _scan(config: CatalogConfig, *, list_files: ListFiles) -> tuple[dict[str, int], list[str], list[str]]:
    """Videos with their sizes, directories that the listing names, and a note on other files."""
    root = config.root
    videos: dict[str, int] = {}
    directories: list[str] = []
    others: list[str] = []
    suffixes = IMAGE_SUFFIXES if config.frames else VIDEO_SUFFIXES
    for path, size_bytes in list_files(root):
        hidden = any(part.startswith(".") for part in path.split("/"))
        if path.endswith("/"):
            if not hidden and path.strip("/"):
                directories.append(path.rstrip("/"))
        elif hidden or PurePosixPath(path).suffix.lower() not in suffixes or (config.frames and "/" not in path):
            others.append(path)
            if not hidden:
                directories.append(str(PurePosixPath(path).parent))
        elif config.frames:
            folder = path.rpartition("/")[0]
            videos[folder] = videos.get(folder, 0) + size_bytes
        else:
            videos[path] = size_bytes
    if not videos:
        raise CatalogError(
            f"no {'folder of images' if config.frames else 'video'} under {root}: wanted files ending in "
            f"{' '.join(sorted(suffixes))}, found {len(others)} other files; check catalog.root"
        )
    notes = [f"{len(others)} files are no videos and left out, for example {min(others)}"] if others else []
    return videos, directories, notes


def _memberships_of_folders(
    root: str, *, videos: Mapping[str, int], directories: Sequence[str]
) -> tuple[list[Membership], list[str]]:
    """ROOT/split/class/video where all folders of ROOT that hold videos are named as splits, else ROOT/class/video."""
    top = {path.split("/")[0] for path in videos}
    by_split = top <= ROLES.keys()
    wanted = "split/class/video" if by_split else "class/video"
    depth = wanted.count("/") + 1
    memberships: list[Membership] = []
    for path in sorted(videos):
        parts = path.split("/")
        if len(parts) != depth:
            names = " ".join(sorted(top & ROLES.keys()))
            raise CatalogError(
                f"{path} under {root} does not fit {wanted}: "
                + (f"beside the splits {names} only split folders may hold videos; " if names and not by_split else "")
                + f"wanted split/class/video with splits named {' '.join(ROLES)}, or class/video; move it"
            )
        split = ROLES[parts[0]] if by_split else "all"
        memberships.append(Membership(path=path, class_name=parts[-2], split=split, where=f"{root}, {path}"))

    filled = {str(PurePosixPath(path).parent) for path in videos}
    for directory in sorted(set(directories) - filled):
        is_class = directory.count("/") == depth - 2 and directory != "."
        if is_class and (not by_split or directory.split("/")[0] in ROLES):
            raise CatalogError(f"class folder {directory} under {root} holds no video: add its videos or remove it")
    if by_split:
        return memberships, []
    return memberships, [
        'there is neither a split folder nor a split list: every clip is in the split "all"; '
        "to train, give catalog.lists a file with lines `class/video split`"
    ]


def _fold(split: str) -> str:
    """The official split a split belongs to: "2" for test2, "" for train."""
    match = SPLIT.fullmatch(split)
    return match[2] if match else ""


def _refuse_unlearnable_classes(classes: Mapping[str, str], *, memberships: Sequence[Membership]) -> None:
    """Every class must have a clip in every train split, or it can only be answered wrongly."""
    for split in sorted({m.split for m in memberships if m.split.startswith("train")}):
        counts = Counter(m.class_name for m in memberships if m.split == split)
        for name, where in classes.items():
            if not counts[name]:
                raise CatalogError(
                    f"class {name!r} ({where}) has no clip in split {split}: give it some or take the class out"
                )


def _as_spelt_on_disk(memberships: Sequence[Membership], *, videos: Mapping[str, int]) -> list[Membership]:
    """Take the file's own spelling: copies of UCF101's lists differ from its archive in HandStand and Handstand.

    A listed video may lie there as a folder of images: without its suffix, and without its class folder.
    """
    by_folded_case: dict[str, list[str]] = {}
    for path in videos:
        by_folded_case.setdefault(path.casefold(), []).append(path)

    def spelt(path: str) -> str:
        if path in videos:
            return path
        stem = path.removesuffix(PurePosixPath(path).suffix)
        for form in (path, stem, stem.rpartition("/")[2]):
            if form in videos:
                return form
            candidates = by_folded_case.get(form.casefold(), [])
            if len(candidates) == 1:
                return candidates[0]
        return path

    return [replace(m, path=spelt(m.path)) for m in memberships]


def _group_by_clip(memberships: Sequence[Membership]) -> dict[str, list[Membership]]:
    """Memberships of each clip; two classes, twice the same split, or two roles in one official split are refused."""
    by_path: dict[str, list[Membership]] = {}
    for membership in memberships:
        earlier = by_path.setdefault(membership.path, [])
        for other in earlier:
            if other.class_name != membership.class_name:
                raise CatalogError(
                    f"{membership.where}: {membership.path} is of class {membership.class_name!r} and, at "
                    f"{other.where}, of class {other.class_name!r}: a clip may have one class; remove one line"
                )
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
