from pathlib import Path

import av
import numpy as np
import pytest

from twostream_ray.data.video.files import write_video
from twostream_ray.data.video.raw_video import FrameStream


@pytest.mark.parametrize(("container", "codec"), [("mp4", "h264"), ("avi", "mpeg4")])
def test_frames_come_back_from_the_file_that_was_written(tmp_path: Path, container: str, codec: str) -> None:
    planes = np.full((5, 96, 64), 128, np.uint8)
    planes[:, :64] = np.linspace(40, 200, 5, dtype=np.uint8)[:, None, None]  # luma alone: grey frames
    path = tmp_path / f"clip.{container}"
    write_video(planes, path=path, container=container, fps=25)
    with av.open(str(path)) as file:
        assert file.streams.video[0].codec_context.name == codec
    frames = np.stack(list(FrameStream(path.read_bytes())))
    assert frames.shape == (5, 64, 64, 3)
    expected = (planes[:, 0, 0].astype(float) - 16) * 255 / 219
    assert np.abs(frames.mean(axis=(1, 2, 3)) - expected).max() < 3
    again = tmp_path / f"again.{container}"
    write_video(planes, path=again, container=container, fps=25)
    assert again.read_bytes() == path.read_bytes()
