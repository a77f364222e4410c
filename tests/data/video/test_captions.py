from fractions import Fraction
from pathlib import Path

import av
import cv2
import numpy as np
import pytest

from twostream_ray.data.video.captions import MARK, Caption
from twostream_ray.data.video.isolation import caption_in_subprocess
from twostream_ray.data.video.raw_video import FrameStream
from twostream_ray.errors import DecodeError

CAPTIONS = [
    Caption(start_seconds=start, end_seconds=start + 2, top=((name, 0.75), ("Fußball, très long " * 9, 0.2)))
    for start, name in ((0.0, "run"), (1.0, "walk"), (2.0, "run"))
]


def grey_video(path: Path, *, height: int, width: int, aspect: Fraction = Fraction(1)) -> Path:
    with av.open(str(path), mode="w") as file:
        stream = file.add_stream("libx264", rate=Fraction(30000, 1001))
        stream.height, stream.width, stream.pix_fmt = height, width, "yuv420p"
        stream.codec_context.sample_aspect_ratio = aspect
        for _ in range(120):
            frame = np.full((height, width, 3), 200, np.uint8)
            file.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        file.mux(stream.encode(None))
    return path


@pytest.mark.slow
@pytest.mark.parametrize(("height", "width"), [(240, 320), (1080, 1920), (64, 48), (320, 180)])
def test_classes_are_drawn_below_and_the_picture_above_stays_what_it_was(
    tmp_path: Path, height: int, width: int
) -> None:
    source, target = grey_video(tmp_path / "grey.mp4", height=height, width=width), tmp_path / "drawn.mp4"
    assert caption_in_subprocess(source, target, CAPTIONS, name="grey") == 120
    stream = FrameStream(target)
    frames = list(stream)
    assert (len(frames), stream.fps) == (120, Fraction(30000, 1001))
    frame = frames[45]
    assert frame.shape == (height, width, 3)
    assert np.abs(frame[: height // 3].astype(int) - 200).max() < 12
    assert frame[-height // 4 :].std() > 30, "bars, letters and the strip"
    first, middle, last = (frame[-2, int(width * share)].astype(int) for share in (0.1, 0.5, 0.9))
    assert np.abs(first - last).max() < 40 < np.abs(first - middle).max(), "the strip has a colour for each class"


def test_the_cursor_moves_along_the_strip(tmp_path: Path) -> None:
    source, target = grey_video(tmp_path / "grey.mp4", height=240, width=320), tmp_path / "drawn.mp4"
    caption_in_subprocess(source, target, CAPTIONS, name="grey")
    frames = list(FrameStream(target))
    where = [int(cv2.cvtColor(frames[at], cv2.COLOR_RGB2GRAY)[-3].argmax()) for at in (15, 60, 105)]
    assert where == pytest.approx([40, 160, 280], abs=3)


def test_pixels_become_square_and_the_file_says_who_made_it(tmp_path: Path) -> None:
    source = grey_video(tmp_path / "wide.mp4", height=96, width=72, aspect=Fraction(2))
    target = tmp_path / "drawn.mp4"
    caption_in_subprocess(source, target, CAPTIONS, name="wide")
    with av.open(str(target)) as file:
        assert file.metadata["comment"] == MARK
        assert (file.streams.video[0].height, file.streams.video[0].width) == (96, 144)


def test_a_damaged_video_is_refused(tmp_path: Path) -> None:
    (tmp_path / "bad.mp4").write_bytes(b"no video")
    with pytest.raises(DecodeError, match="bad: "):
        caption_in_subprocess(tmp_path / "bad.mp4", tmp_path / "drawn.mp4", CAPTIONS, name="bad")
