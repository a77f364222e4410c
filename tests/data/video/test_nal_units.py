"""Pictures and padding in H.264 and HEVC, as whole files show them."""

from dataclasses import replace

import numpy as np
import pytest
from foreign_videos import (
    Coded,
    Packet,
    count,
    decoded,
    encoded,
    field_coded,
    fields_in,
    pictures,
    put_together,
    taken_apart,
)

from twostream_ray.data.video.raw_video import Note
from twostream_ray.errors import DecodeError


@pytest.mark.parametrize("container", ["mpegts", "matroska", "mp4"])
@pytest.mark.parametrize(("fields", "frames"), [(20, 10), (19, 9)])
def test_two_fields_coded_apart_are_one_picture_and_half_a_picture_at_the_end_is_none(
    container: str, fields: int, frames: int
) -> None:
    shown, notes = decoded(fields_in(container, field_coded(10)[:fields]))
    assert notes == (Note.INTERLACED,)
    levels = [frame[0].mean() for frame in shown]
    np.testing.assert_allclose(np.diff(levels), 4 * 255 / 219, atol=1)
    assert len(shown) == frames


def test_field_that_is_lost_is_missed() -> None:
    fields = field_coded(10)
    fields[8] = fields[8][:40] + bytes(700) + fields[8][740:]
    with pytest.raises(DecodeError):
        decoded(fields_in("matroska", fields))


def padded(coded: Coded, *, zeros: int, length_bytes: int) -> list[Packet]:
    """Zeros behind the last NAL unit of each packet, within its length where there is one."""
    packets = []
    for packet in coded.packets:
        content = packet.content
        if length_bytes:
            offset = at = 0
            while at < len(content):
                offset, at = at, at + 4 + int.from_bytes(content[at : at + 4], "big")
            size = len(content) - offset - 4 + zeros
            content = content[:offset] + size.to_bytes(4, "big") + content[offset + 4 :]
        packets.append(replace(packet, content=content + bytes(zeros)))
    return packets


@pytest.mark.parametrize("codec", ["libx264", "libx265"])
@pytest.mark.parametrize("container", ["mp4", "mpegts"])
def test_zeros_behind_nal_units_are_padding_and_zeros_within_are_a_hole(codec: str, container: str) -> None:
    options = {"x265_params": "log-level=none"} if codec == "libx265" else {}
    coded = taken_apart(encoded(codec, pictures(12), container=container, **options))
    packets = padded(coded, zeros=100, length_bytes=4 * (container == "mp4"))
    file = put_together(coded, packets, container=container)
    assert bytes(64) in file
    assert count(file) == 12
    first = packets[0].content
    holed = replace(packets[0], content=first[:-500] + bytes(100) + first[-400:])
    with pytest.raises(DecodeError, match="damaged: there are zeros"):
        decoded(put_together(coded, [holed, *packets[1:]], container=container))
