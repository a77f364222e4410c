import io
from fractions import Fraction

import av
import numpy as np
import pytest

from twostream_ray.data.video.clips import ClipWriter
from twostream_ray.data.video.packets import packets_of


@pytest.fixture(scope="module")
def clip() -> bytes:
    """70 frames of moving noise, of 48 x 32 px."""
    rng = np.random.default_rng(0)
    writer = ClipWriter(width=48, height=32, fps=Fraction(25))
    for _ in range(70):
        writer.write(rng.integers(0, 255, size=(32, 48, 3), dtype=np.uint8))
    return writer.finish()


def test_packets_are_those_that_ffmpeg_finds(clip: bytes) -> None:
    found = packets_of(memoryview(clip))
    with av.open(io.BytesIO(clip)) as container:
        (stream,) = container.streams
        packets = [packet for packet in container.demux(stream) if packet.size]
        assert found.extradata == stream.codec_context.extradata
    assert [clip[start : start + size] for start, size in zip(found.starts, found.sizes, strict=True)] == [
        bytes(packet) for packet in packets
    ]
    assert found.keys.tolist() == [number for number, packet in enumerate(packets) if packet.is_keyframe]
    assert len(found.keys) >= 70 / 6


def test_whatever_byte_of_the_index_is_damaged_it_is_an_error_or_another_index_within_the_file(clip: bytes) -> None:
    start = clip.index(b"moov") - 4
    rng = np.random.default_rng(1)
    refused = 0
    for position in range(start, len(clip)):
        damaged = bytearray(clip)
        damaged[position] ^= int(rng.integers(1, 256))
        try:
            found = packets_of(memoryview(bytes(damaged)))
        except ValueError:
            refused += 1
            continue
        assert found.starts.min() >= 0 and (found.starts + found.sizes).max() <= len(clip)
    assert refused > 100


@pytest.mark.parametrize("content", [b"", b"no video", b"\0" * 100, b"\0\0\0\x08moov"])
def test_what_is_no_mp4_file_is_refused(content: bytes) -> None:
    with pytest.raises(ValueError, match=r"^expected |does not fit"):
        packets_of(memoryview(content))
