"""Shards written one after the other in this process, without Ray."""

from typing import Any

from twostream_ray.data.flow import FlowContract
from twostream_ray.data.shards import shard_task
from twostream_ray.data.shards.writer import ShardPlan


def write_shard(plan: ShardPlan, *, out: str, contract: FlowContract, max_frames: int) -> dict[str, Any]:
    """Prepare a shard's clips in their order and write it; returns its record."""
    prepared = (shard_task.prepare_for_shard(clip, contract=contract, max_frames=max_frames) for clip in plan.clips)
    return shard_task.write_shard(plan, prepared, out=out, contract=contract, max_frames=max_frames)
