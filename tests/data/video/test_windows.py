from pathlib import Path

import cv2
import numpy as np
import pytest

from twostream_ray.data.encoded_clip import EncodedClip
from twostream_ray.data.flow import FlowContract
from twostream_ray.data.video.files import write_video
from twostream_ray.data.video.isolation import prepare_in_subprocess, windows_in_subprocess
from twostream_ray.data.video.prepare import Source, prepare_clip
from twostream_ray.data.video.raw_video import FrameStream
from twostream_ray.data.video.windows import prepare_windows
from twostream_ray.errors import DecodeError, EmptyClipError
from twostream_ray.storage.temporary_folders import temporary_folder

CONTRACT = FlowContract(short_side_px=48)


def panned(num_frames: int) -> bytes:
    """A texture that passes by, 64 x 48 px, 25 frames a second."""
    texture = np.random.default_rng(0).integers(0, 255, (72, 64), np.uint8)
    frames = np.stack([np.roll(cv2.GaussianBlur(texture, (9, 9), 0), index, axis=1) for index in range(num_frames)])
    with temporary_folder() as folder:
        path = Path(folder) / "panned.mp4"
        write_video(frames, path=path, container="mp4", fps=25)
        return path.read_bytes()


VIDEO = panned(60)


def cut_out(start: int, stop: int) -> EncodedClip:
    """The clip of these frames alone, cut without loss, as ingest and predict prepare it."""
    frames = list(FrameStream(VIDEO))[start:stop]
    images = [cv2.imencode(".png", cv2.cvtColor(frame, cv2.COLOR_RGB2BGR))[1].tobytes() for frame in frames]
    return prepare_clip(Source(frames=tuple(images)), CONTRACT, name="cut")


@pytest.mark.parametrize(
    ("every", "length", "spans"),
    [
        (1.0, 1.0, [(0, 25), (25, 50), (50, 60)]),
        (0.4, 1.0, [(0, 25), (10, 35), (20, 45), (30, 55), (40, 60)]),
        (1.0, 0.2, [(0, 5), (25, 30), (50, 55)]),
        (0.5, 2.4, [(0, 60)]),
        (9.0, 9.0, [(0, 60)]),
        (0.8, 1.6, [(0, 40), (20, 60)]),
        (0.01, 2.36, [(0, 59), (1, 60)]),
        (2.36, 2.36, [(0, 59)]),
    ],
)
def test_each_window_is_bit_for_bit_the_clip_cut_out_there(
    every: float, length: float, spans: list[tuple[int, int]]
) -> None:
    windows = list(prepare_windows(VIDEO, CONTRACT, every_seconds=every, window_seconds=length, name="square"))
    assert [(start, start + clip.num_frames) for start, clip in windows] == spans
    for (start, clip), span in zip(windows, spans, strict=True):
        assert clip == cut_out(*span), f"from frame {start}"


def test_the_child_gives_the_same_windows_and_then_other_videos(tmp_path: Path) -> None:
    path = tmp_path / "square.mp4"
    path.write_bytes(VIDEO)
    spans = {"every_seconds": 0.4, "window_seconds": 1.0}
    expected = list(prepare_windows(VIDEO, CONTRACT, name="square", **spans))
    assert list(windows_in_subprocess(path, CONTRACT, name="square", **spans)) == expected
    given_up = windows_in_subprocess(path, CONTRACT, name="square", **spans)
    assert next(given_up) == expected[0]
    given_up.close()
    assert prepare_in_subprocess(VIDEO, CONTRACT, name="square") == prepare_clip(VIDEO, CONTRACT, name="square")


def test_a_video_that_breaks_off_gives_its_windows_until_there_and_then_an_error(tmp_path: Path) -> None:
    path = tmp_path / "cut.mp4"
    damaged = bytearray(panned(200))
    damaged[len(damaged) * 2 // 3 : len(damaged) * 2 // 3 + 2000] = b"\xff" * 2000
    path.write_bytes(damaged)
    given: list[int] = []
    with pytest.raises(DecodeError):
        windows = windows_in_subprocess(path, CONTRACT, name="cut", every_seconds=0.5, window_seconds=0.5)
        given.extend(window.start_frame for window in windows)
    assert given[:2] == [0, 12] and len(given) < 16
    assert prepare_in_subprocess(VIDEO, CONTRACT, name="square").num_frames == 60


def test_one_frame_is_no_window(tmp_path: Path) -> None:
    path = tmp_path / "still.mp4"
    path.write_bytes(panned(1))
    with pytest.raises(EmptyClipError, match="still: a clip needs at least 2 frames, got 1"):
        list(windows_in_subprocess(path, CONTRACT, name="still", every_seconds=1, window_seconds=1))
