"""Data augmentation and test crops: one draw of crop, scale jitter and flip, applied to both streams alike."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from twostream_ray.errors import ConfigError
from twostream_ray.settings.bounds import require_within


@dataclass(frozen=True, kw_only=True)
class TransformConfig:
    """How a training crop is drawn; all frames and flow fields of a sample share one crop, scale and flip."""

    crop_px: int = 224
    """Height and width of the network's input in px."""

    short_side_px: int | None = None
    """Resize frames and flow fields so that their shorter side has this many px before cropping; at least crop_px. By
    default crops are cut from the frame as stored. A crop of 112 px covers 44 % of the height of a stored frame of
    256 px, and 88 % with 128 here. Flow values are not rescaled (as in the papers): they stay in px of the stored
    frame, as the flow contract says, in training, evaluation and prediction."""

    size_jitter: float = 0.25
    """Height and width of the crop vary independently by up to this fraction before it is resized to crop_px
    (Feichtenhofer et al. 2016: 0.25); 0 crops exactly crop_px."""

    flip: bool = True
    """Mirror half of the training samples at random; the x component of flow is negated. Switch it off if classes
    differ in left and right."""

    def __post_init__(self) -> None:
        require_within(
            self, "data.transforms.", crop_px="[16, 4_096]", short_side_px="[16, 4_096]", size_jitter="[0, 1)"
        )
        if self.short_side_px is not None and self.short_side_px < self.crop_px:
            raise ConfigError(
                f"data.transforms.short_side_px must be at least data.transforms.crop_px ({self.crop_px}), got "
                f"{self.short_side_px}: a crop is cut from the resized frame"
            )


@dataclass(frozen=True, kw_only=True, slots=True)
class Crop:
    """A rectangle of the stored frame in px, and whether it is mirrored."""

    top: int
    left: int
    height: int
    width: int
    mirrored: bool


def training_crop(height: int, width: int, *, config: TransformConfig, rng: np.random.Generator) -> Crop:
    """A random crop from anywhere in the frame (Simonyan and Zisserman 2014, sec. 5) with jittered height and width.

    Args:
        height: of the stored frame in px.
        width: of the stored frame in px.
        config: crop size, jitter and flip.
        rng: generator of the draw.
    """
    factors = 1 + config.size_jitter * rng.uniform(-1, 1, size=2)
    side = _crop_side(height, width, config=config)
    crop_height = min(max(round(side * factors[0]), 1), height)
    crop_width = min(max(round(side * factors[1]), 1), width)
    return Crop(
        top=int(rng.integers(0, height - crop_height, endpoint=True)),
        left=int(rng.integers(0, width - crop_width, endpoint=True)),
        height=crop_height,
        width=crop_width,
        mirrored=bool(rng.random() < 0.5) and config.flip,
    )


def _crop_side(height: int, width: int, *, config: TransformConfig) -> float:
    """Side of a crop in px of the stored frame.

    A crop of the resized frame corresponds to a scaled rectangle of the stored one: it is cut from the stored frame, so
    that pixels are resampled once, not twice.
    """
    if config.short_side_px is None:
        return config.crop_px
    return config.crop_px * min(height, width) / config.short_side_px


def centre_crop(height: int, width: int, *, config: TransformConfig) -> Crop:
    """The centre crop for testing: crop_px of the (resized) frame, or less if the frame is smaller."""
    side = max(round(_crop_side(height, width, config=config)), 1)
    crop_height, crop_width = min(side, height), min(side, width)
    return Crop(
        top=(height - crop_height) // 2,
        left=(width - crop_width) // 2,
        height=crop_height,
        width=crop_width,
        mirrored=False,
    )


def corner_crops(height: int, width: int, *, config: TransformConfig) -> list[Crop]:
    """The four corners, as large as the centre crop: top left, top right, bottom left, bottom right."""
    centre = centre_crop(height, width, config=config)
    tops, lefts = (0, height - centre.height), (0, width - centre.width)
    return [replace(centre, top=top, left=left) for top in tops for left in lefts]


def full_frame(height: int, width: int, *, config: TransformConfig) -> tuple[Crop, tuple[int, int]]:
    """The full stored frame as a crop, and its (height, width) in px for fully convolutional testing.

    The size is the stored one, or that with the shorter side resized to short_side_px; the shorter side is at least
    crop_px, the size that networks are built for. The aspect ratio is kept except for rounding.
    """
    side = max(config.short_side_px or min(height, width), config.crop_px)
    scale = side / min(height, width)
    frame = Crop(top=0, left=0, height=height, width=width, mirrored=False)
    return frame, (max(round(height * scale), side), max(round(width * scale), side))


def apply_crop(
    picture: NDArray[np.uint8], crop: Crop, *, size: tuple[int, int], out: NDArray[np.uint8] | None = None
) -> NDArray[np.uint8]:
    """Crop a uint8 image (H, W) or (H, W, 3), resize it bilinearly to `size` (height, width in px), mirror it if asked.

    Flow displacements are not rescaled when a field is resized, as in the official code. The result is written to
    `out`, if given, and returned.
    """
    import cv2

    if out is None:
        out = np.empty((*size, *picture.shape[2:]), np.uint8)
    part = picture[crop.top : crop.top + crop.height, crop.left : crop.left + crop.width]
    if (crop.height, crop.width) == size:
        out[...] = part
    else:
        cv2.resize(part, size[::-1], dst=out, interpolation=cv2.INTER_LINEAR)
    if crop.mirrored:
        cv2.flip(out, 1, dst=out)
    return out
