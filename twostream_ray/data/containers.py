"""How long a video file says it is: RIFF (AVI), ISO base media (MP4, MOV; ISO 14496-12), Matroska and WebM, GIF."""

from __future__ import annotations

import os
from typing import BinaryIO

from twostream_ray.errors import DecodeError

_BOXES = {b"ftyp", b"moov", b"mdat", b"free", b"skip", b"wide", b"pnot"}
_EBML, _SEGMENT, _CLUSTER = 0x1A45DFA3, 0x18538067, 0x1F43B675
_ENTERED = {_SEGMENT, _CLUSTER}


def require_whole(file: BinaryIO, *, name: str) -> None:
    """Hold a file's length and layout against what its own headers announce; says nothing of other containers.

    Decoders cannot be asked: they show what is left of a file as if it were all. What follows the announced end is
    allowed, for some archives pad their files.

    Raises:
        DecodeError: the file ends before its announced end, or something else lies where one of its parts should begin.
    """
    size = file.seek(0, os.SEEK_END)
    file.seek(0)
    head = file.read(12)
    if head[:4] == b"RIFF" and head[8:] == b"AVI ":
        end = 8 + int.from_bytes(head[4:8], "little")
    elif head[4:8] in _BOXES:
        end = _end_of_boxes(file, size)
    elif int.from_bytes(head[:4], "big") == _EBML:
        end = _end_of_elements(file, size, name=name)
    elif head[:3] == b"GIF":
        file.seek(max(0, size - 512))
        end = size if file.read().rstrip(b"\0").endswith(b";") else size + 1
    else:
        return
    if end > size:
        raise DecodeError(f"{name}: the file announces at least {end} bytes, it has {size}: it was cut short")


def _end_of_boxes(file: BinaryIO, size: int) -> int:
    end = 0
    while end < size:
        file.seek(end)
        head = file.read(16)
        if len(head) < 8 and any(head):
            return end + 8
        length = int.from_bytes(head[:4], "big")
        if length == 1:
            length = int.from_bytes(head[8:16], "big")
        if length < 8:  # 0 is a last box that reaches to the end of the file, whatever that is
            return size
        end += length
    return end


def _end_of_elements(file: BinaryIO, size: int, *, name: str) -> int:
    end = segment_end = 0
    while end < size and not 0 < segment_end <= end:
        file.seek(end)
        head = file.read(12)
        identity, used = _number(head, keep_marker=True)
        length, more = _number(head[used:], keep_marker=False)
        if not 0 < used <= 4 or not more:
            raise DecodeError(f"{name}: no part of a Matroska file begins at byte {end} of {size}: it is damaged")
        end += used + more
        if identity == _SEGMENT and length is not None:
            segment_end = end + length
        if identity not in _ENTERED:
            end += length or 0
    return max(end, segment_end)


def _number(content: bytes, *, keep_marker: bool) -> tuple[int | None, int]:
    """An EBML number and how many bytes it takes: None is one that is left open, 0 bytes is none at all."""
    if not content or not content[0]:
        return None, 0
    used = 9 - content[0].bit_length()
    if len(content) < used:
        return None, 0
    value = int.from_bytes(content[:used], "big")
    unmarked = value & ((1 << 7 * used) - 1)
    if keep_marker:
        return value, used
    return (None if unmarked == (1 << 7 * used) - 1 else unmarked), used
