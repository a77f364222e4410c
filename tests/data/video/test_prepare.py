import pytest
from moving_square import moving_square

from twostream_ray.data.flow import FlowContract
from twostream_ray.data.video.prepare import prepare_clip
from twostream_ray.errors import EmptyClipError

CONTRACT = FlowContract(short_side_px=64)


def test_a_raw_video_becomes_frames_and_one_field_less() -> None:
    clip = prepare_clip(moving_square(24), CONTRACT, name="square")
    assert clip.flow is not None
    assert (clip.num_frames, clip.height, clip.width, clip.fps) == (24, 64, 80, 25.0)
    assert len(clip.flow) == 23


def test_one_frame_is_too_few() -> None:
    with pytest.raises(EmptyClipError, match="still: a clip needs at least 2 frames, got 1"):
        prepare_clip(moving_square(1), CONTRACT, name="still")
