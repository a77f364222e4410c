"""ImageFolder-style layouts: scans ROOT/split/class/video or ROOT/class/video, folders of frames, and flow images."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import PurePosixPath
from unicodedata import normalize
from urllib.parse import unquote

from twostream_ray.data.sources.lists import IMAGE_SUFFIXES, ROLES, TO_SPLIT, VIDEO_SUFFIXES, ListFiles, Membership
from twostream_ray.errors import CatalogError
from twostream_ray.redaction import printable
from twostream_ray.storage.local_files import LeftOut, is_hidden

_MOST_SHOWN = 3
_MOST_SUFFIXES = 8
_LONGEST_PATH = 1000
"""Characters: the maximum length of a path in the records of a shard set."""
_LARGEST_BYTES = 2**53
_LONGEST_SUFFIX = 12


@dataclass(frozen=True, kw_only=True, slots=True)
class FolderScan:
    """The contents of a data set's root."""

    videos: dict[str, int]
    """Relative path of each video, or folder of frames -> size in bytes."""
    directories: dict[str, str]
    """Directories without a video, and unreadable entries that may be directories -> the reason, such as "a link to
    nothing", or ""."""
    notes: list[str]
    """Sentences on skipped files."""


def scan(root: str, *, frames: bool, list_files: ListFiles) -> FolderScan:
    """List the videos, or folders of frames, below a root, the directories without any, and notes on skipped files.

    Raises:
        CatalogError: there is no video.
    """
    suffixes = IMAGE_SUFFIXES if frames else VIDEO_SUFFIXES
    videos: dict[str, int] = {}
    directories: dict[str, str] = {}
    empty: list[str] = []
    others: list[str] = []
    left_out: list[LeftOut] = []
    for entry in list_files(root):
        path = entry[0]
        hidden = is_hidden(path)
        if not isinstance(entry, LeftOut) and (len(path) > _LONGEST_PATH or entry[1] > _LARGEST_BYTES):
            entry = LeftOut(printable(path[:_LONGEST_PATH]), "its path is too long or its size is implausible")
        if isinstance(entry, LeftOut):
            left_out.append(entry)
            if not hidden and _suffix(path) not in VIDEO_SUFFIXES | IMAGE_SUFFIXES:
                directories[path] = entry.why
        elif path.endswith("/"):
            if not hidden and path.strip("/"):
                directories[path.rstrip("/")] = ""
                empty.append(path)
        elif hidden or _suffix(path) not in suffixes or (frames and "/" not in path):
            others.append(path)
            parent = str(PurePosixPath(path).parent)
            if not is_hidden(parent):
                directories.setdefault(parent, "")
        else:
            clip = str(PurePosixPath(path).parent) if frames else path
            videos[clip] = videos.get(clip, 0) + entry[1]
    kind = "image" if frames else "video"
    notes = _notes_on_left_out(root, left_out)
    if not videos:
        raise CatalogError(
            f"no {kind} under {root}: wanted files ending in {' '.join(sorted(suffixes))}, "
            f"found {len(others)} other files; "
            + "".join(f"{note}; " for note in [*_suffixes_of(others), *notes])
            + "check catalog.root and catalog.frames"
        )
    if others:
        seen = "".join(f"; {note}" for note in _suffixes_of(others, unless_one=True))
        notes.append(f"files that are not {kind}s, left out: {len(others)}, for example {min(others)}{seen}")
    if frames and empty:
        notes.append(f"empty folders, left out: {len(empty)}, for example {min(empty)}")
    return FolderScan(videos=videos, directories=directories, notes=notes)


def _notes_on_left_out(root: str, left_out: Sequence[LeftOut]) -> list[str]:
    if not left_out:
        return []
    shown = ", ".join(f"{path} ({why})" for path, why in left_out[:_MOST_SHOWN])
    more = f" and {len(left_out) - _MOST_SHOWN} more" if len(left_out) > _MOST_SHOWN else ""
    return [f"{len(left_out)} entries under {root} cannot be used and are left out: {shown}{more}"]


def _suffixes_of(paths: Sequence[str], *, unless_one: bool = False) -> list[str]:
    """A sentence on the most frequent suffixes of files that are not hidden; an empty list if there are none."""
    counts = Counter(_suffix(path)[:_LONGEST_SUFFIX] or "none" for path in paths if not is_hidden(path))
    if not counts or (unless_one and len(counts) == 1):
        return []
    shown = ", ".join(f"{suffix} {count}" for suffix, count in counts.most_common(_MOST_SUFFIXES))
    return [f"suffixes seen: {shown}{', ...' if len(counts) > _MOST_SUFFIXES else ''}"]


def _suffix(path: str) -> str:
    return PurePosixPath(path).suffix.lower()


def memberships_of_folders(
    root: str, *, videos: Mapping[str, int], directories: Mapping[str, str]
) -> tuple[list[Membership], list[str]]:
    """Classes and splits from folder names.

    The layout is ROOT/split/class/video if all folders of ROOT with videos are named like splits, otherwise
    ROOT/class/video. A video may be a folder of frames. Empty class folders are only noted: object stores have none.

    Raises:
        CatalogError: a video is outside the layout, or a class or split folder cannot be read.
    """
    top = {path.split("/")[0] for path in videos}
    by_split = {folder.casefold() for folder in top} <= ROLES.keys()
    wanted = "split/class/video" if by_split else "class/video"
    depth = wanted.count("/") + 1
    memberships: list[Membership] = []
    for path in sorted(videos):
        parts = path.split("/")
        if len(parts) != depth:
            names = " ".join(sorted(folder for folder in top if folder.casefold() in ROLES))
            raise CatalogError(
                f"{path} under {root} does not fit {wanted}: "
                + (f"next to the splits {names} only split folders may hold videos; " if names and not by_split else "")
                + f"wanted split/class/video with splits named {' '.join(ROLES)}, or class/video; move it"
            )
        split = ROLES[parts[0].casefold()] if by_split else "all"
        memberships.append(Membership(path=path, class_name=parts[-2], split=split, where=f"{root}, {path}"))

    filled = {str(PurePosixPath(path).parent) for path in videos}
    empty: list[str] = []
    for directory, why in sorted(directories.items()):
        is_class = directory not in filled and directory.count("/") == depth - 2 and directory != "."
        is_split = by_split and why and directory not in top
        if (is_class or is_split) and (not by_split or directory.split("/")[0].casefold() in ROLES):
            if why:  # it may contain videos
                raise CatalogError(
                    f"{'class' if is_class else 'split'} folder {directory} under {root} cannot be read ({why}): fix "
                    "or remove it"
                )
            empty.append(directory)
    notes = []
    if empty:
        notes.append(f"{len(empty)} class folders have no video and are not classes, for example {empty[0]}")
    if by_split:
        return memberships, notes
    return memberships, [
        *notes,
        f'there is neither a split folder nor a split list: every clip is in the split "all"; {TO_SPLIT}, or set '
        "catalog.lists to a file with lines `class/video split`",
    ]


def match_files(
    memberships: Sequence[Membership], *, videos: Mapping[str, int], frames: bool
) -> tuple[list[Membership], list[str]]:
    """Match listed paths to the files on disk, and note how many are spelt differently.

    Copies of UCF101's lists differ from its archive in HandStand and Handstand; macOS decomposes accented letters
    (NFD); tables may percent-encode paths or use backslashes. A folder of frames has no suffix and may be directly
    below the root.
    """
    folded: dict[str, list[str]] = {}
    for video in videos:
        folded.setdefault(_folded(video), []).append(video)
    found: list[Membership] = []
    respelt = 0
    otherwise: list[tuple[str, str]] = []
    for m in memberships:
        names, *more = (
            [spelling] if not frames else _path_tails(_without_suffix(spelling)) for spelling in _spellings(m)
        )
        path = next((name for name in names if name in videos), None)
        if path is None:
            spelt = [name for tails in more for name in tails]
            path = next((name for name in spelt if name in videos), None)
            if path is None:
                candidates = [folded.get(_folded(name), []) for name in (*names, *spelt)]
                path = next((several[0] for several in candidates if len(several) == 1), None)
            if path is not None and path.casefold() in {name.casefold() for name in names}:
                respelt += 1
            elif path is not None:
                otherwise.append((m.path, path))
        found.append(m if path == m.path else replace(m, path=path or names[0]))
    notes = []
    if respelt:
        notes.append(f"lines that differ from the file's name in case: {respelt}; the file's name is used")
    if otherwise:
        line, file = otherwise[0]
        notes.append(
            f"lines that differ from the file's name in percent signs, backslashes or accents: {len(otherwise)}, "
            f"for example {printable(line)} for {printable(file)}; the file's name is used"
        )
    return found, notes


def _spellings(m: Membership) -> list[str]:
    """The listed path and its alternative spellings."""
    slashed = m.path.replace("\\", "/")
    more = (
        m.other_path,
        unquote(m.path, errors="surrogateescape"),
        slashed,
        unquote(slashed, errors="surrogateescape"),
    )
    return [path.rstrip("/") for path in dict.fromkeys((m.path, *filter(None, more)))]


def _folded(path: str) -> str:
    """A key that is equal for paths that differ only in case and Unicode normalisation form."""
    return normalize("NFC", normalize("NFC", path).casefold())


@dataclass(frozen=True, kw_only=True, slots=True)
class FlowImages:
    """Folders of a clip's flow images."""

    uris: tuple[str, str]
    """Folders of the x and the y images; may be the same."""
    size_bytes: int
    """Total size of the images."""


def find_flow_images(
    root: str, *, clips: Sequence[str], list_files: ListFiles
) -> tuple[dict[str, FlowImages], list[str]]:
    """Find each clip's flow images in u/CLIP and v/CLIP, or in CLIP for both components.

    CLIP may lack leading folders if the rest is unambiguous. A clip without flow images gets the folder in which they
    were expected: ingest quarantines it.

    Raises:
        CatalogError: no clip has flow images.
    """
    sizes: Counter[str] = Counter()
    left_out: list[LeftOut] = []
    for entry in list_files(root):
        if isinstance(entry, LeftOut):
            left_out.append(entry)
        elif _suffix(entry[0]) in IMAGE_SUFFIXES and not is_hidden(entry[0]):
            sizes[str(PurePosixPath(entry[0]).parent)] += entry[1]
    notes = _notes_on_left_out(root, left_out)
    base = root.rstrip("/")
    tails = {clip: _path_tails(_without_suffix(clip)) for clip in clips}
    shared = Counter(tail for names in tails.values() for tail in names)
    found: dict[str, FlowImages] = {}
    missing: list[str] = []
    for clip, names in tails.items():
        folders = [
            folders
            for name in names
            if shared[name] == 1 or name == names[0]
            for folders in ((f"u/{name}", f"v/{name}"), (name, name))
            if any(folder in sizes for folder in folders)
        ]
        if not folders:
            missing.append(clip)
        x, y = folders[0] if folders else (names[0], names[0])
        size_bytes = sum(sizes[folder] for folder in {x, y})
        found[clip] = FlowImages(uris=(f"{base}/{x}", f"{base}/{y}"), size_bytes=size_bytes)
    if len(missing) == len(clips):
        example = tails[missing[0]][0]
        raise CatalogError(
            f"no clip has flow images under {root}: wanted for example u/{example}/ and v/{example}/, or {example}/, "
            f"found {f'for example {min(sizes)}/' if sizes else 'no images'}; "
            + "".join(f"{note}; " for note in notes)
            + "check catalog.flow_images"
        )
    if missing:
        notes.append(f"clips without flow images under {root}: {len(missing)}, for example {missing[0]}")
    return found, notes


def _path_tails(path: str) -> list[str]:
    """The path, then the path without its first folder, without its first two, and so on."""
    parts = path.split("/")
    return ["/".join(parts[start:]) for start in range(len(parts))]


def _without_suffix(path: str) -> str:
    suffix = PurePosixPath(path).suffix
    return path[: -len(suffix)] if suffix.lower() in VIDEO_SUFFIXES else path
