"""Decompression-bomb check for MP4 and MOV (ISO 14496-12): announced sample counts, before FFmpeg allocates for them.

A table of equal samples is two numbers, for which FFmpeg makes an index of 24 bytes a sample: 1.7 kB took 3 GB.
Boxes are found by their names, wherever they are, for FFmpeg enters them wherever they are.
"""

from __future__ import annotations

import re
import zlib

import numpy as np

from twostream_ray.errors import DecodeError

_MOST_SAMPLES = 1 << 24
"""Of a track: three days of 60 frames a second."""
_MOST_OF_SOUND = _MOST_SAMPLES << 10
"""Sound without compression is indexed by 1024 of its samples."""
_MOST_EDITED = 1 << 26
"""Samples times entries of an edit list, for each may show all of them."""
_LONGEST_COMPRESSED_BYTES = 1 << 26
_BOX = re.compile(rb"trak|stsz|stz2|stsc|stts|trun|elst|cmvd")


def refuse_oversized(content: bytes, *, size: int, fragments: int = 0, name: str) -> int:
    """Hold what the boxes of an index announce against the size of their file in bytes, for a sample has one at least.

    `fragments` are the samples in fragments before these boxes; returns how many there are with them.

    Raises:
        DecodeError: they announce more.
    """
    samples, edits, is_sound = 0, 0, False
    for found in _BOX.finditer(content):
        kind, at = found[0], found.end()
        if content[found.start() - 4 : found.start()] == b"\0\0\0\1":
            at += 8  # the length is behind the name
        first, second, third = (int.from_bytes(content[at + 4 * word : at + 4 * word + 4], "big") for word in (0, 1, 2))
        if kind == b"trak":
            samples, edits, is_sound = 0, 0, False
        elif kind == b"stts":
            is_sound = second == 1 and content[at + 12 : at + 16] == b"\0\0\0\1"
        elif kind == b"elst":
            edits = second
        elif kind in (b"stsz", b"stz2"):
            samples = third
            _refuse(samples, size=size, most=_MOST_OF_SOUND if is_sound else _MOST_SAMPLES, name=name)
        elif kind == b"trun":
            fragments += second
            _refuse(fragments, size=size, most=_MOST_SAMPLES, name=name)
        elif kind == b"stsc":
            table = np.frombuffer(content[at + 8 : at + 8 + 12 * second][: (len(content) - at - 8) // 12 * 12], ">u4")
            _refuse(int(table[1::3].max(initial=0)), size=size, most=_MOST_OF_SOUND, name=name)
        elif kind == b"cmvd":
            _refuse(first, size=_LONGEST_COMPRESSED_BYTES, most=_LONGEST_COMPRESSED_BYTES, name=name)
            refuse_oversized(_inflated(content[at + 4 :]), size=size, name=name)
        if edits * samples > _MOST_EDITED and not is_sound:
            raise DecodeError(f"{name}: {edits} edits of {samples} samples are announced: it is damaged")
    return fragments


def _refuse(count: int, *, size: int, most: int, name: str) -> None:
    if count > min(size, most):
        raise DecodeError(
            f"{name}: an index of {size} bytes may have at most {min(size, most)} samples, {count} are announced: "
            "it is damaged"
        )


def _inflated(content: bytes) -> bytes:
    """An index that is compressed, as QuickTime once wrote it."""
    try:
        return zlib.decompressobj().decompress(content, _LONGEST_COMPRESSED_BYTES)
    except zlib.error:
        return b""
