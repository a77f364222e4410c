import cv2
import numpy as np
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from twostream_ray.data.loading.integer_resize import resized, sampling_tables
from twostream_ray.data.transforms import Crop, apply_crop


@st.composite
def crops(draw: st.DrawFn) -> tuple[tuple[int, int], Crop, int]:
    """A picture's size, a rectangle of it, and the size to be resized to: from 1 px, smaller and larger."""
    height, width = draw(st.integers(1, 90)), draw(st.integers(1, 90))
    top, left = draw(st.integers(0, height - 1)), draw(st.integers(0, width - 1))
    crop = Crop(
        top=top,
        left=left,
        height=draw(st.integers(1, height - top)),
        width=draw(st.integers(1, width - left)),
        mirrored=draw(st.booleans()),
    )
    return (height, width), crop, draw(st.integers(1, 70))


@given(drawn=crops(), seed=st.integers(0, 2**32 - 1))
@settings(max_examples=300, deadline=None)
def test_every_pixel_is_opencvs(drawn: tuple[tuple[int, int], Crop, int], seed: int) -> None:
    shape, crop, size = drawn
    planes = np.random.default_rng(seed).integers(0, 256, (2, *shape), np.uint8)
    tables = torch.from_numpy(sampling_tables([crop], size_px=size))
    found = resized(torch.from_numpy(planes)[None], tables)[0].numpy()
    np.testing.assert_array_equal(found, [apply_crop(plane, crop, size=(size, size)) for plane in planes])


def test_every_pixel_is_opencvs_at_the_sizes_of_the_papers() -> None:
    rng = np.random.default_rng(1)
    for _ in range(12):
        planes = rng.integers(0, 256, (1, 256, 342), np.uint8)
        height, width = (int(side) for side in rng.integers(168, [257, 281]))
        top, left = int(rng.integers(0, 257 - height)), int(rng.integers(0, 343 - width))
        crop = Crop(top=top, left=left, height=height, width=width, mirrored=False)
        found = resized(torch.from_numpy(planes)[None], torch.from_numpy(sampling_tables([crop], size_px=224)))
        np.testing.assert_array_equal(found[0, 0].numpy(), apply_crop(planes[0], crop, size=(224, 224)))


def test_opencv_makes_the_same_of_a_picture_with_and_without_its_code_for_this_processor() -> None:
    picture = np.random.default_rng(2).integers(0, 256, (240, 250), np.uint8)
    optimised = cv2.useOptimized()
    try:
        made = []
        for use in (True, False):
            cv2.setUseOptimized(use)
            made.append(cv2.resize(picture, (224, 224), interpolation=cv2.INTER_LINEAR))
    finally:
        cv2.setUseOptimized(optimised)
    np.testing.assert_array_equal(*made)


def test_many_planes_are_resized_as_few_are() -> None:
    planes = torch.randint(0, 256, (700, 2, 9, 11), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    crops = [Crop(top=n % 3, left=n % 4, height=5, width=6, mirrored=n % 2 == 0) for n in range(700)]
    tables = torch.from_numpy(sampling_tables(crops, size_px=8))
    whole = resized(planes, tables)
    for number in (0, 255, 256, 699):
        torch.testing.assert_close(whole[number], resized(planes[number : number + 1], tables[number : number + 1])[0])
