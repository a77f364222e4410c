"""Truncation check of containers: announced length in AVI (RIFF), MP4 and MOV (ISO 14496-12), Matroska, WebM, GIF."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator
from typing import BinaryIO

from twostream_ray.data.video.sample_tables import refuse_oversized
from twostream_ray.errors import DecodeError

_BOXES = {b"ftyp", b"moov", b"mdat", b"free", b"skip", b"wide", b"pnot"}
_MORE_BOXES = _BOXES | {b"moof", b"mfra", b"sidx", b"styp", b"uuid", b"udta", b"meta", b"emsg", b"prft", b"ssix"}
_FIRST_BOXES = _MORE_BOXES | {b"junk", b"pict", b"prfl"}
_WITH_INDEX = {
    *(b"moov", b"moof", b"trak", b"traf", b"mdia", b"minf", b"stbl", b"edts", b"mvex", b"cmov", b"udta", b"meta"),
    *(b"dinf", b"wave", b"tref", b"stsz", b"stz2", b"stsc", b"stts", b"trun", b"elst", b"cmvd"),
}
"""Boxes that FFmpeg enters or reads, wherever they are."""
_EBML, _SEGMENT, _CLUSTER = 0x1A45DFA3, 0x18538067, 0x1F43B675
_ENTERED = {_SEGMENT, _CLUSTER}
_LONGEST_INDEX_BYTES = 1 << 28
_NEVER = (1 << 32) - 1, (1 << 64) - 1
"""Durations that say nothing."""


def is_iso_media(file: BinaryIO) -> bool:
    """Whether a file begins as MP4 and MOV files do, so that `require_whole` looks at its boxes."""
    file.seek(4)
    return file.read(4) in _FIRST_BOXES


def require_whole(file: BinaryIO, *, name: str) -> dict[int, int]:
    """Hold a file's length and layout against what its own headers announce; says nothing of other containers.

    Decoders cannot be asked: they show what is left of a file as if it were all. What follows the announced end is
    allowed, for some archives pad their files, editors end them with a new line, and cameras append notes.

    Returns how many frames of each stream an AVI file holds as empty chunks: they stand for dropped ones.

    Raises:
        DecodeError: the file ends before its announced end, or something else is where one of its parts should begin.
    """
    size = file.seek(0, os.SEEK_END)
    file.seek(0)
    head = file.read(12)
    empty: Counter[int] = Counter()
    if head[:4] == b"RIFF" and head[8:] == b"AVI ":
        length = int.from_bytes(head[4:8], "little")
        end = 8 + (0 if length in _NEVER else length)
        if end <= size:
            empty = _empty_chunks(file, size)
    elif head[4:8] in _FIRST_BOXES:
        end = _end_of_boxes(file, size, name=name)
    elif int.from_bytes(head[:4], "big") == _EBML:
        end = _end_of_elements(file, size, name=name)
    elif head[:3] == b"GIF":
        end = _end_of_blocks(file, size)
    else:
        return empty
    if end > size:
        raise DecodeError(f"{name}: the file announces at least {end} bytes, it has {size}: it was cut short")
    return empty


def _empty_chunks(file: BinaryIO, size: int) -> Counter[int]:
    """Stream -> chunks of video without content, as far as chunks follow one another, or as the index has them."""
    empty: Counter[int] = Counter()
    listed: Counter[int] = Counter()
    at, waiting = 0, None
    while at + 8 <= size:
        file.seek(at)
        kind = file.read(4)
        length = int.from_bytes(file.read(4), "little")
        if not (kind.isascii() and kind.decode().isprintable()):
            break  # a hole: the chunk before it was not empty, but lost
        if waiting is not None:
            empty[waiting] += 1
            waiting = None
        if kind in (b"RIFF", b"LIST"):
            at += 12
            continue
        if not length and _is_video(kind):
            waiting = int(kind[:2])
        if kind == b"idx1" and at + 8 + length <= size and length <= _LONGEST_INDEX_BYTES:
            index = file.read(length // 16 * 16)
            entries = (index[start : start + 16] for start in range(0, len(index), 16))
            listed.update(int(entry[:2]) for entry in entries if _is_video(entry[:4]) and not any(entry[12:]))
        at += 8 + length + length % 2
    if waiting is not None and at >= size:
        empty[waiting] += 1
    return empty | listed  # the larger one of each


def _is_video(chunk: bytes) -> bool:
    return chunk[:2].isdigit() and chunk[2:] in (b"dc", b"db")


def _end_of_boxes(file: BinaryIO, size: int, *, name: str) -> int:
    end = fragments = 0
    seen: set[bytes] = set()
    while end < size:
        file.seek(end)
        head = file.read(16)
        kind = head[4:8]
        is_complete = {b"moov", b"mdat"} <= seen or {b"moov", b"moof"} <= seen
        if len(head) < 8:
            # The rest of a box, if it has the zeros that one begins with.
            is_box = any(head) and (not is_complete or not head[0])
            return end + 8 if is_box else size
        length = int.from_bytes(head[:4], "big")
        if length == 1:
            length = int.from_bytes(head[8:16], "big")
        # 0 is a last box that reaches to the end of the file, whatever that is; behind the last one cameras and editors
        # leave what is none.
        is_last = length < 8 or (end + length > size and is_complete and kind not in _MORE_BOXES)
        if kind in _WITH_INDEX and (is_last or end + length <= size):
            index = _read_index(file, end, size - end if is_last else length, name=name)
            fragments = refuse_oversized(index, size=size, fragments=fragments, name=name)
            if kind == b"moov" and not is_last:
                _refuse_contradictions(memoryview(index)[8:], name=name)
        if is_last:
            return size
        seen.add(kind)
        end += length
    return end


def _read_index(file: BinaryIO, start: int, length: int, *, name: str) -> bytes:
    if length > _LONGEST_INDEX_BYTES:
        raise DecodeError(f"{name}: an index may have at most {_LONGEST_INDEX_BYTES} bytes, this has {length}")
    file.seek(start)
    return file.read(length)


def _refuse_contradictions(movie: memoryview, *, name: str) -> None:
    """A track says how long it is shown: if it is longer without an edit list, the list was lost to damage."""
    header = _find(movie, b"mvhd")
    scale, _ = _times(header, of_track=False) if header else (0, 0)
    for track in (content for kind, content in _children(movie) if kind == b"trak"):
        shown, media, handler = (_find(track, *path) for path in ((b"tkhd",), (b"mdia", b"mdhd"), (b"mdia", b"hdlr")))
        if not (shown and media and handler) or bytes(handler[8:12]) != b"vide":
            continue
        edits = _find(track, b"edts", b"elst")
        media_scale, length = _times(media, of_track=False)
        ticks = _times(shown, of_track=True)[1]
        frames = _find(track, b"mdia", b"minf", b"stbl", b"stsz")
        count = int.from_bytes(frames[8:12], "big") if frames else 0
        if not (scale and media_scale and count > 1 and ticks and length) or ticks in _NEVER or length in _NEVER:
            continue
        if edits and int.from_bytes(edits[4:8], "big"):
            continue
        seconds, whole_seconds = ticks / scale, length / media_scale
        if whole_seconds - seconds > whole_seconds / count + 2 / scale:
            raise DecodeError(
                f"{name}: a video shown for {seconds:.3f} s is announced, it has {whole_seconds:.3f} s and no list of "
                "what to leave out: it is damaged"
            )


def _times(box: memoryview, *, of_track: bool) -> tuple[int, int]:
    """Time scale and duration of a header box; that of a track has its number instead of the scale."""
    wide = box[0] == 1
    at = 20 if wide else 12
    scale = int.from_bytes(box[at : at + 4], "big")
    at += 8 if of_track else 4
    return scale, int.from_bytes(box[at : at + (8 if wide else 4)], "big")


def _find(content: memoryview, *path: bytes) -> memoryview | None:
    for kind in path:
        found = next((inner for name, inner in _children(content) if name == kind), None)
        if found is None:
            return None
        content = found
    return content


def _children(content: memoryview) -> Iterator[tuple[bytes, memoryview]]:
    at = 0
    while at + 8 <= len(content):
        length, head = int.from_bytes(content[at : at + 4], "big"), 8
        if length == 1:
            length, head = int.from_bytes(content[at + 8 : at + 16], "big"), 16
        if length < head:
            return
        yield bytes(content[at + 4 : at + 8]), content[at + head : at + length]
        at += length


def _end_of_elements(file: BinaryIO, size: int, *, name: str) -> int:
    end = segment_end = 0
    while end < size and not 0 < segment_end <= end:
        file.seek(end)
        head = file.read(12)
        identity, used = _number(head, keep_marker=True)
        length, more = _number(head[used:], keep_marker=False)
        if not 0 < used <= 4 or not more:
            if end + len(head) == size and head.isspace():
                return size  # a new line behind a recording of unknown length
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


def _end_of_blocks(file: BinaryIO, size: int) -> int:
    """GIF89a: palettes, extensions and pictures, of blocks of up to 255 bytes, then a semicolon."""
    file.seek(10)
    at = 13 + palette_bytes(file.read(1))
    while at < size:
        file.seek(at)
        kind = file.read(1)
        if kind == b";":
            return at + 1
        if kind == b",":
            file.seek(at + 9)
            at += 11 + palette_bytes(file.read(1))
        elif kind == b"!":
            at += 2
        else:
            break  # damaged
        file.seek(at)
        while length := file.read(1):
            at += 1 + length[0]
            if not length[0]:
                break
            file.seek(at)
    return size + 1


def palette_bytes(flags: bytes) -> int:
    """Bytes of the palette that the flags of a GIF's screen or picture announce."""
    return 3 << (flags[0] & 7) + 1 if flags and flags[0] & 0x80 else 0
