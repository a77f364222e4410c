"""Batches of clips of noise whose flow is still encoded."""

from functools import cache

import numpy as np

from twostream_ray.data.encoded_clip import EncodedClip
from twostream_ray.data.flow import FlowContract, encode_field
from twostream_ray.data.loading.decode_cpu import decode_flow
from twostream_ray.data.sampling import SamplingConfig, training_times
from twostream_ray.data.snippets import EncodedFlow
from twostream_ray.data.transforms import TransformConfig, training_crop
from twostream_ray.data.views import View


@cache
def clip_of(num_frames: int, height: int, width: int, contract: FlowContract) -> EncodedClip:
    """Noise, coarse and fine, beyond the bound too."""
    rng = np.random.default_rng([num_frames, height, width])
    fields = rng.normal(scale=rng.uniform(1, 15), size=(num_frames - 1, height, width, 2)).astype(np.float32)
    return EncodedClip(
        video=None,
        flow=[encode_field(field, contract) for field in fields],
        num_frames=num_frames,
        height=height,
        width=width,
        fps=25.0,
    )


def batch_of(*clips: EncodedClip, views: int = 1) -> EncodedFlow:
    config = SamplingConfig(num_snippets=2, min_stride_frames=2, max_stride_frames=2, flow_length=4)
    transforms, rng = TransformConfig(crop_px=24), np.random.default_rng(0)
    drawn = [
        tuple(
            View(
                times=training_times(clip.num_frames, config=config, rng=rng),
                crop=training_crop(clip.height, clip.width, config=transforms, rng=rng),
                size=(24, 24),
            )
            for _ in range(views)
        )
        for clip in clips
    ]
    return EncodedFlow(
        clips=tuple(zip(clips, drawn, strict=True)),
        size_px=24,
        config=config,
        contract=FlowContract(short_side_px=32),
        name=lambda number: f"shards/0003.parquet, row {17 + number}, clip {number}.avi",
    )


def noise(*shape: int) -> EncodedClip:
    return clip_of(*(shape or (9, 32, 44)), FlowContract(short_side_px=32))


def decoded_by_cpu(batch: EncodedFlow) -> np.ndarray:
    return np.stack(
        [
            decode_flow(clip, view, config=batch.config, contract=batch.contract)
            for clip, views in batch.clips
            for view in views
        ]
    )
