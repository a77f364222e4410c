"""Views: what samples show of a clip, drawn in training, and at test time as an evaluation protocol of the papers says.

A view is one crop and the snippet times of a sample, the same for both streams (Simonyan and Zisserman 2014, sec. 5).
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from twostream_ray.data import sampling, transforms
from twostream_ray.data.protocols import VALIDATION, Protocol
from twostream_ray.data.sampling import SamplingConfig
from twostream_ray.data.transforms import Crop, TransformConfig

CropName = Literal["top_left", "top_right", "bottom_left", "bottom_right", "centre", "full"]


@dataclass(frozen=True, kw_only=True, slots=True)
class View:
    """What one sample shows of a clip: the same crop for every frame and field."""

    times: NDArray[np.int64]
    """Snippet times in frames, shape (T,)."""

    crop: Crop
    """Rectangle of the stored frame."""

    size: tuple[int, int]
    """Height and width in px that the crop is shown in."""


class ViewKey(NamedTuple):
    """Which of a protocol's views one is."""

    time: int
    """Number of the sample among a clip's test times, from 0."""
    crop: CropName
    mirrored: bool


def training_view(
    num_frames: int,
    height: int,
    width: int,
    *,
    sampling_config: SamplingConfig,
    transform_config: TransformConfig,
    seed: int,
    epoch: int,
    clip_id: str,
) -> View:
    """The view a clip is trained on in an epoch: a function of (seed, epoch, clip id) and the clip's shape alone.

    Raises:
        EmptyClipError: the clip has no frame.
    """
    rng = sampling.clip_rng(seed=seed, epoch=epoch, clip_id=clip_id)
    return View(
        times=sampling.training_times(num_frames, config=sampling_config, rng=rng),
        crop=transforms.training_crop(height, width, config=transform_config, rng=rng),
        size=(transform_config.crop_px, transform_config.crop_px),
    )


def evaluation_views(
    num_frames: int, height: int, width: int, *, sampling_config: SamplingConfig, transform_config: TransformConfig
) -> list[View]:
    """The views whose scores are averaged in validation: evenly spaced times, centre crop.

    Raises:
        EmptyClipError: the clip has no frame.
    """
    return protocol_views(
        VALIDATION, num_frames, height, width, sampling_config=sampling_config, transform_config=transform_config
    )


def protocol_views(
    protocol: Protocol,
    num_frames: int,
    height: int,
    width: int,
    *,
    sampling_config: SamplingConfig,
    transform_config: TransformConfig,
) -> list[View]:
    """The views of a clip that a protocol scores, in the order of `view_keys`.

    Args:
        protocol: which views.
        num_frames: frames of the clip.
        height: of the stored frame in px.
        width: of the stored frame in px.
        sampling_config: the model's; the protocol may change test_times and num_snippets.
        transform_config: the model's crop_px and short_side_px.

    Raises:
        EmptyClipError: the clip has no frame.
    """
    config = _sampling_of(protocol, sampling_config)
    times = (sampling.spread_times if protocol.spread else sampling.evaluation_times)(num_frames, config=config)
    crops = _crops(protocol, height, width, config=transform_config)
    size = (transform_config.crop_px, transform_config.crop_px)
    if protocol.crops == "full":
        _, size = transforms.full_frame(height, width, config=transform_config)
    return [
        View(times=of_sample, crop=replace(crop, mirrored=mirrored), size=size)
        for of_sample in times
        for crop in crops.values()
        for mirrored in _mirrors(protocol)
    ]


def view_keys(protocol: Protocol, *, sampling_config: SamplingConfig) -> list[ViewKey]:
    """Which views a protocol scores of every clip, in order: by time, then crop, then plain and mirrored."""
    # The names of crops do not depend on the frame.
    names = _crops(protocol, 1, 1, config=TransformConfig())
    return [
        ViewKey(time, crop, mirrored)
        for time in range(_sampling_of(protocol, sampling_config).test_times)
        for crop in names
        for mirrored in _mirrors(protocol)
    ]


def _sampling_of(protocol: Protocol, config: SamplingConfig) -> SamplingConfig:
    return replace(
        config,
        test_times=protocol.times or config.test_times,
        num_snippets=protocol.snippets or config.num_snippets,
    )


def _crops(protocol: Protocol, height: int, width: int, *, config: TransformConfig) -> dict[CropName, Crop]:
    """The rectangles of a protocol, none mirrored, by name and in order."""
    if protocol.crops == "full":
        return {"full": transforms.full_frame(height, width, config=config)[0]}
    centre = transforms.centre_crop(height, width, config=config)
    if protocol.crops == "centre":
        return {"centre": centre}
    names: tuple[CropName, ...] = ("top_left", "top_right", "bottom_left", "bottom_right")
    return {**dict(zip(names, transforms.corner_crops(height, width, config=config), strict=True)), "centre": centre}


def _mirrors(protocol: Protocol) -> tuple[bool, ...]:
    return (False, True) if protocol.mirrored else (False,)
