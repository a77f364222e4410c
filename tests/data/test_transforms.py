import cv2
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

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


def test_a_crop_of_a_resized_frame_is_a_larger_rectangle_of_the_stored_one() -> None:
    """112 px of 256 px stored are a fifth of the picture; of frames resized to 128 px, seven eighths of a side."""
    stored, resized = TransformConfig(crop_px=112), TransformConfig(crop_px=112, short_side_px=128)
    assert centre_crop(256, 340, config=stored) == Crop(top=72, left=114, height=112, width=112, mirrored=False)
    assert centre_crop(256, 340, config=resized) == Crop(top=16, left=58, height=224, width=224, mirrored=False)
    assert centre_crop(340, 256, config=resized) == Crop(top=58, left=16, height=224, width=224, mirrored=False)


@given(
    height=st.integers(20, 400), width=st.integers(20, 400), short_side=st.integers(32, 300), seed=st.integers(0, 99)
)
def test_a_crop_is_drawn_alike_from_a_stored_and_from_a_resized_frame(
    height: int, width: int, short_side: int, seed: int
) -> None:
    """The same draw from the frame as it would be after the resize, in px of that, up to whole px."""
    scale = min(height, width) / short_side
    config = TransformConfig(crop_px=32, short_side_px=short_side)
    crop = training_crop(height, width, config=config, rng=np.random.default_rng(seed))
    factors = 1 + 0.25 * np.random.default_rng(seed).uniform(-1, 1, size=2)
    for side, whole, factor in ((crop.height, height, factors[0]), (crop.width, width, factors[1])):
        assert 1 <= side <= whole
        assert side == whole or abs(side / scale - 32 * factor) <= 0.5 / scale + 1e-9 or side == 1
    assert crop.top + crop.height <= height and crop.left + crop.width <= width


@pytest.mark.parametrize("stored", [(64, 86), (96, 80), (200, 300)])
def test_cutting_and_resizing_at_once_shows_what_resizing_before_the_crop_shows(stored: tuple[int, int]) -> None:
    """A smooth picture, for which interpolation once or twice makes no difference beyond a level or two."""
    y, x = np.mgrid[: stored[0], : stored[1]] / min(stored)
    picture = np.round(127 + 60 * np.sin(3 * x) + 60 * np.cos(2 * y)).astype(np.uint8)
    config = TransformConfig(crop_px=40, short_side_px=50)
    once = apply_crop(picture, centre_crop(*stored, config=config), size=(40, 40))
    scale = 50 / min(stored)
    size = round(stored[0] * scale), round(stored[1] * scale)
    before = cv2.resize(picture, size[::-1], interpolation=cv2.INTER_LINEAR)
    twice = apply_crop(before, centre_crop(*size, config=TransformConfig(crop_px=40)), size=(40, 40))
    assert np.abs(once.astype(int) - twice).max() <= 4


def test_the_values_of_a_resized_field_stay_px_of_the_stored_frame() -> None:
    """As the papers' resized fields do, and as jittered crops always did: a field is not rescaled with its size."""
    field = np.full((64, 86), 200, np.uint8)
    crop = centre_crop(64, 86, config=TransformConfig(crop_px=16, short_side_px=20))
    assert (apply_crop(field, crop, size=(16, 16)) == 200).all()


def test_a_crop_larger_than_the_resized_frame_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"short_side_px must be at least data\.transforms\.crop_px \(112\), got 100"):
        TransformConfig(crop_px=112, short_side_px=100)


def test_a_marker_pixel_lands_where_crop_and_mirror_say() -> None:
    frame = np.zeros((40, 60, 3), np.uint8)
    frame[12, 23] = 255
    crop = Crop(top=10, left=20, height=16, width=16, mirrored=False)
    assert np.argwhere(apply_crop(frame, crop, size=(16, 16))[..., 0]).tolist() == [[2, 3]]
    mirrored = Crop(top=10, left=20, height=16, width=16, mirrored=True)
    assert np.argwhere(apply_crop(frame, mirrored, size=(16, 16))[..., 0]).tolist() == [[2, 12]]


def test_resizing_gives_the_size_asked_for() -> None:
    crop = Crop(top=0, left=0, height=20, width=30, mirrored=True)
    assert apply_crop(np.zeros((40, 60), np.uint8), crop, size=(24, 24)).shape == (24, 24)


def test_impossible_settings_are_refused_by_name() -> None:
    with pytest.raises(ConfigError, match=r"data.transforms.size_jitter must be in \[0, 1\), got 1"):
        TransformConfig(size_jitter=1.0)
