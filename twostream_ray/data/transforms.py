"""One draw of crop, scale and flip for both streams, and its application."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from twostream_ray.errors import ConfigError
from twostream_ray.settings.bounds import require_within


@dataclass(frozen=True, kw_only=True)
class TransformConfig:
    """How a training crop is drawn; the same crop, scale and flip serve every frame and field of a sample."""

    crop_px: int = 224
    """Height and width of the network's input in px."""

    short_side_px: int | None = None
    """Resize frames and flow fields alike, so that their shorter side has this many px, before a crop is cut: of frames
    of 256 px stored, a crop of 112 px has a fifth, and with 128 here seven eighths of the height. At least crop_px; by
    default frames are cut as they are stored. Flow keeps its values, which are px of the stored frame per frame, as
    the papers' resized fields do: they are what the flow contract says in training, evaluation and prediction."""

    size_jitter: float = 0.25
    """Height and width of the crop vary independently by up to this fraction, then are resized to crop_px
    (Feichtenhofer et al. 2016: .25); 0 crops exactly crop_px."""

    flip: bool = True
    """Mirror half of the training samples; the x component of flow changes its sign. Off where left and right are
    classes."""

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
    """A crop drawn from the whole frame (Simonyan and Zisserman 2014, sec. 5), its size jittered in both directions."""
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

    A crop of a resized frame is a rectangle of the stored one, scaled: it is cut there and resized once, not twice, by
    whatever decodes it.
    """
    if config.short_side_px is None:
        return config.crop_px
    return config.crop_px * min(height, width) / config.short_side_px


def centre_crop(height: int, width: int, *, config: TransformConfig) -> Crop:
    """The test crop: crop_px in the middle of the (resized) frame, smaller where the frame is."""
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
    """The whole stored frame, and the height and width in px that it is shown in to networks that slide over it.

    As it is stored, or with its shorter side resized to short_side_px; never less than crop_px, which networks were
    made for: a smaller frame is enlarged. Its aspect is kept but for rounding.
    """
    side = max(config.short_side_px or min(height, width), config.crop_px)
    scale = side / min(height, width)
    whole = Crop(top=0, left=0, height=height, width=width, mirrored=False)
    return whole, (max(round(height * scale), side), max(round(width * scale), side))


def apply_crop(
    picture: NDArray[np.uint8], crop: Crop, *, size: tuple[int, int], out: NDArray[np.uint8] | None = None
) -> NDArray[np.uint8]:
    """Cut and resize a picture (H, W) or (H, W, 3) to `size`, height and width in px, mirrored where the crop is.

    Displacements keep their values: like the official code, a resized field is not rescaled. `out`, of the result's
    shape, is written to and given back.
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
