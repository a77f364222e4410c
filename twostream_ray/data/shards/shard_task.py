"""The task of ingest: the clips of one shard from their sources to rows, in a process and its decoding child."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from twostream_ray.data.flow import FlowContract
from twostream_ray.data.shards.writer import ShardPlan, ShardWriter
from twostream_ray.data.sources.open_source import open_source, source_sha256
from twostream_ray.data.video.isolation import prepare_in_subprocess
from twostream_ray.errors import AccessError, VideoError


def task_memory(max_frames: int) -> int:
    """Bytes that a task and its decoding child take at most, declared to Ray.

    Seen on clips of 342 x 256 px: 200 MB and 100 MB at rest; for each byte of the longest clip, encoded to about 8 kB a
    frame, one in the child and four in the task. A limit set high to mean none must leave tasks that find a node.
    """
    return min(384 * 2**20 + 5 * 8192 * max_frames, 4 * 2**30)


def write_shard(
    plan: ShardPlan, *, out: str, contract: FlowContract, max_frames: int, count: Callable[[bool], Any]
) -> dict[str, Any]:
    """Read, decode, compute flow, re-encode, prove seeking, store: every clip of one shard; returns its record.

    A bad video is quarantined; nothing takes its place.
    """
    writer = ShardWriter(plan, out=out, contract=contract, max_frames=max_frames)
    for clip in plan.clips:
        sha256 = ""
        try:
            with open_source(clip) as source:
                sha256 = source_sha256(source)
                encoded = prepare_in_subprocess(source, contract, name=clip.clip_id, max_frames=max_frames, prove=True)
        except (VideoError, AccessError) as error:
            writer.quarantine(clip, reason=f"{type(error).__name__}: {error}", sha256=sha256)
            count(True)
        else:
            writer.add(clip, encoded, source_sha256=sha256)
            count(False)
    return writer.finish()
