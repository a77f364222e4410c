import numpy as np
import pytest
from foreign_videos import count, encoded, field_coded, pictures, taken_apart, uncoded_plane

from twostream_ray.data.video.bitstreams import PacketCounts

CODECS = ["h264", "hevc", "mpeg2video", "mpeg4", "vp8", "vp9", "av1", "gif", "wmv2"]


def counts_of(codec: str, packets: list[bytes], *, extradata: bytes = b"", anywhere: bool = False) -> PacketCounts:
    counts = PacketCounts(codec, extradata, begins_anywhere=anywhere)
    for time, packet in enumerate(packets):
        counts.add(packet, is_key=not time, is_hidden=False, time=time)
    counts.end()
    return counts


@pytest.mark.parametrize("codec", CODECS)
def test_whatever_a_packet_holds_it_is_at_most_one_picture_and_never_an_error(codec: str) -> None:
    rng = np.random.default_rng(0)
    marks = [
        b"\0\0\1",
        b"\0\0\1\xb6",
        b"\0\0\1\x20",
        b"\0\0\1\xb5\x83",
        b"\0\0\1\0",
        b"\0\0\1\x67",
        bytes(70),
        b"GIF89a",
    ]
    for number in range(300):
        parts = [rng.bytes(int(rng.integers(0, 40))) + marks[int(rng.integers(len(marks)))] for _ in range(6)]
        packets = [part for part in parts if part]
        extradata = (b"\1" if number % 2 else b"") + rng.bytes(int(rng.integers(0, 60)))
        counts = counts_of(codec, packets, extradata=extradata)
        assert 0 <= counts.least <= counts.most <= counts.packets == len(packets)


def test_field_whose_other_half_is_missing_is_a_picture_of_its_own_until_the_end() -> None:
    fields = field_coded(4)
    assert (counts_of("h264", fields).least, counts_of("h264", fields[:-1]).least) == (4, 3)
    # A first field is lost: the second one stands alone.
    assert counts_of("h264", [*fields[:4], *fields[5:]]).most == 4


def test_packed_planes_come_one_a_packet_and_the_last_one_never() -> None:
    planes = [packet.content for packet in taken_apart(encoded("mpeg4", pictures(6), container="avi", bf="1")).packets]
    packed = [planes[0], planes[1] + planes[2], uncoded_plane(2), planes[3] + planes[4], uncoded_plane(4), planes[5]]
    assert counts_of("mpeg4", packed).least == 6
    assert counts_of("mpeg4", packed[:4]).least == 4


def test_frames_of_vp9_that_are_hidden_in_a_superframe_are_none() -> None:
    hidden, shown = bytes([0b10000100, 9, 9]), bytes([0b10000110, 8, 8, 8])
    index = bytes([0b11000001, len(hidden), len(shown), 0b11000001])
    assert counts_of("vp9", [hidden + shown + index]).least == 1
    assert counts_of("vp9", [hidden, shown, hidden]).least == 1


def test_what_comes_before_the_first_key_picture_counts_only_where_a_file_has_an_index() -> None:
    for anywhere, least in ((True, 3), (False, 5)):
        counts = PacketCounts("wmv2", None, begins_anywhere=anywhere)
        for time in range(5):
            counts.add(b"x", is_key=time == 2, is_hidden=False, time=time)
        assert (counts.least, counts.before_key) == (least, 2 * anywhere)


def test_few_colours_of_a_gif_are_a_palette_with_zeros_behind_them() -> None:
    """Palettes of two colours in files that say 256, of the whole file and of single pictures."""
    data = b"\x08" + b"\x0b" + bytes.fromhex("0000080a0c1018306050a3") + b"\0"
    palette = bytes([255, 0, 0, 0, 0, 255]) + bytes(762)
    screen = b"GIF89a" + (4).to_bytes(2, "little") * 2
    picture = b"\x21\xf9\4\0\x0a\0\0\0," + bytes(4) + (4).to_bytes(2, "little") * 2
    of_file = screen + b"\xf7\0\0" + palette + (picture + b"\0" + data) * 5 + b";"
    of_pictures = screen + b"\0\0\0" + (picture + b"\x87" + palette + data) * 5 + b";"
    comment = b"\x21\xfe\xff" + bytes(255) + b"\0"
    commented = screen + b"\x80\0\0" + palette[:6] + (picture + b"\0" + data + comment) * 5 + b";"
    for file in (of_file, of_pictures, commented):
        assert bytes(64) in file
        assert count(file) == 5
    assert count(of_file[:-1] + b"\x21\xfe\x04made\0" * 3 + b";") == 5
