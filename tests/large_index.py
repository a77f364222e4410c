"""Planning of an epoch over very many clips: seconds and memory of each part, on an index made in memory.

    python tests/large_index.py 100_000_000

The index is as `read_index` gives it: ids of 24 letters, labels, splits, frames, shards of 128 rows.
"""

import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pyarrow as pa

from twostream_ray.data.loading.lanes import Pass, plan_lanes, plan_units
from twostream_ray.data.shards.shards import ShardSet

LANES, WORLD_SIZE, ID_LETTERS = 1024, 64, 24
_CHUNK = 1 << 22


def large_index(num_clips: int) -> pa.Table:
    """An index of so many clips, in chunks as Parquet gives them."""
    train = np.frombuffer(b"train", np.uint8)

    def chunk(start: int) -> pa.RecordBatch:
        numbers = np.arange(start, min(start + _CHUNK, num_clips))
        ids = np.char.zfill(numbers.astype("S24"), ID_LETTERS).view(np.uint8)
        ends = np.arange(len(numbers) + 1, dtype=np.int32)
        columns = {
            "clip_id": _strings(ids, ends * ID_LETTERS),
            "label": pa.array(numbers % 1000, pa.int32()),
            "splits": pa.ListArray.from_arrays(ends, _strings(np.tile(train, len(numbers)), ends * len(train))),
            "num_frames": pa.array(np.full(len(numbers), 250), pa.int32()),
            "shard": pa.array(numbers // 128, pa.int32()),
            "row": pa.array(numbers % 128, pa.int32()),
        }
        return pa.RecordBatch.from_pydict(columns)

    return pa.Table.from_batches([chunk(start) for start in range(0, num_clips, _CHUNK)])


def _strings(content: Any, ends: Any) -> pa.Array:
    buffers = [None, pa.py_buffer(np.ascontiguousarray(ends, np.int32)), pa.py_buffer(np.ascontiguousarray(content))]
    return pa.StringArray.from_buffers(len(ends) - 1, *buffers[1:])


def planned(num_clips: int) -> dict[str, float]:
    """Seconds of each part, and the most memory that the process had, in GB (1e9 bytes)."""
    blank = dict.fromkeys(("uri", "hash", "contract"), "")
    empty = dict.fromkeys(("classes", "head_classes", "shard_names", "shard_sha256", "shard_bytes", "quarantined"), ())
    shard_set = ShardSet(**blank, **empty, index=large_index(num_clips))
    taken = {"index GB": psutil.Process().memory_info().rss / 1e9}

    def timed(name: str, work: Callable[[], Any]) -> Any:
        started = time.perf_counter()
        made = work()
        taken[f"{name} s"] = time.perf_counter() - started
        return made

    a_pass = Pass(split="train", epoch=3, training=True)
    timed("membership", lambda: shard_set.split("train"))
    lanes = timed("lanes", lambda: plan_lanes(shard_set, a_pass, lanes=LANES, seed=0))
    mine = lanes[::WORLD_SIZE]
    units = timed("units", partial(plan_units, shard_set, lanes, pass_index=0, rank=0, world_size=WORLD_SIZE))
    assert sum(map(len, lanes)) == num_clips
    assert sum(len(unit.clips) for unit in units) == sum(map(len, mine))
    del lanes, mine, units
    skipped = num_clips // LANES // 2
    rest = timed("resumed", lambda: plan_lanes(shard_set, a_pass, lanes=LANES, seed=0, skipped=skipped))
    assert sum(len(lane) for lane in rest) == num_clips - skipped * LANES
    return taken | {"peak GB": _peak_bytes() / 1e9}


def _peak_bytes() -> int:
    (line,) = (line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM"))
    return int(line.split()[1]) * 1024


if __name__ == "__main__":
    for name, value in planned(int(sys.argv[1])).items():
        print(f"{name:<14}{value:8.2f}")  # noqa: T201
