"""Shards written one after the other in this process, without Ray."""

from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

from twostream_ray.data.flow import FlowContract
from twostream_ray.data.shards import shard_task
from twostream_ray.data.shards.shards import ShardSet, open_shards
from twostream_ray.data.shards.writer import ShardPlan, plan_shards, write_manifest
from twostream_ray.data.sources.catalog import CatalogConfig
from twostream_ray.runs.ingest import catalog_of
from twostream_ray.runs.settings import IngestConfig


def write_shard(plan: ShardPlan, *, out: str, contract: FlowContract, max_frames: int) -> dict[str, Any]:
    """Prepare a shard's clips in their order and write it; returns its record."""
    prepared = (shard_task.prepare_for_shard(clip, contract=contract, max_frames=max_frames) for clip in plan.clips)
    return shard_task.write_shard(plan, prepared, out=out, contract=contract, max_frames=max_frames)


def write_shards(videos: Path, out: Path, *, short_side_px: int, rows_per_shard: int = 32, copies: int = 1) -> ShardSet:
    """A folder of videos as `ingest` would have it, flow of `short_side_px`; training clips under `copies` names."""
    contract = FlowContract(short_side_px=short_side_px)
    catalog = catalog_of(IngestConfig(catalog=CatalogConfig(root=str(videos)), out=str(out)))
    training = [clip for clip in catalog.clips if "train" in clip.splits]
    more = [replace(clip, clip_id=f"{copy}/{clip.clip_id}") for copy in range(1, copies) for clip in training]
    clips = [*catalog.clips, *more]
    plans = plan_shards(clips, contract=contract, rows_per_shard=rows_per_shard)
    by_uri = {clip.uri: clip for clip in clips}

    @cache
    def prepared(uri: str) -> shard_task.PreparedClip:
        return shard_task.prepare_for_shard(by_uri[uri], contract=contract, max_frames=1000)

    parts = [
        shard_task.write_shard(
            plan, (prepared(clip.uri) for clip in plan.clips), out=str(out), contract=contract, max_frames=1000
        )
        for plan in plans
    ]
    write_manifest(str(out), parts=parts, classes=catalog.classes, contract=contract)
    return open_shards(str(out))
