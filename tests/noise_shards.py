"""Shards of noise, for tests that ask which clip comes when and not what it shows."""

from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path

import numpy as np
import torch

from twostream_ray.data.encoded_clip import EncodedClip
from twostream_ray.data.flow import FlowContract, encode_field
from twostream_ray.data.sampling import SamplingConfig
from twostream_ray.data.shards.shards import ShardSet, open_shards
from twostream_ray.data.shards.writer import ShardWriter, plan_shards, write_manifest
from twostream_ray.data.sources.catalog import Clip
from twostream_ray.data.transforms import TransformConfig
from twostream_ray.data.video.clips import ClipWriter
from twostream_ray.model_package import ModelPackage, save_model
from twostream_ray.models.settings import ModelConfig, TowerConfig


def noise_shards(
    out: str, *, rows: Sequence[int], num_fields: int, video: bool = False, splits: Sequence[str] = ("train",)
) -> ShardSet:
    """Training clips of one class with `num_fields` fields of noise of 16 px, as many to a shard as `rows` says.

    Their videos are empty, or with `video` noise of 16 px too.
    """
    contract, rng = FlowContract(short_side_px=16), np.random.default_rng(0)
    clips = [
        Clip(uri=f"{n}.mp4", clip_id=f"{n}.mp4", class_name="c", label=0, splits=tuple(splits), size_bytes=n)
        for n in range(sum(rows))
    ]
    parts = []
    for end, length in zip(np.cumsum(rows), rows, strict=True):
        (plan,) = plan_shards(clips[end - length : end], contract=contract, rows_per_shard=length)
        writer = ShardWriter(plan, out=out, contract=contract)
        for clip in plan.clips:
            noise = rng.normal(size=(num_fields, 16, 16, 2)).astype(np.float32)
            fields = [encode_field(field, contract) for field in noise]
            content = _encoded_video(rng, num_fields + 1) if video else b""
            encoded = EncodedClip(video=content, flow=fields, num_frames=num_fields + 1, height=16, width=16, fps=25.0)
            writer.add(clip, encoded, source_sha256="")
        parts.append(writer.finish())
    write_manifest(out, parts=parts, classes=["c"], contract=contract)
    return open_shards(out)


def noise_model(folder: Path, shard_set: ShardSet, *, seed: int = 0) -> Path:
    """An untrained late network of both streams for these shards, in a folder of its own."""
    tower = TowerConfig(backbone="vgg_small", width=4)
    package = ModelPackage(
        model=ModelConfig(architecture="late", spatial=tower, temporal=tower),
        classes=shard_set.classes,
        contract=shard_set.contract,
        sampling=SamplingConfig(num_snippets=1, test_times=2, flow_length=4),
        transforms=TransformConfig(crop_px=16),
    )
    torch.manual_seed(seed)
    save_model(folder, package.build(pretrained=False), package)
    return folder


def _encoded_video(rng: np.random.Generator, num_frames: int) -> bytes:
    writer = ClipWriter(width=16, height=16, fps=Fraction(25))
    for _ in range(num_frames):
        writer.write(rng.integers(0, 256, (16, 16, 3), dtype=np.uint8))
    return writer.finish()
