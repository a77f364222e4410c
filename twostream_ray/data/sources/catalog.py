"""Dataset catalog: reads folder layouts and split lists (UCF101, HMDB51, Kinetics, CSV) into a table of labelled clips.

A clip of UCF101 appears once, with its role in all three official splits, so that one ingest serves them all. This
module does no I/O itself: the functions that list files and read lists are passed in.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal, get_args

from twostream_ray.data.sources.classes import in_order, merge_equivalent_names
from twostream_ray.data.sources.folders import (
    FlowImages,
    FolderScan,
    find_flow_images,
    match_files,
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
"""Characters: the maximum length of a class name in the manifest of a shard set."""
_SUM_TOLERANCE = 5e-3
"""Shares must add up to 1 within this tolerance: thirds are written as 0.333."""

Layout = Literal["folder", "ucf101", "hmdb51", "kinetics", "table"]


@dataclass(frozen=True, kw_only=True)
class CatalogConfig:
    """Location and layout of a data set's videos and split lists."""

    layout: Layout = "folder"
    """folder: ROOT/split/class/video, or ROOT/class/video; ucf101, hmdb51: ROOT/class/video with the official lists;
    kinetics: videos ID_SSSSSS_EEEEEE anywhere below ROOT; table: the videos that the table names. Classes come from the
    lists or, without lists, from the folders of videos. In every layout each class must have a clip in every train
    split. A listed class without any video keeps its label and is reported; a folder without videos is not a class and
    is reported."""

    root: str
    """Directory or s3:// prefix of the videos."""

    lists: str | None = None
    """ucf101: the directory with classInd.txt, trainlist0N.txt and testlist0N.txt. hmdb51: the directory with
    CLASS_test_splitN.txt. kinetics: a CSV file with label, youtube_id, time_start, time_end, split, or a directory of
    such files. table: a CSV or Parquet file with uri, label, split (or subset), group (the source that clips were cut
    from). folder: a file with lines `class/video split` for ROOT/class/video; without it see `split`. Unless a list
    numbers the classes, they are sorted by name, or numerically if all names are numbers."""

    split: tuple[float, ...] = ()
    """Fractions of train, val and test, as [0.7, 0.15, 0.15], or of train and test, as [0.8, 0.2], each in (0, 1), for
    ROOT/class/video and for a table without a split column; by default all clips are then in one split "all". The split
    is stratified by class and keeps groups together: clips cut from one source (v_..._g08_c01.avi, the names of HMDB51
    and Kinetics, a table's group column; otherwise each clip is its own group). Adding clips moves at most one group
    per class from a split to the next."""

    split_seed: int = 0
    """Seed of the random split by `split`."""

    frames: bool = False
    """Clips are folders of numbered images (ROOT/class/clip/img_00001.jpg) instead of videos; lists name the videos
    or the folders, which may then also be directly below ROOT. Their frame rate is taken to be 25 frames per second."""

    flow_images: str | None = None
    """Directory or s3:// prefix of existing flow images, used instead of computing flow: CLIP/flow_x_00001.jpg and
    flow_y_00001.jpg, or u/CLIP/frame000001.jpg and v/CLIP/..., CLIP with or without its class folder. Describe how they
    were made in flow.algorithm, flow.bound_px, flow.short_side_px and, usually, flow.coding legacy255."""

    name: str = ""
    """Name of the data set; required, and unique, if several are ingested together. Models trained on it are registered
    under this name."""

    def __post_init__(self) -> None:
        if self.layout not in get_args(Layout):
            raise ConfigError(f"catalog.layout must be one of {', '.join(get_args(Layout))}, got {self.layout!r}")
        if not self.root.strip():
            raise ConfigError("catalog.root must name the directory or s3:// prefix of the videos, got an empty string")
        wanted = {
            "ucf101": "the directory with classInd.txt, trainlist01.txt and testlist01.txt",
            "hmdb51": "the directory with CLASS_test_split1.txt for every class",
            "kinetics": "a CSV file with label, youtube_id, time_start, time_end and split, or a directory of them",
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
                f"catalog.split is for ROOT/class/video and for a table without splits; with catalog.layout "
                f"{self.layout} and catalog.lists {self.lists} the lists define the splits: leave catalog.split out"
            )


@dataclass(frozen=True, kw_only=True, slots=True)
class Clip:
    """A labelled video of the catalog."""

    uri: str
    """Path or s3:// URI of the video file."""

    clip_id: str
    """Path relative to the data set's root, posix, with suffix; unique in the catalog."""

    class_name: str
    """Name of the class: the name of the directory that holds the video."""

    label: int
    """Index of the class in Catalog.classes, in [0, K)."""

    splits: tuple[str, ...]
    """The splits that it belongs to: ("train",), or ("train1", "test2", "train3") for UCF101's three official splits.
    """

    size_bytes: int
    """Size of the video file, or of all its images, plus its flow images; a later ingest detects changes by it."""

    group: str = ""
    """The source that it was cut from: clips of a group stay together in a random split. "": a group of its own."""

    flow_uris: tuple[str, ...] = ()
    """Folders of existing flow images, x then y; () means that flow is computed."""

    frames: bool = False
    """Whether the uri is a folder of images."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Catalog:
    """The clips of a data set, and notes about them for the report of ingest."""

    clips: tuple[Clip, ...]
    """Sorted by clip_id."""

    classes: tuple[str, ...]
    """The K class names; a clip's label is an index into them."""

    notes: tuple[str, ...]
    """Sentences for the report, such as "13291 of 13320 listed clips are not under videos"."""

    head_classes: tuple[int, ...] = ()
    """Number of classes of each data set, in the order of `classes`; () for a single data set."""

    missing: tuple[Clip, ...] = ()
    """Listed clips whose file is missing, with size 0, sorted by clip_id: for quarantine."""


def read_catalogs(configs: Sequence[CatalogConfig], *, list_files: ListFiles, read_bytes: ReadBytes) -> Catalog:
    """One catalog over several data sets, for multi-task training (Simonyan and Zisserman 2014, sec. 4).

    Classes are concatenated data set by data set. With more than one, clip ids and class names are prefixed with the
    name of the data set.

    Raises:
        ConfigError: several data sets without distinct names.
        CatalogError: as `read_catalog`.
    """
    names = [config.name for config in configs]
    if len(configs) > 1 and (not all(names) or len(set(names)) < len(names)):
        raise ConfigError(f"several data sets need distinct catalog names, got {', '.join(map(repr, names))}")
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
            for name, start, catalog_clips in zip(names, starts, clips_by_catalog, strict=True)
            for clip in catalog_clips
        ]
        for clips_by_catalog in ([catalog.clips for catalog in read], [catalog.missing for catalog in read])
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

    Files that are not videos (by suffix), videos in no list, and listed videos whose file is missing are counted in the
    notes, and the last are `missing`; anything that would make a label or a split wrong is an error.

    Raises:
        CatalogError: no video, a video outside the layout, a malformed line, an unknown class or split, a clip listed
            twice or in train and test of one split, a class without a clip in a train split, no flow image at all.
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

    on_disk, spelling_notes = match_files(memberships, videos=videos, frames=config.frames)
    by_path = _group_by_clip(on_disk)
    present = sorted(by_path.keys() & videos.keys())
    if not present:
        raise CatalogError(
            f"none of the {len(by_path)} clips listed in {config.lists} is under {config.root}: wanted for example "
            f"{min(by_path)}, found for example {min(videos)}; set catalog.root to the directory of the class folders"
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
    config: CatalogConfig, below: FolderScan, *, list_files: ListFiles, read_bytes: ReadBytes
) -> tuple[dict[str, str], Sequence[Membership], list[str]]:
    """Class name -> the place that names it, in label order; the clips' classes and splits; notes."""
    lists = config.lists
    notes: list[str] = []
    if lists is None:
        memberships, more_notes = memberships_of_folders(
            config.root, videos=below.videos, directories=below.directories
        )
        notes += more_notes
        memberships, more_notes = _merge_class_spellings(memberships)
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
    memberships, more_notes = _merge_class_spellings(memberships)
    first = {m.class_name: m.where for m in reversed(memberships)}
    return {name: first[name] for name in in_order(first)}, memberships, notes + more_notes


def _notes_on_absent(
    config: CatalogConfig, classes: Mapping[str, str], clips: Sequence[Clip], *, listed: set[str], found: set[str]
) -> list[str]:
    """Notes on listed clips without a file, files in no list, and classes without a clip."""
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
            f"{len(absent)} of {len(classes)} classes have no clip and keep their labels, for example "
            f"{absent[0]} ({classes[absent[0]]})"
        )
    return notes


def in_text_order(catalog: Catalog, configs: Sequence[CatalogConfig]) -> Catalog:
    """The catalog with numeric class names sorted as text (1, 10, 2), as earlier versions labelled them.

    The lists of UCF101 number the classes themselves and are left alone.
    """
    sizes = catalog.head_classes or (len(catalog.classes),)
    starts = [sum(sizes[:number]) for number in range(len(sizes))]
    classes: list[str] = []
    for config, start, size in zip(configs, starts, sizes, strict=True):
        own = catalog.classes[start : start + size]
        classes += own if config.layout == "ucf101" else sorted(own)
    labels = {name: label for label, name in enumerate(classes)}
    clips, missing = (
        tuple(replace(clip, label=labels[clip.class_name]) for clip in group)
        for group in (catalog.clips, catalog.missing)
    )
    return replace(catalog, classes=tuple(classes), clips=clips, missing=missing)


def _merge_class_spellings(memberships: Sequence[Membership]) -> tuple[list[Membership], list[str]]:
    renamed, notes = merge_equivalent_names({m.class_name for m in memberships})
    return [replace(m, class_name=renamed.get(m.class_name, m.class_name)) for m in memberships], notes


def _fold(split: str) -> str:
    """Number of the official split that a split belongs to: "2" for test2 and test02, "" for train."""
    match = SPLIT.fullmatch(split)
    return match[2] and str(int(match[2])) if match else ""


def _refuse_unlearnable_classes(classes: Mapping[str, str], *, memberships: Sequence[Membership]) -> None:
    """Raise unless every class has a clip in every train split, and a name that fits into a manifest."""
    for name, where in classes.items():
        if len(name) > _LONGEST_NAME:
            raise CatalogError(
                f"{where}: a class name may have at most {_LONGEST_NAME} characters, {name[:60]!r}... has {len(name)}: "
                "shorten it"
            )
    for split in sorted({m.split for m in memberships if m.split.startswith("train")}):
        counts = Counter(m.class_name for m in memberships if m.split == split)
        for name, where in classes.items():
            if not counts[name]:
                raise CatalogError(
                    f"class {name!r} ({where}) has no clip in split {split}: add some or remove the class"
                )


def _group_by_clip(memberships: Sequence[Membership]) -> dict[str, list[Membership]]:
    """Clip -> its memberships; refuses two classes, a repeated split, or two roles in one official split."""
    by_path: dict[str, list[Membership]] = {}
    for membership in memberships:
        earlier = by_path.setdefault(membership.path, [])
        for other in earlier:
            if other.class_name != membership.class_name:
                raise CatalogError(
                    f"{membership.where}: {membership.path} has class {membership.class_name!r} and, at "
                    f"{other.where}, class {other.class_name!r}: a clip may have one class; remove one line"
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
