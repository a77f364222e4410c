"""Tasks of ingest: prepare one clip (decode, compute flow, encode, in a sandboxed process); write prepared clips."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from twostream_ray.data.encoded_clip import EncodedClip
from twostream_ray.data.flow import FlowContract
from twostream_ray.data.shards.writer import ShardPlan, ShardWriter
from twostream_ray.data.sources.catalog import Clip
from twostream_ray.data.sources.open_source import open_source, source_sha256
from twostream_ray.data.video.isolation import prepare_in_subprocess
from twostream_ray.errors import AccessError, VideoError


@dataclass(frozen=True, kw_only=True, slots=True)
class PreparedClip:
    """A clip ready to be written to its shard, or the reason to quarantine it."""

    encoded: EncodedClip | None
    """Both streams; None for a video that is to be quarantined."""

    reason: str
    """Kind of the error and what it says; "" for a clip that is good."""

    source_sha256: str
    """Of what was read, 64 hexadecimal digits; "" where it could not be."""


def task_memory(max_frames: int) -> int:
    """Peak memory of a task and its decoding child in bytes, reserved with Ray.

    Seen on clips of 342 x 256 px: 200 MB and 100 MB at rest; for each byte of the longest clip, encoded to about 8 kB a
    frame, one in the child and four in the task. A limit set high to mean none must leave tasks that find a node.
    """
    return min(384 * 2**20 + 5 * 8192 * max_frames, 4 * 2**30)


def prepare_for_shard(clip: Clip, *, contract: FlowContract, max_frames: int) -> PreparedClip:
    """Read, decode, compute flow, re-encode, prove seeking. A bad video is to be quarantined; nothing takes its place.

    Raises:
        StorageError: a store that holds the source fails or does not answer.
    """
    sha256 = ""
    try:
        with open_source(clip) as source:
            sha256 = source_sha256(source)
            encoded = prepare_in_subprocess(source, contract, name=clip.clip_id, max_frames=max_frames, prove=True)
    except (VideoError, AccessError) as error:
        return PreparedClip(encoded=None, reason=f"{type(error).__name__}: {error}", source_sha256=sha256)
    return PreparedClip(encoded=encoded, reason="", source_sha256=sha256)


def write_shard(
    plan: ShardPlan, prepared: Iterable[PreparedClip], *, out: str, contract: FlowContract, max_frames: int
) -> dict[str, Any]:
    """Write a shard from clips `prepared` in the plan's order, consumed one at a time; returns its record.

    Raises:
        StorageError: `out` cannot be written.
    """
    writer = ShardWriter(plan, out=out, contract=contract, max_frames=max_frames)
    for clip, one in zip(plan.clips, prepared, strict=True):
        if one.encoded is None:
            writer.quarantine(clip, reason=one.reason, sha256=one.source_sha256)
        else:
            writer.add(clip, one.encoded, source_sha256=one.source_sha256)
    return writer.finish()
