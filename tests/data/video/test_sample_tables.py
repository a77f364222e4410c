"""Announcements of MP4 files that would take memory: a table, fragments, a compressed index, a list of edits."""

import struct
import zlib
from collections.abc import Callable

import pytest
from foreign_videos import count, encoded, pictures

from twostream_ray.data.video.sample_tables import refuse_oversized
from twostream_ray.errors import DecodeError

FILE = encoded("mpeg4", pictures(10), container="mp4")
FRAGMENTED = encoded(
    "mpeg4", pictures(10), container="mp4", muxer={"movflags": "frag_keyframe+empty_moov+default_base_moof"}
)


def box(kind: bytes, *content: bytes) -> bytes:
    body = b"".join(content)
    return struct.pack(">I", 8 + len(body)) + kind + body


def with_numbers(file: bytes, kind: bytes, at: int, *numbers: int) -> bytes:
    """Numbers written behind the name of the first box of a kind."""
    start = file.index(kind) + 4 + at
    content = struct.pack(f">{len(numbers)}I", *numbers)
    return file[:start] + content + file[start + len(content) :]


def equal_samples(number: int) -> bytes:
    """A table of equally large samples, all in the first chunk, and as many times."""
    file = with_numbers(FILE, b"stsz", 4, 1, number)
    return with_numbers(with_numbers(file, b"stsc", 12, number), b"stts", 8, number)


def compressed(number: int) -> bytes:
    index = FILE[FILE.index(b"moov") - 4 :]
    content = with_numbers(index, b"stsz", 4, 1, number)
    data = box(b"cmvd", struct.pack(">I", len(content)), zlib.compress(content))
    return box(b"ftyp", b"qt  ", bytes(4)) + box(b"moov", box(b"cmov", box(b"dcom", b"zlib"), data))


BOMBS: dict[str, Callable[[], bytes]] = {
    "equal samples": lambda: equal_samples(50_000_000),
    "equal samples in a last box without a length": lambda: with_numbers(
        equal_samples(50_000_000), b"moov", -8, 0, 0x6D6F6F76
    ),
    "a fragment": lambda: with_numbers(FRAGMENTED, b"trun", 0, 0, 50_000_000),
    "many fragments": lambda: FRAGMENTED + with_numbers(FRAGMENTED, b"trun", 0, 0, 15_000) * 9,
    "a compressed index": lambda: compressed(50_000_000),
    "an index that is larger than any": lambda: with_numbers(compressed(1), b"cmvd", 0, 1 << 30),
    "edits": lambda: with_numbers(FILE, b"elst", 4, 1 << 24),
    "samples in a chunk": lambda: with_numbers(FILE, b"stsc", 12, 1 << 30),
}


@pytest.mark.timeout(20)
@pytest.mark.parametrize("kind", BOMBS)
def test_numbers_that_no_file_of_the_size_can_hold_are_refused_before_it_is_opened(kind: str) -> None:
    with pytest.raises(DecodeError, match=r"video: .*(are announced|are named|expected).* it is damaged"):
        count(BOMBS[kind]())


def test_whole_files_are_what_they_were() -> None:
    assert count(FILE) == count(FRAGMENTED) == 10
    sound = b"trak" + box(b"stts", bytes(4), struct.pack(">III", 1, 40_000_000, 1))
    sound += box(b"stsz", bytes(4), struct.pack(">II", 1, 40_000_000))
    assert refuse_oversized(sound, size=80_000_000, name="x") == 0
    with pytest.raises(DecodeError, match="40000000 are announced"):
        refuse_oversized(sound[30:], size=80_000_000, name="x")
