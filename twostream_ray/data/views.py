"""Views of a clip: random ones for training, multi-crop testing by an evaluation protocol of the papers.

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
    """Snippet times and crop of one sample; every frame and flow field shares the crop."""

    times: NDArray[np.int64]
    """Snippet times in frames, shape (T,)."""

    crop: Crop
    """Rectangle of the stored frame."""

    size: tuple[int, int]
    """Height and width in px that the crop is resized to."""


class ViewKey(NamedTuple):
    """Identifies a view within its protocol."""

    time: int
    """Index of the sample among the clip's test times."""
    crop: CropName
    """Name of the crop."""
    mirrored: bool
    """Whether the crop is mirrored."""


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
    """The random view of a clip in a training epoch: a function of (seed, epoch, clip id) and the clip's shape alone.

    Args:
        num_frames: frames of the clip.
        height: of the stored frame in px.
        width: of the stored frame in px.
        sampling_config: how snippet times are drawn.
        transform_config: how the crop is drawn.
        seed: of the run.
        epoch: number of the epoch.
        clip_id: id of the clip.

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
    """The views that validation averages over: evenly spaced times, centre crop.

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
        View(times=sample_times, crop=replace(crop, mirrored=mirrored), size=size)
        for sample_times in times
        for crop in crops.values()
        for mirrored in _mirrors(protocol)
    ]


def view_keys(protocol: Protocol, *, sampling_config: SamplingConfig) -> list[ViewKey]:
    """Keys of a protocol's views, the same for every clip: ordered by time, then crop, then plain before mirrored."""
    # The names of crops do not depend on the frame size.
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
    """The unmirrored crops of a protocol by name, in order."""
    if protocol.crops == "full":
        return {"full": transforms.full_frame(height, width, config=config)[0]}
    centre = transforms.centre_crop(height, width, config=config)
    if protocol.crops == "centre":
        return {"centre": centre}
    names: tuple[CropName, ...] = ("top_left", "top_right", "bottom_left", "bottom_right")
    return {**dict(zip(names, transforms.corner_crops(height, width, config=config), strict=True)), "centre": centre}


def _mirrors(protocol: Protocol) -> tuple[bool, ...]:
    return (False, True) if protocol.mirrored else (False,)
