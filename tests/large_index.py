"""Opening and planning very many clips: seconds of each part, and the most memory that the process had.

    python tests/large_index.py 100_000_000

Another process writes manifest.json and index.parquet as ingest does: names of 24 letters, shards of 128 clips.
"""

import hashlib
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from twostream_ray.data.flow import FlowContract
from twostream_ray.data.loading.lanes import Pass, plan_lanes, plan_units
from twostream_ray.data.shards.index import INDEX_SCHEMA
from twostream_ray.data.shards.shards import open_shards

LANES, WORLD_SIZE, ID_LETTERS, ROWS, CLASSES, FRAMES = 1024, 64, 24, 128, 1000, 250
_CHUNK = 1 << 20
_HEX = np.frombuffer("".join(f"{value:02x}" for value in range(256)).encode(), "S2")


def write_shard_set(num_clips: int, folder: Path) -> None:
    """A manifest and an index of so many clips, without shards."""
    index = folder / "index.parquet"
    with pq.ParquetWriter(index, INDEX_SCHEMA) as writer:
        for start in range(0, num_clips, _CHUNK):
            writer.write_batch(_rows(np.arange(start, min(start + _CHUNK, num_clips))))
    contract = FlowContract()
    with index.open("rb") as file:
        index_sha256 = hashlib.file_digest(file, "sha256").hexdigest()
    manifest = {
        "format": 2,
        "classes": [f"class {number}" for number in range(CLASSES)],
        "head_classes": [],
        "flow_contract": contract.to_dict(),
        "flow_contract_hash": contract.hash,
        "clips": num_clips,
        "frames": num_clips * FRAMES,
        "quarantined": 0,
        "splits": {"train": num_clips},
        "quarantined_by_split": {},
        "index_sha256": index_sha256,
        "shards": [_shard(number, num_clips) for number in range(-(-num_clips // ROWS))],
    }
    (folder / "manifest.json").write_text(json.dumps(manifest, indent=1, sort_keys=True))


def _rows(numbers: Any) -> pa.RecordBatch:
    train = np.frombuffer(b"train", np.uint8)
    ends = np.arange(len(numbers) + 1, dtype=np.int32)
    mixed = numbers.astype(np.uint64) * np.uint64(0x9E3779B97F4A7C15)  # distinct, and in no order
    letters = np.full((len(numbers), ID_LETTERS), ord("0"), np.uint8)
    letters[:, :16] = _HEX[mixed.view(np.uint8).reshape(-1, 8)].view(np.uint8).reshape(-1, 16)
    return pa.RecordBatch.from_pydict(
        {
            "clip_id": _strings(letters.reshape(-1), ends * ID_LETTERS),
            "label": pa.array(numbers % CLASSES, pa.int32()),
            "splits": pa.ListArray.from_arrays(ends, _strings(np.tile(train, len(numbers)), ends * len(train))),
            "num_frames": pa.array(np.full(len(numbers), FRAMES), pa.int32()),
            "shard": pa.array(numbers // ROWS, pa.int32()),
            "row": pa.array(numbers % ROWS, pa.int32()),
        },
        schema=INDEX_SCHEMA,
    )


def _strings(content: Any, ends: Any) -> pa.Array:
    buffers = [None, pa.py_buffer(np.ascontiguousarray(ends, np.int32)), pa.py_buffer(np.ascontiguousarray(content))]
    return pa.StringArray.from_buffers(len(ends) - 1, *buffers[1:])


def _shard(number: int, num_clips: int) -> dict[str, Any]:
    rows = min(ROWS, num_clips - number * ROWS)
    sha256 = hashlib.sha256(str(number).encode()).hexdigest()
    return {"name": f"{sha256[:16]}-{rows}.parquet", "rows": rows, "bytes": 140_000_000, "sha256": sha256}


def planned(num_clips: int) -> dict[str, float]:
    """Seconds of each part, and the most memory that the process had, in GB (1e9 bytes)."""
    taken: dict[str, float] = {}

    def timed(name: str, work: Callable[[], Any]) -> Any:
        started = time.perf_counter()
        made = work()
        taken[f"{name} s"] = time.perf_counter() - started
        return made

    with tempfile.TemporaryDirectory() as folder:
        subprocess.run([sys.executable, __file__, "write", str(num_clips), folder], check=True)
        taken["files GB"] = sum(path.stat().st_size for path in Path(folder).iterdir()) / 1e9
        shard_set = timed("open", lambda: open_shards(folder))
    taken["index GB"] = shard_set.index.nbytes / 1e9
    a_pass = Pass(split="train", epoch=3, training=True)
    timed("membership", lambda: shard_set.split("train"))
    lanes = timed("lanes", lambda: plan_lanes(shard_set, a_pass, lanes=LANES, seed=0))
    mine = lanes[::WORLD_SIZE]
    units = timed("units", partial(plan_units, shard_set, lanes, pass_index=0, rank=0, world_size=WORLD_SIZE))
    assert sum(map(len, lanes)) == num_clips
    assert sum(len(unit.clips) for unit in units) == sum(map(len, mine))
    names = timed("1,024 names", partial(shard_set.clip_ids, mine[0][:1024]))
    assert len(set(names)) == min(1024, len(mine[0]))
    del lanes, mine, units
    skipped = num_clips // LANES // 2
    rest = timed("resumed", lambda: plan_lanes(shard_set, a_pass, lanes=LANES, seed=0, skipped=skipped))
    assert sum(len(lane) for lane in rest) == num_clips - skipped * LANES
    return taken | {"peak GB": _peak_bytes() / 1e9}


def _peak_bytes() -> int:
    (line,) = (line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM"))
    return int(line.split()[1]) * 1024


if __name__ == "__main__":
    if sys.argv[1] == "write":
        write_shard_set(int(sys.argv[2]), Path(sys.argv[3]))
    else:
        for name, value in planned(int(sys.argv[1])).items():
            print(f"{name:<14}{value:8.2f}")  # noqa: T201
