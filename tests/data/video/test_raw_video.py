"""Videos as cameras, editors and recorders write them: which are whole, what is shown, what is noted."""

import io
import os
from collections.abc import Callable
from dataclasses import replace
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
from foreign_videos import (
    Coded,
    Packet,
    count,
    decoded,
    encoded,
    from_key,
    pictures,
    put_together,
    taken_apart,
    uncoded_plane,
)
from numpy.typing import NDArray

from twostream_ray.data.flow import FlowContract
from twostream_ray.data.video.prepare import prepare_clip
from twostream_ray.data.video.raw_video import FrameStream, Note
from twostream_ray.errors import DecodeError, EmptyClipError, TooLongError

CONTRACT = FlowContract(short_side_px=64)
OPEN_GOPS = "open-gop=1:bframes=3:keyint=12:min-keyint=12:scenecut=0:b-adapt=0"


# -- whole files that gave fewer pictures than they have packets


@pytest.mark.real
@pytest.mark.parametrize(
    ("name", "frames", "notes"),
    [
        ("avchd_field_coded.MTS", 12, (Note.INTERLACED,)),
        ("avi_dropped_frames_26_of_30.avi", 26, ()),
        ("vp8_alt_ref_60_frames_64_packets.webm", 60, ()),
        ("mp4_h264_slices_padded_with_zeros.mp4", 30, ()),
        ("gif_palette_padded_with_zeros.gif", 30, ()),
        ("mp4_with_newline_behind_last_box.mp4", 30, ()),
        ("mkv_cover_picture_is_first_stream.mkv", 30, ()),
        ("mov_preview_16px_is_first_stream.mov", 30, (Note.SEVERAL_STREAMS,)),
    ],
)
def test_files_that_were_refused_or_misread_are_whole_clips(
    real: Path, name: str, frames: int, notes: tuple[str, ...]
) -> None:
    clip = prepare_clip((real / "bugs" / name).read_bytes(), CONTRACT, name=name)
    assert (clip.num_frames, clip.height, clip.width, clip.notes) == (frames, 64, 64, notes)


def without(coded: Coded, positions: set[int]) -> list[Packet]:
    return [packet for position, packet in enumerate(coded.packets) if position not in positions]


@pytest.mark.parametrize("codec", ["mpeg4", "mjpeg"])
@pytest.mark.parametrize("dropped", [{3}, {3, 4, 11, 18}])
def test_frames_that_a_recorder_dropped_are_no_damage_in_an_avi(codec: str, dropped: set[int]) -> None:
    pixels = "yuvj420p" if codec == "mjpeg" else "yuv420p"
    coded = taken_apart(encoded(codec, pictures(20), container="avi", pixels=pixels))
    file = put_together(coded, without(coded, dropped), container="avi")
    assert b"00dc\0\0\0\0" in file
    assert count(file) == 20 - len(dropped)
    # Some recorders only leave them out of the index.
    listed = file.index(b"idx1")
    unheard = file[:listed].replace(b"00dc\0\0\0\0", b"JUNK\0\0\0\0") + file[listed:]
    assert count(unheard) == 20 - len(dropped)
    # A hole takes the header of the chunk behind it as well.
    position = file.index(b"00dc", len(file) // 2)
    with pytest.raises(DecodeError):
        decoded(file[: position + 4] + bytes(600) + file[position + 604 :])


@pytest.mark.parametrize("codec", ["libvpx", "libvpx-vp9"])
def test_pictures_that_are_coded_but_not_shown_are_not_missed(codec: str) -> None:
    coded = taken_apart(encoded(codec, pictures(30), container="webm", auto_alt_ref="1", lag_in_frames="16"))
    packets = coded.packets
    if codec == "libvpx":
        # As alternate references come: once more, with the bit that says shown cleared.
        hidden = replace(packets[9], content=bytes([packets[9].content[0] & 0xEF]) + packets[9].content[1:])
        packets = [*packets[:10], hidden, *packets[10:]]
    assert count(put_together(coded, packets, container="webm")) == 30


@pytest.mark.parametrize("container", ["avi", "mp4", "matroska"])
def test_planes_that_are_announced_as_not_coded_give_no_picture(container: str) -> None:
    coded = taken_apart(encoded("mpeg4", pictures(20), container="avi"))
    empty = {4, 5, 12, 15}
    packets = [
        replace(packet, content=uncoded_plane(position)) if position in empty else packet
        for position, packet in enumerate(coded.packets)
    ]
    assert count(put_together(coded, packets, container=container)) == 16


@pytest.mark.parametrize("container", ["matroska", "mpegts"])
@pytest.mark.parametrize(
    ("codec", "options"),
    [
        ("libx264", {"x264_params": OPEN_GOPS + ":repeat-headers=1"}),
        ("libx265", {"x265_params": OPEN_GOPS + ":repeat-headers=1:log-level=none"}),
        ("mpeg2video", {"g": "12", "bf": "2"}),
    ],
)
def test_cut_at_an_open_group_of_pictures_leaves_out_what_refers_to_the_part_before(
    container: str, codec: str, options: dict[str, str]
) -> None:
    file = encoded(codec, pictures(48), container="mpegts", **options)
    coded = taken_apart(file)
    whole = list(FrameStream(file))
    packets = from_key(coded.packets, 1)
    first = next(packet for packet in coded.packets if packet is packets[0])
    shown = sum(packet.pts >= first.pts for packet in packets)
    assert shown < len(packets)
    frames, notes = decoded(put_together(coded, packets, container=container))
    assert notes == (Note.BEGINS_CUT,)
    np.testing.assert_array_equal(np.stack(frames), np.stack(whole[-shown:]))


def test_recording_that_begins_between_key_pictures_shows_what_follows_the_first_one() -> None:
    file = encoded("libx264", pictures(48), container="mpegts", x264_params=OPEN_GOPS + ":repeat-headers=1")
    coded = taken_apart(file)
    frames, notes = decoded(put_together(coded, coded.packets[5:], container="mpegts"))
    assert notes == (Note.BEGINS_CUT,)
    np.testing.assert_array_equal(np.stack(frames), np.stack(list(FrameStream(file))[-len(frames) :]))


def test_clip_that_is_too_long_is_refused_before_it_is_decoded() -> None:
    file = encoded("libx264", pictures(40), container="matroska")
    with pytest.raises(TooLongError, match=r"at most 30 frames, this has 3[1-9] or more"):
        FrameStream(file, max_frames=30)


# -- which stream


def several(*streams: tuple[str, list[NDArray[np.uint8]], int], container: str, attached: bool = False) -> bytes:
    """A file of streams, each of a codec, frames and frames a second; the first one may be an attached picture."""
    file = io.BytesIO()
    with av.open(file, mode="w", format=container) as output:
        added = []
        for codec, frames, rate in streams:
            stream = output.add_stream(codec, rate=rate)
            stream.height, stream.width = frames[0].shape[:2]
            stream.pix_fmt = {"png": "rgb24", "mjpeg": "yuvj420p"}.get(codec, "yuv420p")
            added.append((stream, frames))
        if attached:
            added[0][0].disposition = av.stream.Disposition.attached_pic
        for stream, frames in added:
            for frame in frames:
                output.mux(stream.encode(av.VideoFrame.from_ndarray(frame).reformat(format=stream.pix_fmt)))
            output.mux(stream.encode(None))
    return file.getvalue()


def grey(count: int, *, size: int, level: int = 200) -> list[NDArray[np.uint8]]:
    return [np.full((size, size, 3), level, np.uint8)] * count


@pytest.mark.parametrize(
    ("container", "codec", "pictures_", "size", "attached"),
    [
        ("matroska", "mjpeg", 1, 256, False),
        ("mov", "mjpeg", 1, 128, False),
        ("mp4", "mjpeg", 1, 300, True),
        ("mov", "mjpeg", 4, 16, False),
        ("matroska", "mjpeg", 25, 32, False),
        ("mp4", "mpeg4", 25, 32, False),
    ],
)
def test_the_film_is_taken_and_no_cover_or_preview_that_comes_first(
    container: str, codec: str, pictures_: int, size: int, attached: bool
) -> None:
    film = list(pictures(25, width=96, height=96))
    file = several(
        (codec, grey(pictures_, size=size), 25), ("libx264", film, 25), container=container, attached=attached
    )
    frames, notes = decoded(file)
    assert len(frames) == 25 and frames[0].shape == (96, 96, 3)
    assert notes == ((Note.SEVERAL_STREAMS,) if pictures_ > 1 else ())


def test_of_two_cameras_in_a_file_the_first_is_taken_and_it_is_said() -> None:
    near, far = list(pictures(12, width=80, height=64)), list(pictures(12, width=96, height=64))
    frames, notes = decoded(several(("libx264", near, 25), ("libx264", far, 25), container="matroska"))
    assert frames[0].shape == (64, 80, 3) and notes == (Note.SEVERAL_STREAMS,)


def test_cover_alone_is_no_film() -> None:
    file = several(("mjpeg", grey(1, size=64), 25), ("mpeg4", grey(1, size=32), 25), container="mp4", attached=True)
    with pytest.raises(EmptyClipError, match="a clip needs at least 2 frames, got 1"):
        prepare_clip(file, CONTRACT, name="x")


# -- how it is shown


@pytest.mark.parametrize(
    ("codec", "container", "aspect", "angle", "size"),
    [
        ("libx264", "mp4", "2", 0, (64, 192)),
        ("libx264", "mp4", "2", 90, (192, 64)),
        ("libx264", "matroska", "1/2", 0, (86, 64)),
        ("mpeg2video", "mpegts", "8/9", 0, (64, 86)),
        ("mpeg4", "avi", "4/3", 0, (64, 128)),
    ],
)
def test_pixels_that_are_not_square_are_stored_as_players_show_them(
    codec: str, container: str, aspect: str, angle: int, size: tuple[int, int]
) -> None:
    def prepare(stream: av.VideoStream) -> None:
        stream.codec_context.sample_aspect_ratio = Fraction(aspect)
        if angle:
            stream.set_display_rotation(angle)

    clip = prepare_clip(encoded(codec, pictures(4), container=container, prepare=prepare), CONTRACT, name="x")
    assert (clip.height, clip.width) == size


def test_picture_that_is_a_line_is_refused() -> None:
    file = encoded("mpeg4", [np.full((16, 2048, 3), 90, np.uint8)] * 3, container="mp4")
    with pytest.raises(DecodeError, match="may be at most 64, this has 2048x16 pixels of 1"):
        decoded(file)


def joined(*sizes: tuple[int, int]) -> bytes:
    """Five frames of each (width, height), one behind the other in an AVI of JPEGs."""
    parts = [
        taken_apart(encoded("mjpeg", pictures(5, width=width, height=height), container="avi", pixels="yuvj420p"))
        for width, height in sizes
    ]
    packets = [packet for part in parts for packet in part.packets]
    moved = [replace(packet, pts=position, dts=position) for position, packet in enumerate(packets)]
    return put_together(parts[0], moved, container="avi")


def test_change_of_size_is_noted_and_a_change_of_shape_refused() -> None:
    clip = prepare_clip(joined((96, 64), (192, 128)), CONTRACT, name="x")
    assert (clip.num_frames, clip.notes) == (10, (Note.RESIZED,))
    wanted = "changes from 96x64 to 64x96 px .*: cut the video in two there"
    with pytest.raises(DecodeError, match=wanted):
        prepare_clip(joined((96, 64), (64, 96)), CONTRACT, name="x")


@pytest.mark.parametrize(
    ("codec", "options"),
    [("libx264", {"x264_params": "interlaced=1"}), ("mpeg2video", {"flags": "+ilme+ildct"})],
)
def test_interlaced_video_is_said_to_be(codec: str, options: dict[str, str]) -> None:
    assert decoded(encoded(codec, pictures(6), **options))[1] == (Note.INTERLACED,)
    assert decoded(encoded(codec, pictures(6)))[1] == ()


def with_rate(scale: int, rate: int) -> bytes:
    file = encoded("mpeg4", pictures(6), container="avi")
    position = file.index(b"strh") + 8 + 20
    return file[:position] + scale.to_bytes(4, "little") + rate.to_bytes(4, "little") + file[position + 8 :]


@pytest.mark.parametrize(("scale", "rate"), [(0xFFFFFFFF, 25), (0xFFFFFFFF, 1), (10**6, 1), (1, 0xFFFFFFFF), (0, 0)])
def test_frame_rate_that_can_be_none_is_taken_to_be_25_a_second(scale: int, rate: int) -> None:
    clip = prepare_clip(with_rate(scale, rate), CONTRACT, name="x")
    assert (clip.num_frames, clip.fps) == (6, 25.0)
    assert clip.notes == ((Note.NO_RATE,) if scale > rate else ())  # FFmpeg takes 25 itself where that is plain


def test_slow_and_odd_frame_rates_are_kept() -> None:
    assert prepare_clip(with_rate(10, 1), CONTRACT, name="x").fps == pytest.approx(0.1)
    assert prepare_clip(with_rate(1001, 30000), CONTRACT, name="x").fps == pytest.approx(29.97, abs=0.001)


# -- an edit list that is lost


def flipped(file: bytes, position: int, bit: int) -> bytes:
    return file[:position] + bytes([file[position] ^ bit]) + file[position + 1 :]


@pytest.mark.parametrize("container", ["mp4", "mov"])
@pytest.mark.parametrize("lost", ["elst", "edts", "count"])
def test_pictures_that_an_edit_list_hid_are_not_shown_when_the_list_is_lost(container: str, lost: str) -> None:
    coded = taken_apart(encoded("libx264", pictures(30), container="mp4", x264_params="keyint=10:bframes=0"))
    step = coded.packets[1].pts - coded.packets[0].pts
    packets = [replace(packet, pts=packet.pts - 5 * step, dts=packet.dts - 5 * step) for packet in coded.packets]
    file = put_together(coded, packets, container=container)
    assert count(file) == 25
    position = file.index(b"elst") + 11 if lost == "count" else file.index(lost.encode())
    with pytest.raises(DecodeError, match=r"shown for 1\.000 s is announced, it has 1\.200 s and no list"):
        decoded(flipped(file, position, 1))


# -- other files and addresses


LEADS_ELSEWHERE: dict[str, Callable[[Path], str]] = {
    "ffconcat": lambda path: f"ffconcat version 1.0\nfile '{path}'\n",
    "ffconcat of a file URI": lambda path: f"ffconcat version 1.0\nfile file:{path}\n",
    "playlist": lambda path: f"#EXTM3U\n#EXT-X-TARGETDURATION:1\n#EXTINF:1,\n{path}\n#EXT-X-ENDLIST\n",
    "session": lambda _: (
        "v=0\no=- 0 0 IN IP4 127.0.0.1\ns=x\nc=IN IP4 127.0.0.1\nt=0 0\nm=video 5004 RTP/AVP 96\n"
        "a=rtpmap:96 H264/90000\n"
    ),
}


@pytest.mark.parametrize("kind", LEADS_ELSEWHERE)
def test_video_that_names_other_places_is_none(tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "secret.mkv").write_bytes(encoded("libx264", pictures(4)))
    monkeypatch.chdir(tmp_path)
    for path in (Path("secret.mkv"), tmp_path / "secret.mkv"):
        with pytest.raises(DecodeError, match=r"not a readable video, \d+ bytes"):
            decoded(LEADS_ELSEWHERE[kind](path).encode())


@pytest.mark.timeout(20)
def test_files_that_never_end_are_no_videos(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    (tmp_path / "zeros").symlink_to("/dev/zero")
    for name in ("fifo", "zeros", "."):
        with pytest.raises(DecodeError, match="expected a regular file, found a"):
            FrameStream(tmp_path / name)
    with (tmp_path / "sparse").open("wb") as file:
        file.truncate(1 << 42)
    with pytest.raises(DecodeError, match="not a readable video, 4398046511104 bytes"):
        FrameStream(tmp_path / "sparse")


def test_frame_larger_than_may_be_is_refused_wherever_it_comes() -> None:
    coded = taken_apart(encoded("libvpx", pictures(8), container="webm", g="4"))
    later = [position for position, packet in enumerate(coded.packets) if packet.is_key][1]
    content = bytearray(coded.packets[later].content)
    content[6:10] = (16000).to_bytes(2, "little") * 2
    packets = [
        *coded.packets[:later],
        replace(coded.packets[later], content=bytes(content)),
        *coded.packets[later + 1 :],
    ]
    with pytest.raises(DecodeError, match="decoding failed after 4 of 8"):
        decoded(put_together(coded, packets, container="webm"))
