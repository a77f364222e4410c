import io
import tempfile
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest

from twostream_ray.data.video.containers import require_whole
from twostream_ray.data.video.raw_video import FrameStream
from twostream_ray.errors import DecodeError


def written(container: str, codec: str, **options: str) -> bytes:
    """A video of noise, 20 frames of 48 x 32 px."""
    with tempfile.NamedTemporaryFile() as file:
        write(file.name, container, codec, options)
        return file.read()


def write(path: str, container: str, codec: str, options: dict[str, str]) -> None:
    with av.open(path, mode="w", format=container, options=options) as output:
        stream = output.add_stream(codec, rate=Fraction(25))
        stream.width, stream.height, stream.pix_fmt = 48, 32, "rgb8" if codec == "gif" else "yuv420p"
        for picture in np.random.default_rng(0).integers(0, 256, (20, 32, 48, 3), dtype=np.uint8):
            output.mux(
                stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24").reformat(format=stream.pix_fmt))
            )
        output.mux(stream.encode(None))


FILES = {
    "avi": written("avi", "mpeg4"),
    "mp4": written("mp4", "mpeg4"),
    "mp4 with its index in front": written("mp4", "mpeg4", movflags="faststart"),
    "fragmented mp4": written("mp4", "mpeg4", movflags="frag_keyframe+empty_moov"),
    "mkv": written("matroska", "mpeg4"),
    "webm": written("webm", "libvpx"),
    "gif": written("gif", "gif"),
}


@pytest.mark.parametrize("kind", FILES)
def test_whole_file_is_whole_also_when_an_archive_padded_it(kind: str) -> None:
    require_whole(io.BytesIO(FILES[kind]), name=kind)
    for padding in (3, 511):
        require_whole(io.BytesIO(FILES[kind] + bytes(padding)), name=kind)


LEFT_BEHIND = {
    "new line": b"\n",
    "new line of Windows": b"\r\n",
    "camera's notes": b"\x0c\x00\x00\x00\x01\x03SEFH" + bytes(range(200)) + b"\x18\0\0\0SEFT",
    "identifier": b"8db42d694ccc418790edff439fe026bf",
    "noise": np.random.default_rng(2).bytes(5000),
}


@pytest.mark.parametrize("left", LEFT_BEHIND)
@pytest.mark.parametrize("kind", FILES)
def test_what_editors_and_cameras_leave_behind_the_end_is_no_damage(kind: str, left: str) -> None:
    content = FILES[kind] + LEFT_BEHIND[left]
    require_whole(io.BytesIO(content), name=kind)
    assert len(list(FrameStream(content))) == 20


@pytest.mark.parametrize(
    "left", [b"TAG".ljust(128, b"\0"), bytes(4096), bytes(70) + b"x"], ids=["ID3", "zeros", "zeros and more"]
)
@pytest.mark.parametrize("kind", FILES)
def test_zeros_behind_the_end_are_no_hole(kind: str, left: bytes) -> None:
    assert len(list(FrameStream(FILES[kind] + left))) == 20


@pytest.mark.parametrize(("container", "codec"), [("avi", "mpeg4"), ("avi", "mjpeg"), ("ivf", "libvpx")])
def test_lengths_that_a_writer_could_not_go_back_to_say_nothing(container: str, codec: str) -> None:
    class Pipe(io.RawIOBase):
        content = b""

        def writable(self) -> bool:
            return True

        def write(self, part: Any) -> int:
            self.content += bytes(part)
            return len(part)

    pipe = Pipe()
    with av.open(pipe, "w", format=container) as output:
        stream = output.add_stream(codec, rate=25)
        stream.width, stream.height = 64, 48
        stream.pix_fmt = "yuvj420p" if codec == "mjpeg" else "yuv420p"
        for level in range(20):
            output.mux(stream.encode(av.VideoFrame.from_ndarray(np.full((48, 64, 3), level * 9, np.uint8))))
        output.mux(stream.encode(None))
    assert b"\xff\xff\xff\xff" in pipe.content
    assert len(list(FrameStream(pipe.content))) == 20


@pytest.mark.real
def test_new_line_behind_the_last_box_is_no_damage(real: Path) -> None:
    content = (real / "bugs/mp4_with_newline_behind_last_box.mp4").read_bytes()
    assert len(list(FrameStream(content))) == 30


@pytest.mark.parametrize("left", ["new line", "new line of Windows"])
def test_new_line_behind_a_recording_of_unknown_length_is_no_damage(left: str) -> None:
    require_whole(io.BytesIO(written("matroska", "mpeg4", live="1") + LEFT_BEHIND[left]), name="live")


def test_hole_in_a_gif_is_found_wherever_it_begins() -> None:
    content = FILES["gif"]
    for offset in np.random.default_rng(3).integers(800, len(content) - 900, 20).tolist():
        holed = content[:offset] + bytes(800) + content[offset + 800 :]
        with pytest.raises(DecodeError, match=r"cut short|damaged"):
            list(FrameStream(holed))


@pytest.mark.parametrize("kind", FILES)
def test_file_that_lost_its_end_is_refused_wherever_it_was_cut(kind: str) -> None:
    content = FILES[kind]
    for lost in [1, 2, 100, *np.random.default_rng(0).integers(3, len(content) - 40, 20).tolist()]:
        if kind == "fragmented mp4" and at_a_box(content, len(content) - lost):
            continue  # every fragment is whole by itself
        with pytest.raises(DecodeError, match=rf"{kind}: the file announces at least \d+ bytes, it has \d+|damaged"):
            require_whole(io.BytesIO(content[:-lost]), name=kind)


def at_a_box(content: bytes, offset: int) -> bool:
    position = 0
    while position < offset:
        position += int.from_bytes(content[position : position + 4], "big")
    return position == offset


def test_matroska_that_was_never_finished_is_no_cut_file() -> None:
    live = written("matroska", "mpeg4", live="1")
    assert b"\x18\x53\x80\x67\x01\xff\xff\xff\xff\xff\xff\xff" in live  # a segment of unknown length
    require_whole(io.BytesIO(live), name="live")


def test_hole_where_a_part_of_a_matroska_file_begins_is_found() -> None:
    content = bytearray(FILES["mkv"])
    blocks = [offset for offset in range(len(content)) if content[offset] == 0xA3]
    found = 0
    for offset in blocks[1:6]:
        holed = content.copy()
        holed[offset : offset + 300] = bytes(300)
        try:
            require_whole(io.BytesIO(holed), name="mkv")
        except DecodeError as error:
            found += "begins at byte" in str(error)
    assert found


@pytest.mark.parametrize("content", [b"", b"RIFF", b"some text", bytes(100), b"\x00\x00\x01\xba" + bytes(50)])
def test_other_files_are_left_to_the_decoder(content: bytes) -> None:
    require_whole(io.BytesIO(content), name="x")


def test_every_real_file_is_as_long_as_it_says(real: Path) -> None:
    paths = [
        path for folder in ("ucf101", "hmdb51", "kinetics_like", "codecs") for path in (real / folder).rglob("*.*")
    ]
    assert len(paths) == 59
    for path in paths:
        with path.open("rb") as file:
            require_whole(file, name=path.name)
