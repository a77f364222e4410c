"""What lies below a data set's root: videos or folders of frames, the classes their folders name, flow images."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import PurePosixPath

from twostream_ray.data.lists import IMAGE_SUFFIXES, ROLES, VIDEO_SUFFIXES, ListFiles, Membership
from twostream_ray.errors import CatalogError


def scan(root: str, *, frames: bool, list_files: ListFiles) -> tuple[dict[str, int], list[str], list[str]]:
    """Videos, or folders of frames, with their sizes; directories that the listing names; notes on what is left out."""
    suffixes = IMAGE_SUFFIXES if frames else VIDEO_SUFFIXES
    videos: dict[str, int] = {}
    directories: list[str] = []
    empty: list[str] = []
    others: list[str] = []
    for path, size_bytes in list_files(root):
        hidden = any(part.startswith(".") for part in path.split("/"))
        if path.endswith("/"):
            if not hidden and path.strip("/"):
                directories.append(path.rstrip("/"))
                empty.append(path)
        elif hidden or PurePosixPath(path).suffix.lower() not in suffixes or (frames and "/" not in path):
            others.append(path)
            if not hidden:
                directories.append(str(PurePosixPath(path).parent))
        else:
            clip = str(PurePosixPath(path).parent) if frames else path
            videos[clip] = videos.get(clip, 0) + size_bytes
    kind = "image" if frames else "video"
    if not videos:
        raise CatalogError(
            f"no {kind} under {root}: wanted files ending in {' '.join(sorted(suffixes))}, "
            f"found {len(others)} other files; check catalog.root and catalog.frames"
        )
    notes = [f"{len(others)} files are no {kind}s and left out, for example {min(others)}"] if others else []
    if frames and empty:
        notes.append(f"{len(empty)} folders hold nothing and are left out, for example {min(empty)}")
    return videos, directories, notes


def memberships_of_folders(
    root: str, *, videos: Mapping[str, int], directories: Sequence[str]
) -> tuple[list[Membership], list[str]]:
    """ROOT/split/class/video where all folders of ROOT that hold videos are named as splits, else ROOT/class/video.

    A video may be a folder of frames.
    """
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


def as_on_disk(
    memberships: Sequence[Membership], *, videos: Mapping[str, int], frames: bool
) -> tuple[list[Membership], int]:
    """Listed names as they are on disk, and how many of them are spelt in another case there.

    Copies of UCF101's lists differ from its archive in HandStand and Handstand. A folder of frames has no suffix, and
    may lie directly below the root.
    """
    by_folded_case: dict[str, list[str]] = {}
    for video in videos:
        by_folded_case.setdefault(video.casefold(), []).append(video)
    found: list[Membership] = []
    respelt = 0
    for m in memberships:
        names = _tails(_less_suffix(m.path.rstrip("/"))) if frames else [m.path]
        path = next((name for name in names if name in videos), None)
        if path is None:
            folded = [by_folded_case.get(name.casefold(), []) for name in names]
            path = next((candidates[0] for candidates in folded if len(candidates) == 1), None)
            respelt += path is not None
        found.append(m if path == m.path else replace(m, path=path or names[0]))
    return found, respelt


@dataclass(frozen=True, kw_only=True, slots=True)
class FlowImages:
    """Where the flow images of a clip lie."""

    uris: tuple[str, str]
    size_bytes: int


def find_flow_images(
    root: str, *, clips: Sequence[str], list_files: ListFiles
) -> tuple[dict[str, FlowImages], list[str]]:
    """Folders u/CLIP and v/CLIP, or CLIP for both, of each clip; CLIP may lack leading folders where none shares it.

    A clip without any keeps the place where they were wanted: ingest quarantines it.
    """
    sizes: Counter[str] = Counter()
    for path, size_bytes in list_files(root):
        if PurePosixPath(path).suffix.lower() in IMAGE_SUFFIXES:
            sizes[str(PurePosixPath(path).parent)] += size_bytes
    base = root.rstrip("/")
    tails = {clip: _tails(_less_suffix(clip)) for clip in clips}
    shared = Counter(tail for names in tails.values() for tail in names)
    found: dict[str, FlowImages] = {}
    missing: list[str] = []
    for clip, names in tails.items():
        places = [
            folders
            for name in names
            if shared[name] == 1 or name == names[0]
            for folders in ((f"u/{name}", f"v/{name}"), (name, name))
            if any(folder in sizes for folder in folders)
        ]
        if not places:
            missing.append(clip)
        x, y = places[0] if places else (names[0], names[0])
        size_bytes = sum(sizes[folder] for folder in {x, y})
        found[clip] = FlowImages(uris=(f"{base}/{x}", f"{base}/{y}"), size_bytes=size_bytes)
    if len(missing) == len(clips):
        example = tails[missing[0]][0]
        raise CatalogError(
            f"no clip has flow images under {root}: wanted for example u/{example}/ and v/{example}/, or {example}/, "
            f"found {f'for example {min(sizes)}/' if sizes else 'no images'}; check catalog.flow_images"
        )
    if missing:
        return found, [f"{len(missing)} clips have no flow images under {root}, for example {missing[0]}"]
    return found, []


def _tails(path: str) -> list[str]:
    """The path, and what is left of it without its leading folders."""
    parts = path.split("/")
    return ["/".join(parts[start:]) for start in range(len(parts))]


def _less_suffix(path: str) -> str:
    suffix = PurePosixPath(path).suffix
    return path[: -len(suffix)] if suffix.lower() in VIDEO_SUFFIXES else path
