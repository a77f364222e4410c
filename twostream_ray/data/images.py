"""Frames and flow that lie about as folders of images already: which files they are, in order and without gaps.

The folders of the usual extraction tools: frames CLIP/img_00001.jpg (any prefix, any number of digits); flow
CLIP/flow_x_00001.jpg and CLIP/flow_y_00001.jpg (or x_, y_), or u/CLIP/frame000001.jpg and v/CLIP/frame000001.jpg.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator

from twostream_ray import storage
from twostream_ray.errors import AccessError, DecodeError

_NUMBERED = re.compile(r"(?P<prefix>.*?)(?P<number>\d+)\.(jpg|jpeg|png)", re.IGNORECASE)
_COMPONENTS = (("flow_x_", "flow_y_"), ("flow_x", "flow_y"), ("x_", "y_"))


def read_frames(folder: str, *, name: str) -> list[bytes]:
    """The images of a clip's folder in the order of their numbers; those of flow beside them are not frames.

    Raises:
        AccessError: there is no such folder.
        DecodeError: there is no numbered image, several kinds of them, or a number is missing.
    """
    kinds = _by_prefix(file for file, _ in storage.list_files(folder))
    for pair in _COMPONENTS:
        if all(prefix in kinds for prefix in pair):
            kinds = {prefix: files for prefix, files in kinds.items() if prefix not in pair}
    if len(kinds) != 1:
        raise DecodeError(
            f"{name}: a folder of images numbered with one prefix was wanted at {folder}, it has "
            f"{', '.join(map(repr, sorted(kinds))) or 'none'}"
        )
    (numbered,) = kinds.values()
    return [storage.read_bytes(storage.join(folder, file)) for file in _in_order(numbered, folder, name=name)]


def read_flow(root: str, clip: str, *, name: str) -> list[tuple[bytes, bytes]]:
    """The x and y images of a clip's flow, field by field.

    `clip` is the clip's path without its suffix; where the flow has no such folders, what is left of it.

    Raises:
        AccessError: no folder of the known forms is there.
        DecodeError: x and y do not go together, or a number is missing.
    """
    parts = clip.split("/")
    for path in ("/".join(parts[start:]) for start in range(len(parts))):
        found = _component_files(root, path, name=name)
        if found is not None:
            x, y = found
            if len(x) != len(y):
                raise DecodeError(f"{name}: as many x as y images of flow were wanted, got {len(x)} and {len(y)}")
            return [(storage.read_bytes(left), storage.read_bytes(right)) for left, right in zip(x, y, strict=True)]
    raise AccessError(
        f"{name}: flow images were wanted at {root}/{clip}/flow_x_00001.jpg or {root}/u/{clip}/frame000001.jpg (also "
        "without the class folder), neither is there: check catalog.flow_images"
    )


def _component_files(root: str, clip: str, *, name: str) -> tuple[list[str], list[str]] | None:
    together = storage.join(root, clip)
    kinds = _listed(together)
    for x, y in _COMPONENTS:
        if x in kinds and y in kinds:
            files = (_in_order(kinds[prefix], together, name=name) for prefix in (x, y))
            left, right = ([storage.join(together, file) for file in component] for component in files)
            return left, right
    apart = [storage.join(root, part, clip) for part in ("u", "v")]
    both = [_listed(folder) for folder in apart]
    if all(len(kinds) == 1 for kinds in both):
        left, right = (
            [storage.join(folder, file) for file in _in_order(next(iter(kinds.values())), folder, name=name)]
            for folder, kinds in zip(apart, both, strict=True)
        )
        return left, right
    return None


def _listed(folder: str) -> dict[str, dict[int, str]]:
    try:
        return _by_prefix(file for file, _ in storage.list_files(folder))
    except AccessError:
        return {}


def _by_prefix(files: Iterable[str]) -> dict[str, dict[int, str]]:
    """Prefix -> number -> file, of the images directly in a folder."""
    kinds: dict[str, dict[int, str]] = {}
    for file in files:
        match = _NUMBERED.fullmatch(file)
        if match and "/" not in file:
            kinds.setdefault(match["prefix"], {})[int(match["number"])] = file
    return kinds


def _in_order(numbered: dict[int, str], folder: str, *, name: str) -> Iterator[str]:
    first, last = min(numbered), max(numbered)
    missing = [number for number in range(first, last + 1) if number not in numbered]
    if missing:
        raise DecodeError(
            f"{name}: images numbered without a gap were wanted in {folder}, {missing[0]} is missing of {first}..{last}"
        )
    return (numbered[number] for number in sorted(numbered))
