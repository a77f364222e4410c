"""Views: the crop and the snippet times of a sample, drawn once for both streams (Simonyan and Zisserman 2014, 5)."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from twostream_ray.data import sampling, transforms
from twostream_ray.data.sampling import SamplingConfig
from twostream_ray.data.transforms import Crop, TransformConfig


@dataclass(frozen=True, kw_only=True, slots=True)
class View:
    """What one sample shows of a clip: the same crop for every frame and field."""

    times: NDArray[np.int64]
    """Snippet times in frames, shape (T,)."""

    crop: Crop
    """Rectangle of the stored frame."""


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
    )


def evaluation_views(
    num_frames: int, height: int, width: int, *, sampling_config: SamplingConfig, transform_config: TransformConfig
) -> list[View]:
    """The views whose scores are averaged at test time: evenly spaced times, centre crop.

    Raises:
        EmptyClipError: the clip has no frame.
    """
    crop = transforms.centre_crop(height, width, config=transform_config)
    return [View(times=times, crop=crop) for times in sampling.evaluation_times(num_frames, config=sampling_config)]
