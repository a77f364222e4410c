"""Image sequences: frames and flow extracted into folders of numbered images, read in order and checked for gaps.

Layouts of the usual extraction tools: frames CLIP/img_00001.jpg (any prefix, any number of digits); flow
CLIP/flow_x_00001.jpg and CLIP/flow_y_00001.jpg (or x_, y_), or u/CLIP/frame000001.jpg and v/CLIP/frame000001.jpg.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial

from twostream_ray import storage
from twostream_ray.errors import DecodeError
from twostream_ray.storage.local_files import LeftOut

_NUMBERED = re.compile(r"(?P<prefix>.*?)(?P<number>\d+)\.(jpg|jpeg|png)", re.IGNORECASE)
_COMPONENTS = (("flow_x_", "flow_y_"), ("flow_x", "flow_y"), ("x_", "y_"))
_READERS = 8
_LIMIT_BYTES = 64 << 20


def read_frames(folder: str, *, name: str) -> list[bytes]:
    """Contents of the frame images in a clip's folder, by number; flow images in the same folder are ignored.

    Raises:
        AccessError: the folder does not exist.
        DecodeError: no numbered image, several prefixes, or a missing or repeated number.
    """
    kinds = _by_prefix(folder, name=name)
    for pair in _COMPONENTS:
        if all(prefix in kinds for prefix in pair):
            kinds = {prefix: files for prefix, files in kinds.items() if prefix not in pair}
    return _read_all(_in_order(_only(kinds, folder, name=name), folder, name=name))


def read_flow(x_folder: str, y_folder: str, *, name: str) -> list[tuple[bytes, bytes]]:
    """Contents of the (x, y) images of a clip's flow, field by field, from one folder or two.

    Raises:
        AccessError: a folder does not exist.
        DecodeError: x and y images without a counterpart, or a missing or repeated number.
    """
    if x_folder == y_folder:
        kinds = _by_prefix(x_folder, name=name)
        pair = next((pair for pair in _COMPONENTS if all(prefix in kinds for prefix in pair)), None)
        if pair is None:
            raise DecodeError(
                f"{name}: expected flow images flow_x_00001.jpg and flow_y_00001.jpg in {x_folder}, found prefixes "
                f"{', '.join(map(repr, sorted(kinds))) or 'none'}: check catalog.flow_images"
            )
        x, y = (kinds[prefix] for prefix in pair)
    else:
        x, y = (_only(_by_prefix(folder, name=name), folder, name=name) for folder in (x_folder, y_folder))
    in_order = _in_order(x, x_folder, name=name), _in_order(y, y_folder, name=name)
    if unpaired := x.keys() ^ y.keys():
        raise DecodeError(
            f"{name}: expected x and y flow images with the same numbers, {min(unpaired)} has only one, in "
            f"{x_folder if min(unpaired) in x else y_folder}: add the other or remove it"
        )
    left, right = map(_read_all, in_order)
    return list(zip(left, right, strict=True))


def _by_prefix(folder: str, *, name: str) -> dict[str, dict[int, str]]:
    """Prefix -> number -> file, of the images directly in a folder."""
    kinds: dict[str, dict[int, str]] = {}
    for entry in storage.list_entries(folder):
        file, match = entry[0], _NUMBERED.fullmatch(entry[0])
        if match and isinstance(entry, LeftOut):
            raise DecodeError(
                f"{name}: expected images in {folder}, {file} cannot be read ({entry.why}): fix or remove it"
            )
        if match and "/" not in file and not file.startswith("."):
            files, number = kinds.setdefault(match["prefix"], {}), int(match["number"])
            if number in files:
                raise DecodeError(f"{name}: {folder} has number {number} twice, {files[number]} and {file}: remove one")
            files[number] = file
    return kinds


def _only(kinds: dict[str, dict[int, str]], folder: str, *, name: str) -> dict[int, str]:
    if len(kinds) != 1:
        raise DecodeError(
            f"{name}: expected numbered images with one prefix in {folder}, found prefixes "
            f"{', '.join(map(repr, sorted(kinds))) or 'none'}: remove the others"
        )
    (numbered,) = kinds.values()
    return numbered


def _in_order(numbered: dict[int, str], folder: str, *, name: str) -> list[str]:
    """Files by number, starting at 0 or 1: with the first ones missing, flow would be assigned to the wrong frames."""
    first, last = min(1, *numbered), max(numbered)
    # Stops at the first gap: numbers that are dates span too large a range to list all gaps.
    missing = next((number for number in range(first, last + 1) if number not in numbered), None)
    if missing is not None:
        raise DecodeError(
            f"{name}: expected images numbered without a gap in {folder}, {missing} is missing of {first}..{last}"
        )
    return [storage.join(folder, numbered[number]) for number in sorted(numbered)]


def _read_all(uris: Sequence[str]) -> list[bytes]:
    """Read many small files in parallel: one after the other, requests to an object store take seconds per clip."""
    with ThreadPoolExecutor(_READERS, thread_name_prefix="images") as threads:
        return list(threads.map(partial(storage.read_bytes, limit_bytes=_LIMIT_BYTES), uris))
