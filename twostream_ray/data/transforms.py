"""One draw of crop, scale and flip for both streams, and its application."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from twostream_ray.settings.bounds import require_within


@dataclass(frozen=True, kw_only=True)
class TransformConfig:
    """How a training crop is drawn; the same crop, scale and flip serve every frame and field of a sample."""

    crop_px: int = 224
    """Height and width of the network's input in px."""

    size_jitter: float = 0.25
    """Height and width of the crop vary independently by up to this fraction, then are resized to crop_px
    (Feichtenhofer et al. 2016: .25); 0 crops exactly crop_px."""

    flip: bool = True
    """Mirror half of the training samples; the x component of flow changes its sign. Off where left and right are
    classes."""

    def __post_init__(self) -> None:
        require_within(self, "data.transforms.", crop_px="[16, 4_096]", size_jitter="[0, 1)")


@dataclass(frozen=True, kw_only=True, slots=True)
class Crop:
    """A rectangle of the stored frame in px, and whether it is mirrored."""

    top: int
    left: int
    height: int
    width: int
    mirrored: bool


def training_crop(height: int, width: int, *, config: TransformConfig, rng: np.random.Generator) -> Crop:
    """A crop drawn from the whole frame (Simonyan and Zisserman 2014, sec. 5), its size jittered in both directions."""
    factors = 1 + config.size_jitter * rng.uniform(-1, 1, size=2)
    crop_height = min(round(config.crop_px * factors[0]), height)
    crop_width = min(round(config.crop_px * factors[1]), width)
    return Crop(
        top=int(rng.integers(0, height - crop_height, endpoint=True)),
        left=int(rng.integers(0, width - crop_width, endpoint=True)),
        height=crop_height,
        width=crop_width,
        mirrored=bool(rng.random() < 0.5) and config.flip,
    )


def centre_crop(height: int, width: int, *, config: TransformConfig) -> Crop:
    """The test crop: crop_px in the middle of the frame, smaller where the frame is."""
    crop_height, crop_width = min(config.crop_px, height), min(config.crop_px, width)
    return Crop(
        top=(height - crop_height) // 2,
        left=(width - crop_width) // 2,
        height=crop_height,
        width=crop_width,
        mirrored=False,
    )


def apply_crop(
    picture: NDArray[np.uint8], crop: Crop, *, size_px: int, out: NDArray[np.uint8] | None = None
) -> NDArray[np.uint8]:
    """Cut and resize a picture (H, W) or (H, W, 3) to size_px x size_px, mirrored where the crop is.

    Displacements keep their values: like the official code, a resized field is not rescaled. `out`, of the result's
    shape, is written to and given back.
    """
    import cv2

    if out is None:
        out = np.empty((size_px, size_px, *picture.shape[2:]), np.uint8)
    part = picture[crop.top : crop.top + crop.height, crop.left : crop.left + crop.width]
    if (crop.height, crop.width) == (size_px, size_px):
        out[...] = part
    else:
        cv2.resize(part, (size_px, size_px), dst=out, interpolation=cv2.INTER_LINEAR)
    if crop.mirrored:
        cv2.flip(out, 1, dst=out)
    return out
