"""Ray tasks of ingest: one prepares a clip, one writes a shard as soon as its clips are prepared.

Work is scheduled clip by clip, so that few shards keep every core busy, and many do so to the end. The plan decides
which clips make up a shard, so its bytes do not depend on the schedule. Prepared clips wait in Ray's object store, and
no more shards are started than needed to keep every core busy.
"""

from __future__ import annotations

import json
import math
import time
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any

from twostream_ray.data.flow import FlowContract
from twostream_ray.data.shards.shard_task import PreparedClip, prepare_for_shard, task_memory, write_shard
from twostream_ray.data.shards.writer import ShardPlan
from twostream_ray.data.sources.catalog import Clip
from twostream_ray.runs.cluster.resources import require_room

_CLIPS_PER_CORE = 2
"""One clip is being prepared, the next one is queued."""
_HELD_CLIPS_PER_CORE = 8
"""Prepared clips per core that may wait for other clips of their shards, besides those of two shards."""
_LOOK_EVERY_S = 1.0


class Schedule:
    """Scheduler of clips: shard after shard in the order of their plans, with a bounded number of started shards."""

    def __init__(self, sizes: Sequence[int]) -> None:
        """`sizes` has the number of clips of each shard, in the order in which they are to be started."""
        self._largest = max(sizes)
        self._waiting = deque((shard, clip) for shard, size in enumerate(sizes) for clip in range(size))
        self._missing = dict(enumerate(sizes))
        self._begun: set[int] = set()
        self._at_work = 0
        self.done = 0
        """Number of prepared clips."""

    def next_clip(self, *, cores: int) -> tuple[int, int] | None:
        """(shard, clip) to start now on one of `cores`; None while enough are running, or when all are started."""
        if not self._waiting or self._at_work >= _CLIPS_PER_CORE * cores:
            return None
        shard, clip = self._waiting[0]
        most_begun = 2 + math.ceil(_HELD_CLIPS_PER_CORE * cores / self._largest)
        if shard not in self._begun and len(self._begun) >= most_begun:
            return None
        self._waiting.popleft()
        self._begun.add(shard)
        self._at_work += 1
        return shard, clip

    def note_prepared(self, shard: int) -> bool:
        """Record that a clip is prepared; returns whether it was its shard's last one, so that it can be written."""
        self._at_work -= 1
        self.done += 1
        self._missing[shard] -= 1
        return self._missing[shard] == 0

    def note_written(self, shard: int) -> None:
        """Record that a shard is written, so that its clips need no memory any more."""
        self._begun.remove(shard)


def write_shards(
    plans: Sequence[ShardPlan],
    *,
    out: str,
    contract: FlowContract,
    max_frames: int,
    progress: Callable[[int, int], None],
) -> list[dict[str, Any]]:
    """Prepare all clips on all cores of the Ray cluster and write their shards; returns the shards' records.

    `progress` is called with (videos done, videos bad). When a task fails, or on Ctrl-C, the others are cancelled.

    Raises:
        ClusterError: no node has room for a task.
        StorageError: a source's store fails, or `out` cannot be written.
    """
    import ray

    memory = task_memory(max_frames)
    way_out = "lower max_frames, or choose a larger cluster"
    require_room([{"CPU": 1.0, "memory": float(memory)}], what="a task of ingest", way_out=way_out)
    # A lost worker is not the clip's fault, so its task is retried without limit.
    options: dict[str, Any] = {"num_cpus": 1, "memory": memory, "max_retries": -1}
    prepare = ray.remote(_prepare).options(num_returns=2, **options)
    write = ray.remote(_write).options(**options)
    schedule = Schedule([len(plan.clips) for plan in plans])
    prepared_of: dict[int, list[Any]] = {}  # shard -> references to its started clips, in order
    preparing: dict[Any, int] = {}
    writing: dict[Any, int] = {}
    records: list[dict[str, Any]] = []
    bad, cores, polled_at = 0, 0, -math.inf
    try:
        while len(records) < len(plans):
            if time.monotonic() > polled_at + _LOOK_EVERY_S:
                cores, polled_at = _cores(ray), time.monotonic()
            while (chosen := schedule.next_clip(cores=cores)) is not None:
                shard, clip = chosen
                is_bad, prepared = prepare.remote(plans[shard].clips[clip], contract, max_frames)
                prepared_of.setdefault(shard, []).append(prepared)
                preparing[is_bad] = shard
            for reference in _ended(ray, [*writing, *preparing]):
                if reference in preparing:
                    bad += ray.get(reference)
                    shard = preparing.pop(reference)
                    if schedule.note_prepared(shard):
                        # Inside a tuple, so that the task fetches the clips one at a time and not all at its start.
                        writing[write.remote(plans[shard], tuple(prepared_of[shard]), out, contract, max_frames)] = (
                            shard
                        )
                else:
                    records.append(json.loads(ray.get(reference)))
                    shard = writing.pop(reference)
                    del prepared_of[shard]
                    schedule.note_written(shard)
            progress(schedule.done, bad)
    finally:
        for reference in (*writing, *preparing):
            with suppress(Exception):  # on a dead cluster they are dead
                ray.cancel(reference)
    return records


def _cores(ray: Any) -> int:
    """Cores of the cluster now: nodes may be added and removed."""
    return max(1, int(ray.cluster_resources().get("CPU", 1)))


def _ended(ray: Any, references: list[Any]) -> list[Any]:
    """References of ended tasks; waits for a moment if there is none, as polling all of them is expensive."""
    first, rest = ray.wait(references, timeout=_LOOK_EVERY_S)
    if not first or not rest:
        return list(first)
    more, _ = ray.wait(rest, num_returns=len(rest), timeout=0)
    return [*first, *more]


def _prepare(clip: Clip, contract: FlowContract, max_frames: int) -> tuple[bool, PreparedClip]:
    prepared = prepare_for_shard(clip, contract=contract, max_frames=max_frames)
    return prepared.encoded is None, prepared


def _write(plan: ShardPlan, clips: tuple[Any, ...], out: str, contract: FlowContract, max_frames: int) -> str:
    import ray

    prepared = (ray.get(reference) for reference in clips)
    return json.dumps(write_shard(plan, prepared, out=out, contract=contract, max_frames=max_frames))
