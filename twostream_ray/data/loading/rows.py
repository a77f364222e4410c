"""Arrow schema of the blocks that reading tasks stream to their worker: encoded clips, or decoded samples."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from twostream_ray.data.encoded_clip import EncodedClip
from twostream_ray.data.loading.lanes import Unit
from twostream_ray.data.loading.packed_clip import NUMBERS_PER_VIEW, PackedClip, crop_numbers
from twostream_ray.data.shards.shards import binary_values
from twostream_ray.data.views import View

_SCHEMA = pa.schema(
    [
        ("pass_index", pa.int32()),
        ("lane", pa.int32()),
        ("clip", pa.int64()),
        ("num_frames", pa.int32()),
        ("height", pa.int32()),
        ("width", pa.int32()),
        ("fps", pa.float64()),
        ("times", pa.list_(pa.int64())),
        ("crops", pa.list_(pa.int32())),
        ("video", pa.large_binary()),
        ("fields", pa.list_(pa.int32())),
        ("flow", pa.list_(pa.large_binary())),
    ]
)
"""Schema of encoded clips. Packed columns: `times` (views * T), snippet times view by view; `crops` (views * 7), see
`PackedClip.crops`; `fields` and `flow` (F), indices and JPEGs of the flow fields."""

_SHAPE = ("num_frames", "height", "width")


@dataclass(frozen=True, kw_only=True, slots=True)
class Row:
    """A clip received by its worker: encoded with its views, or decoded."""

    pass_index: int
    """Index of the pass in its loader."""
    lane: int
    """Index of the lane."""
    clip: int
    """Position in the shard set's index."""
    packed: PackedClip | None = None
    """The encoded clip, its views and the flow fields that they need; None if it is already decoded."""
    decoded: tuple[memoryview | None, memoryview | None] = (None, None)
    """Bytes of RGB (views, T, 3, H, W) and of flow (views, T, 2L, H, W) uint8."""

    @property
    def encoded(self) -> EncodedClip | None:
        """The encoded clip, parsed on every access; None if it is already decoded."""
        return None if self.packed is None else self.packed.encoded()

    @property
    def views(self) -> tuple[View, ...]:
        """The views of an encoded clip, parsed on every access."""
        return () if self.packed is None else self.packed.views()


def encoded_block(
    unit: Unit,
    clips: Sequence[EncodedClip],
    *,
    views: Sequence[Sequence[View]],
    fields: Sequence[Sequence[int]],
) -> pa.Table:
    """A block of a unit's clips.

    Args:
        unit: where the clips belong.
        clips: the encoded clips.
        views: of each clip.
        fields: indices of the flow fields to include of each clip.
    """
    contents = [clip.flow[index] for clip, needed in zip(clips, fields, strict=True) if clip.flow for index in needed]
    flow = pa.ListArray.from_arrays(pa.array(np.cumsum([0, *map(len, fields)]), pa.int32()), _binary(contents))
    values: list[Any] = [
        [unit.pass_index] * len(clips),
        [unit.lane] * len(clips),
        unit.clips,
        *([getattr(clip, name) for clip in clips] for name in ("num_frames", "height", "width", "fps")),
        [np.concatenate([view.times for view in clip_views]) for clip_views in views],
        [crop_numbers(clip_views) for clip_views in views],
    ]
    columns = [pa.array(column, field.type) for column, field in zip(values, _SCHEMA, strict=False)]
    video = _binary([clip.video or b"" for clip in clips])
    return pa.Table.from_arrays([*columns, video, pa.array(fields, pa.list_(pa.int32())), flow], schema=_SCHEMA)


def decoded_block(row: Row, *, rgb: NDArray[np.uint8] | None, flow: NDArray[np.uint8] | None) -> pa.Table:
    """A block of one row with its decoded streams, (views, T, C, H, W) uint8 or None, zero-copy."""
    columns = [
        pa.array([row.pass_index], pa.int32()),
        pa.array([row.lane], pa.int32()),
        pa.array([row.clip], pa.int64()),
        *(_one_value(stream) for stream in (rgb, flow)),
    ]
    return pa.Table.from_arrays(columns, names=["pass_index", "lane", "clip", "rgb", "flow"])


def _binary(values: Sequence[bytes | memoryview]) -> pa.Array:
    """Values as a large_binary array with a single copy: Arrow's builder copies again whenever it grows."""
    return _of_buffer(b"".join(values), np.cumsum([0, *map(len, values)], dtype=np.int64))


def _one_value(stream: NDArray[np.uint8] | None) -> pa.Array:
    """An array's bytes as a large_binary column of one row, zero-copy."""
    if stream is None:
        return pa.nulls(1, pa.large_binary())
    return _of_buffer(stream, np.array([0, stream.nbytes], np.int64))


def _of_buffer(content: bytes | NDArray[np.uint8], ends: NDArray[np.int64]) -> pa.Array:
    buffers = [None, pa.py_buffer(ends), pa.py_buffer(content)]
    return pa.Array.from_buffers(pa.large_binary(), len(ends) - 1, buffers)


def rows_of(block: pa.Table) -> Iterator[Row]:
    """The rows of a block, zero-copy: they refer to the block's memory."""
    if "rgb" in block.column_names:
        for index in range(block.num_rows):
            position = {name: block[name][index].as_py() for name in ("pass_index", "lane", "clip")}
            rgb, flow = (block[name][index].as_buffer() for name in ("rgb", "flow"))
            yield Row(**position, decoded=(rgb and memoryview(rgb), flow and memoryview(flow)))
        return
    for batch in block.to_batches():
        yield from _packed_rows(batch)


def _packed_rows(batch: pa.RecordBatch) -> Iterator[Row]:
    numbers = {name: batch[name].to_numpy().tolist() for name in ("pass_index", "lane", "clip", *_SHAPE, "fps")}
    times, crops, fields = (_int_lists(batch[name]) for name in ("times", "crops", "fields"))
    videos = binary_values(batch["video"])
    _, ends, content = batch["flow"].values.buffers()
    buffer = memoryview(b"" if content is None else content).cast("B")
    all_ends = np.zeros(1, np.int64) if ends is None else np.frombuffer(ends, np.int64)[batch["flow"].values.offset :]
    row_offsets = batch["flow"].offsets.to_numpy()
    for index in range(batch.num_rows):
        bounds = all_ends[row_offsets[index] : row_offsets[index + 1] + 1]
        yield Row(
            **{name: numbers[name][index] for name in ("pass_index", "lane", "clip")},
            packed=PackedClip(
                **{name: numbers[name][index] for name in (*_SHAPE, "fps")},
                times=times[index],
                crops=crops[index].reshape(-1, NUMBERS_PER_VIEW),
                fields=fields[index],
                ends=bounds - bounds[0],
                video=videos[index],
                flow=buffer[bounds[0] : bounds[-1]],
            ),
        )


def _int_lists(lists: pa.ListArray) -> list[NDArray[np.int64]]:
    """The lists of a list<int> column as int64 arrays."""
    values = lists.values.to_numpy().astype(np.int64)
    ends = lists.offsets.to_numpy().tolist()
    return [values[start:end] for start, end in pairwise(ends)]
