"""Data set layouts and split lists -> a table of labelled clips.

Split membership is data: a clip of UCF101 is listed once with its role in all three official splits, so that one
ingest serves them all. Nothing here touches a disk or a bucket: listing files and reading lists are handed in.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal, get_args

from twostream_ray.data.sources.classes import alike, in_order
from twostream_ray.data.sources.folders import (
    FlowImages,
    Found,
    as_on_disk,
    find_flow_images,
    memberships_of_folders,
    scan,
)
from twostream_ray.data.sources.lists import (
    SPLIT,
    TO_SPLIT,
    ListFiles,
    Membership,
    ReadBytes,
    read_hmdb51_lists,
    read_kinetics_lists,
    read_split_list,
    read_table,
    read_ucf101_lists,
)
from twostream_ray.data.sources.splits import SPLITS_OF_SHARES, group_of_name, split_by_shares
from twostream_ray.errors import CatalogError, ConfigError
from twostream_ray.settings.bounds import require_within
from twostream_ray.settings.names import require_name

_LONGEST_NAME = 1000
"""Characters: what the manifest of a shard set may hold."""
_SUM_TOLERANCE = 5e-3
"""Of shares that are to add up to 1: thirds are written as 0.333."""

Layout = Literal["folder", "ucf101", "hmdb51", "kinetics", "table"]


@dataclass(frozen=True, kw_only=True)
class CatalogConfig:
    """Where a data set's videos and lists are, and in which layout."""

    layout: Layout = "folder"
    """folder: ROOT/split/class/video, or ROOT/class/video; ucf101, hmdb51: ROOT/class/video with the official lists;
    kinetics: videos ID_SSSSSS_EEEEEE anywhere below ROOT; table: whatever the table names. Classes are those of listed
    clips or, without lists, of videos. In every layout a class must be listed in each train split there is, and one
    none of whose clips is here keeps its number, which is said; a folder without videos is no class, and is said."""

    root: str
    """Directory or s3:// prefix of the videos."""

    lists: str | None = None
    """ucf101: the directory with classInd.txt, trainlist0N.txt and testlist0N.txt. hmdb51: that with
    CLASS_test_splitN.txt. kinetics: a CSV file with label, youtube_id, time_start, time_end, split, or a directory of
    such. table: a CSV or Parquet file with uri, label, split (or subset), group (the source that clips were cut from).
    folder: a file with lines `class/video split`
    for ROOT/class/video; without it see `split`. Classes that no list numbers are
    ordered by name, as numbers where all are numbers."""

    split: tuple[float, ...] = ()
    """Shares of train, val and test, as [0.7, 0.15, 0.15], or of train and test, as [0.8, 0.2], in (0, 1), for
    ROOT/class/video and for a table without a column split; by default all clips are then in one split "all". Every
    class is cut at these shares, by groups: clips of one source (v_..._g08_c01.avi, the names of HMDB51 and Kinetics, a
    table's column group; a clip else) stay together. Clips that are added move at most one group of their class from
    a split to the next."""

    split_seed: int = 0
    """Fixes which clips `split` takes for which split."""

    frames: bool = False
    """Clips are folders of numbered images (ROOT/class/clip/img_00001.jpg) instead of videos; lists name the videos
    or the folders, which may then also be directly below ROOT. They count as 25 frames per second."""

    flow_images: str | None = None
    """Directory or s3:// prefix of flow images that exist already and are taken instead of computed:
    CLIP/flow_x_00001.jpg and flow_y_00001.jpg, or u/CLIP/frame000001.jpg and v/CLIP/..., CLIP with or without its class
    folder. Say how they were made in flow.algorithm, flow.bound_px, flow.short_side_px and, as a rule, flow.coding
    legacy255."""

    name: str = ""
    """Name of the data set: wanted, and different, where several are ingested together. What is trained on it is
    registered under this name."""

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
        if self.name:
            require_name(self.name, setting="catalog.name")
        require_within(self, "catalog.", split="(0, 1)", split_seed="[0, 9_223_372_036_854_775_807]")
        if self.split and (len(self.split) not in SPLITS_OF_SHARES or abs(sum(self.split) - 1) > _SUM_TOLERANCE):
            raise ConfigError(
                "catalog.split must be shares of train, val and test that add up to 1, as [0.7, 0.15, 0.15], or of "
                f"train and test, as [0.8, 0.2], got {list(self.split)}"
            )
        if self.split and (self.layout not in ("folder", "table") or (self.layout == "folder" and self.lists)):
            raise ConfigError(
                f"catalog.split is for ROOT/class/video, and for a table without splits; with catalog.layout "
                f"{self.layout} and catalog.lists {self.lists} these say the splits: leave catalog.split out"
            )


@dataclass(frozen=True, kw_only=True, slots=True)
class Clip:
    """A labelled video that is there to be read."""

    uri: str
    """Path or s3:// URI of the video file."""

    clip_id: str
    """Path relative to the data set's root, posix, with suffix; unique in the catalog."""

    class_name: str
    """Name of the class: the name of the directory that holds the video."""

    label: int
    """Index of the class in Catalog.classes, in [0, K)."""

    splits: tuple[str, ...]
    """The splits it belongs to: ("train",), or ("train1", "test2", "train3") for UCF101's three official splits."""

    size_bytes: int
    """Size of the video file, or of all images, and of its flow images: a later ingest sees that they changed."""

    group: str = ""
    """The source that it was cut from: clips of a group stay together where a split is divided. "": only itself."""

    flow_uris: tuple[str, ...] = ()
    """Folders of the flow images that exist already, x then y; () has flow computed."""

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

    missing: tuple[Clip, ...] = ()
    """Clips that a list or table names and that are not there, of 0 bytes, sorted by clip_id: for quarantine."""


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
    clips, missing = (
        [
            replace(
                clip,
                clip_id=f"{name}/{clip.clip_id}",
                class_name=f"{name}/{clip.class_name}",
                label=start + clip.label,
                group=f"{name}/{clip.group}",
            )
            for name, start, those in zip(names, starts, of_each, strict=True)
            for clip in those
        ]
        for of_each in ([one.clips for one in read], [one.missing for one in read])
    )
    named = list(zip(names, read, strict=True))
    return Catalog(
        clips=tuple(sorted(clips, key=lambda clip: clip.clip_id)),
        missing=tuple(sorted(missing, key=lambda clip: clip.clip_id)),
        classes=tuple(f"{name}/{label}" for name, catalog in named for label in catalog.classes),
        notes=tuple(f"{name}: {note}" for name, catalog in named for note in catalog.notes),
        head_classes=tuple(len(catalog.classes) for catalog in read),
    )


def read_catalog(config: CatalogConfig, *, list_files: ListFiles, read_bytes: ReadBytes) -> Catalog:
    """Read a data set's folders and lists into a table of labelled clips.

    Files that are no videos (by suffix), videos in no list and listed videos that are not there are counted in the
    notes, the last ones are `missing`; whatever would make a label or a split wrong is an error.

    Raises:
        CatalogError: no video, a video outside the layout, a malformed line, an unknown class or split, a clip listed
            twice or in train and test of one split, a class that a train split does not list, no flow image at all.
    """
    below = scan(config.root, frames=config.frames, list_files=list_files)
    videos, notes = below.videos, below.notes
    classes, memberships, more_notes = _labelled(config, below, list_files=list_files, read_bytes=read_bytes)
    memberships = [m if m.group else replace(m, group=group_of_name(m.path)) for m in memberships]
    if config.split:
        named_in = config.lists or config.root
        memberships, split_notes = split_by_shares(memberships, config.split, seed=config.split_seed, named_in=named_in)
        more_notes = [note for note in more_notes if TO_SPLIT not in note] + split_notes
    notes += more_notes
    _refuse_unlearnable_classes(classes, memberships=memberships)

    on_disk, spelling_notes = as_on_disk(memberships, videos=videos, frames=config.frames)
    by_path = _group_by_clip(on_disk)
    present = sorted(by_path.keys() & videos.keys())
    if not present:
        raise CatalogError(
            f"none of the {len(by_path)} clips listed in {config.lists} is under {config.root}: wanted for example "
            f"{min(by_path)}, found for example {min(videos)}; set catalog.root to the directory that holds the classes"
        )
    flow_images: dict[str, FlowImages] = {}
    if config.flow_images is not None:
        flow_images, more_notes = find_flow_images(config.flow_images, clips=present, list_files=list_files)
        notes += more_notes
    labels = {name: label for label, name in enumerate(classes)}
    listed = tuple(
        Clip(
            uri=f"{config.root.rstrip('/')}/{path}",
            clip_id=path,
            class_name=by_path[path][0].class_name,
            label=labels[by_path[path][0].class_name],
            splits=tuple(sorted((m.split for m in by_path[path]), key=lambda split: (_fold(split), split))),
            group=by_path[path][0].group,
            size_bytes=videos.get(path, 0) + (flow_images[path].size_bytes if path in flow_images else 0),
            flow_uris=flow_images[path].uris if path in flow_images else (),
            frames=config.frames,
        )
        for path in (*present, *sorted(by_path.keys() - videos.keys()))
    )
    clips, missing = listed[: len(present)], listed[len(present) :]
    notes += [*spelling_notes, *_notes_on_absent(config, classes, clips, listed=set(by_path), found=set(videos))]
    return Catalog(clips=clips, classes=tuple(classes), notes=tuple(notes), missing=missing)


def _labelled(
    config: CatalogConfig, below: Found, *, list_files: ListFiles, read_bytes: ReadBytes
) -> tuple[dict[str, str], Sequence[Membership], list[str]]:
    """Each class in the order of labels with where it is named, the clips' classes and splits, and notes."""
    lists = config.lists
    notes: list[str] = []
    if lists is None:
        memberships, more_notes = memberships_of_folders(
            config.root, videos=below.videos, directories=below.directories
        )
        notes += more_notes
        memberships, more_notes = _one_spelling_a_class(memberships)
        return (
            dict.fromkeys(in_order({m.class_name for m in memberships}), config.root),
            memberships,
            notes + more_notes,
        )
    if config.layout in ("ucf101", "hmdb51"):
        read = read_ucf101_lists if config.layout == "ucf101" else read_hmdb51_lists
        classes, memberships = read(lists, list_files=list_files, read_bytes=read_bytes)
        return classes, memberships, notes
    if config.layout == "kinetics":
        memberships, more_notes = read_kinetics_lists(
            lists, videos=below.videos, list_files=list_files, read_bytes=read_bytes
        )
        notes += more_notes
    elif config.layout == "table":
        memberships, more_notes = read_table(lists, root=config.root, read_bytes=read_bytes)
        notes += more_notes
    else:
        memberships = read_split_list(lists, read_bytes=read_bytes, frames=config.frames)
    memberships, more_notes = _one_spelling_a_class(memberships)
    first = {m.class_name: m.where for m in reversed(memberships)}
    return {name: first[name] for name in in_order(first)}, memberships, notes + more_notes


def _notes_on_absent(
    config: CatalogConfig, classes: Mapping[str, str], clips: Sequence[Clip], *, listed: set[str], found: set[str]
) -> list[str]:
    """What lists and folders have that the other has not, classes without a clip among it, whatever the layout."""
    notes = []
    if missing := sorted(listed - found):
        notes.append(
            f"{len(missing)} of {len(listed)} listed clips are not under {config.root}, for example {missing[0]}"
        )
    if unlisted := sorted(found - listed):
        notes.append(f"videos in no list, left out: {len(unlisted)}, for example {unlisted[0]}")
    seen = {clip.class_name for clip in clips}
    if absent := [name for name in classes if name not in seen]:
        notes.append(
            f"{len(absent)} of {len(classes)} classes have no clip here and keep their numbers, for example "
            f"{absent[0]} ({classes[absent[0]]})"
        )
    return notes


def in_text_order(catalog: Catalog, configs: Sequence[CatalogConfig]) -> Catalog:
    """The catalog with classes that are numbers in the order of texts (1, 10, 2), as they once were labelled.

    Lists of UCF101 say themselves how classes are numbered.
    """
    sizes = catalog.head_classes or (len(catalog.classes),)
    starts = [sum(sizes[:number]) for number in range(len(sizes))]
    classes: list[str] = []
    for config, start, size in zip(configs, starts, sizes, strict=True):
        own = catalog.classes[start : start + size]
        classes += own if config.layout == "ucf101" else sorted(own)
    labels = {name: label for label, name in enumerate(classes)}
    clips, missing = (
        tuple(replace(clip, label=labels[clip.class_name]) for clip in those)
        for those in (catalog.clips, catalog.missing)
    )
    return replace(catalog, classes=tuple(classes), clips=clips, missing=missing)


def _one_spelling_a_class(memberships: Sequence[Membership]) -> tuple[list[Membership], list[str]]:
    renamed, notes = alike({m.class_name for m in memberships})
    return [replace(m, class_name=renamed.get(m.class_name, m.class_name)) for m in memberships], notes


def _fold(split: str) -> str:
    """The official split a split belongs to: "2" for test2 and test02, "" for train."""
    match = SPLIT.fullmatch(split)
    return match[2] and str(int(match[2])) if match else ""


def _refuse_unlearnable_classes(classes: Mapping[str, str], *, memberships: Sequence[Membership]) -> None:
    """Every class must be listed in every train split, or it can only be answered wrongly; its name must fit."""
    for name, where in classes.items():
        if len(name) > _LONGEST_NAME:
            raise CatalogError(
                f"{where}: a class name of at most {_LONGEST_NAME} characters was wanted, {name[:60]!r}... has "
                f"{len(name)}"
            )
    for split in sorted({m.split for m in memberships if m.split.startswith("train")}):
        counts = Counter(m.class_name for m in memberships if m.split == split)
        for name, where in classes.items():
            if not counts[name]:
                raise CatalogError(
                    f"class {name!r} ({where}) has no clip in split {split}: give it some or take the class out"
                )


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
