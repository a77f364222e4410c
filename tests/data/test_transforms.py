import numpy as np
import pytest

from twostream_ray.data.transforms import (
    Crop,
    TransformConfig,
    apply_crop,
    centre_crop,
    training_crop,
)
from twostream_ray.errors import ConfigError


def test_training_crops_stay_inside_the_frame_and_reach_all_of_it() -> None:
    config, rng = TransformConfig(crop_px=64, size_jitter=0.25), np.random.default_rng(0)
    crops = [training_crop(96, 128, config=config, rng=rng) for _ in range(500)]
    assert all(crop.top + crop.height <= 96 and crop.left + crop.width <= 128 for crop in crops)
    assert min(crop.height for crop in crops) <= 50 and max(crop.height for crop in crops) >= 78
    assert {crop.mirrored for crop in crops} == {True, False}
    assert min(crop.left for crop in crops) == 0 and max(crop.left + crop.width for crop in crops) == 128


def test_flip_off_never_mirrors() -> None:
    config, rng = TransformConfig(crop_px=64, flip=False), np.random.default_rng(0)
    assert not any(training_crop(96, 96, config=config, rng=rng).mirrored for _ in range(50))


def test_the_test_crop_is_the_middle() -> None:
    crop = centre_crop(256, 340, config=TransformConfig(crop_px=224))
    assert crop == Crop(top=16, left=58, height=224, width=224, mirrored=False)


def test_a_marker_pixel_lands_where_crop_and_mirror_say() -> None:
    frame = np.zeros((40, 60, 3), np.uint8)
    frame[12, 23] = 255
    crop = Crop(top=10, left=20, height=16, width=16, mirrored=False)
    assert np.argwhere(apply_crop(frame, crop, size_px=16)[..., 0]).tolist() == [[2, 3]]
    mirrored = Crop(top=10, left=20, height=16, width=16, mirrored=True)
    assert np.argwhere(apply_crop(frame, mirrored, size_px=16)[..., 0]).tolist() == [[2, 12]]


def test_resizing_gives_the_size_asked_for() -> None:
    crop = Crop(top=0, left=0, height=20, width=30, mirrored=True)
    assert apply_crop(np.zeros((40, 60), np.uint8), crop, size_px=24).shape == (24, 24)


def test_impossible_settings_are_refused_by_name() -> None:
    with pytest.raises(ConfigError, match=r"data.transforms.size_jitter must be in \[0, 1\), got 1"):
        TransformConfig(size_jitter=1.0)
