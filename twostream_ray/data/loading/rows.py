"""Clips on their way from a reading task to a worker, as Arrow tables: encoded, or decoded into samples."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from twostream_ray.data.encoded_clip import EncodedClip
from twostream_ray.data.loading.lanes import Unit
from twostream_ray.data.shards.shards import binary_values

_SCHEMA = pa.schema(
    [
        ("pass_index", pa.int32()),
        ("lane", pa.int32()),
        ("clip", pa.int64()),
        ("clip_id", pa.string()),
        ("num_frames", pa.int32()),
        ("height", pa.int32()),
        ("width", pa.int32()),
        ("fps", pa.float64()),
        ("video", pa.large_binary()),
        ("fields", pa.list_(pa.int32())),
        ("flow", pa.list_(pa.large_binary())),
    ]
)


def encoded_block(unit: Unit, rows: Sequence[tuple[str, EncodedClip]], *, fields: Sequence[Sequence[int]]) -> pa.Table:
    """Rows (clip id, clip) of a unit, with the flow fields of each clip that are named."""
    clips = [clip for _, clip in rows]
    contents = [clip.flow[index] for clip, needed in zip(clips, fields, strict=True) if clip.flow for index in needed]
    flow = pa.ListArray.from_arrays(pa.array(np.cumsum([0, *map(len, fields)]), pa.int32()), _binary(contents))
    values: list[Any] = [
        [unit.pass_index] * len(rows),
        [unit.lane] * len(rows),
        unit.clips,
        [clip_id for clip_id, _ in rows],
        *([getattr(clip, name) for clip in clips] for name in ("num_frames", "height", "width", "fps")),
    ]
    columns = [pa.array(column, field.type) for column, field in zip(values, _SCHEMA, strict=False)]
    video = _binary([clip.video or b"" for clip in clips])
    return pa.Table.from_arrays([*columns, video, pa.array(fields, pa.list_(pa.int32())), flow], schema=_SCHEMA)


def sample_block(row: dict[str, Any], *, rgb: NDArray[np.uint8] | None, flow: NDArray[np.uint8] | None) -> pa.Table:
    """The decoded streams of a row that `rows_of` gave; a stream that is not wanted is None."""
    columns = [
        pa.array([row["pass_index"]], pa.int32()),
        pa.array([row["lane"]], pa.int32()),
        pa.array([row["clip"]], pa.int64()),
        *(_one_value(stream) for stream in (rgb, flow)),
    ]
    return pa.Table.from_arrays(columns, names=["pass_index", "lane", "clip", "rgb", "flow"])


def _binary(values: Sequence[bytes | memoryview]) -> pa.Array:
    """Values as a large_binary array, copied once: Arrow's builder copies whenever it grows, and faults pages anew."""
    return _of_buffer(b"".join(values), np.cumsum([0, *map(len, values)], dtype=np.int64))


def _one_value(stream: NDArray[np.uint8] | None) -> pa.Array:
    """An array's bytes as a column of one row, not copied."""
    if stream is None:
        return pa.nulls(1, pa.large_binary())
    return _of_buffer(stream, np.array([0, stream.nbytes], np.int64))


def _of_buffer(content: bytes | NDArray[np.uint8], ends: NDArray[np.int64]) -> pa.Array:
    buffers = [None, pa.py_buffer(ends), pa.py_buffer(content)]
    return pa.Array.from_buffers(pa.large_binary(), len(ends) - 1, buffers)


def rows_of(block: pa.Table) -> Iterator[dict[str, Any]]:
    """The rows of a block: pass_index, lane, clip, and either `samples` or what decoding needs."""
    if "rgb" in block.column_names:
        for index in range(block.num_rows):
            row: dict[str, Any] = {name: block[name][index].as_py() for name in ("pass_index", "lane", "clip")}
            row["samples"] = [block[name][index].as_buffer() for name in ("rgb", "flow")]
            yield row
        return
    scalars = {name: block[name].to_pylist() for name in _SCHEMA.names if name not in ("video", "flow")}
    for index in range(block.num_rows):
        row = {name: values[index] for name, values in scalars.items()}
        fields = binary_values(block["flow"][index].values)
        row["encoded"] = EncodedClip(
            video=memoryview(block["video"][index].as_buffer()).cast("B") or None,
            flow=dict(zip(row["fields"], fields, strict=True)) or None,
            num_frames=row["num_frames"],
            height=row["height"],
            width=row["width"],
            fps=row["fps"],
        )
        yield row
