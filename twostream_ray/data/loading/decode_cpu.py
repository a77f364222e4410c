"""Decoding on the CPU: an encoded clip and a view -> the sample's two streams; imports neither Ray nor Arrow.

The loader, inference and the benchmarks share this code, so a raw video gets the same scores as its row in a shard.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from twostream_ray.data import snippets
from twostream_ray.data.encoded_clip import EncodedClip
from twostream_ray.data.flow import FlowContract
from twostream_ray.data.sampling import SamplingConfig
from twostream_ray.data.video import clips
from twostream_ray.data.views import View
from twostream_ray.errors import DecodeError


def decode_rgb(clip: EncodedClip, view: View, *, out: NDArray[np.uint8] | None = None) -> NDArray[np.uint8]:
    """RGB frames of a view, (T, 3, H, W) uint8, levels 0..255; written into `out`, a slice of a batch, if given.

    Raises:
        DecodeError: the clip has no video, or it is damaged.
    """
    if clip.video is None:
        raise DecodeError("RGB frames requested from a clip that was read without its video column")
    frames = clips.each_frame(clip.video, view.times.tolist(), num_frames=clip.num_frames)
    return snippets.rgb_snippets(frames, view, out=out)


def decode_flow(
    clip: EncodedClip,
    view: View,
    *,
    config: SamplingConfig,
    contract: FlowContract,
    out: NDArray[np.uint8] | None = None,
) -> NDArray[np.uint8]:
    """Flow stacks of a view, (T, 2L, H, W) uint8, quantised; written into `out`, a slice of a batch, if given.

    Raises:
        DecodeError: the clip has no flow, or a field is damaged.
    """
    return snippets.flow_snippets(clip, view, config=config, contract=contract, out=out)


def decode_sample(
    clip: EncodedClip,
    view: View,
    *,
    config: SamplingConfig,
    contract: FlowContract,
    want_rgb: bool = True,
    want_flow: bool = True,
) -> tuple[NDArray[np.uint8] | None, NDArray[np.uint8] | None]:
    """Both streams of a view, (T, 3, H, W) and (T, 2L, H, W) uint8; None if not requested.

    Raises:
        DecodeError: a requested stream is not in the clip, or it is damaged.
    """
    return (
        decode_rgb(clip, view) if want_rgb else None,
        decode_flow(clip, view, config=config, contract=contract) if want_flow else None,
    )


def decode_views(
    clip: EncodedClip,
    views: Sequence[View],
    *,
    config: SamplingConfig,
    contract: FlowContract,
    rgb: NDArray[np.uint8] | None,
    flow: NDArray[np.uint8] | None,
) -> None:
    """Decode all views of a clip into `rgb` (views, T, 3, H, W) and `flow` (views, T, 2L, H, W) uint8; None skips one.

    Raises:
        DecodeError: a requested stream is not in the clip, or it is damaged.
    """
    for number, view in enumerate(views):
        if rgb is not None:
            decode_rgb(clip, view, out=rgb[number])
        if flow is not None:
            decode_flow(clip, view, config=config, contract=contract, out=flow[number])
