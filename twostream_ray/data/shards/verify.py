"""Integrity check of a shard set: every file against its SHA-256, every row against the index and its checksums."""

from __future__ import annotations

import hashlib
from collections.abc import Callable

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from twostream_ray import storage
from twostream_ray.data.shards.shards import ROWS_PER_GROUP, ShardSet, read_clips
from twostream_ray.errors import ShardError, VideoError

CheckVideo = Callable[[str, memoryview, int], None]
"""Called with (clip id, encoded video, number of frames)."""


def verify_shards(
    shard_set: ShardSet,
    *,
    progress: Callable[[int, int], None] | None = None,
    check_video: CheckVideo | None = None,
) -> None:
    """Check every shard against the manifest's SHA-256, and every row against the index and its own checksums.

    `progress` is called with (shards done, shards in all); `check_video` with each clip, once its shard's sha256 was
    found right.

    Raises:
        ShardError: a shard is missing, damaged or another one than manifest and index name, or `check_video` raises a
            VideoError; names shard and row.
    """
    shards, rows = (shard_set.index[name].to_numpy() for name in ("shard", "row"))
    in_order = np.lexsort((rows, shards))
    for number, (name, sha256) in enumerate(zip(shard_set.shard_names, shard_set.shard_sha256, strict=True)):
        uri = storage.join(shard_set.uri, "shards", name)
        members = in_order[shards[in_order] == number]
        for start in range(0, len(members), ROWS_PER_GROUP):
            group = members[start : start + ROWS_PER_GROUP].tolist()
            for _ in read_clips(shard_set, group, want_rgb=True, want_flow=True):
                pass
        content = storage.read_bytes(uri, limit_bytes=shard_set.shard_bytes[number])
        if hashlib.sha256(content).hexdigest() != sha256:
            raise ShardError(f"{uri} is not the file that the manifest names (sha256): delete it and ingest again")
        _verify_labels(shard_set, members.tolist(), pa.py_buffer(content), uri=uri)
        if check_video is not None:
            _check_videos(pa.py_buffer(content), check_video, uri=uri)
        if progress is not None:
            progress(number + 1, len(shard_set.shard_names))


def _verify_labels(shard_set: ShardSet, members: list[int], content: pa.Buffer, *, uri: str) -> None:
    """Check the classes and splits stored in a shard against the index, which training reads."""
    table = pq.read_table(pa.BufferReader(content), columns=["clip_id", "class_name", "splits"])
    if len(table) != len(members):
        raise ShardError(f"{uri} has {len(table)} rows, the index {len(members)}: ingest again")
    ids, labels = shard_set.clip_ids(members), shard_set.labels[members].tolist()
    splits = (shard_set.index["splits"][position].as_py() for position in members)
    for number, (stored, *said) in enumerate(zip(table.to_pylist(), ids, labels, splits, strict=True)):
        indexed = (said[0], shard_set.classes[said[1]], said[2])
        if indexed != (stored["clip_id"], stored["class_name"], stored["splits"]):
            of_row = ", ".join(map(str, stored["splits"] or ["no split"]))
            raise ShardError(
                f"{uri}, row {number}, is {stored['clip_id']!r} of class {stored['class_name']!r} in "
                f"{of_row}; index and manifest say {indexed[0]!r} of class {indexed[1]!r} in "
                f"{', '.join(indexed[2])}: ingest again"
            )


def _check_videos(content: pa.Buffer, check_video: CheckVideo, *, uri: str) -> None:
    """Call `check_video` for the clips of a shard, from the bytes whose SHA-256 was verified."""
    file = pq.ParquetFile(pa.BufferReader(content))
    for group in range(file.num_row_groups):
        table = file.read_row_group(group, columns=["clip_id", "num_frames", "video"])
        for row in range(table.num_rows):
            video = memoryview(table["video"][row].as_buffer()).cast("B")
            try:
                check_video(table["clip_id"][row].as_py(), video, table["num_frames"][row].as_py())
            except VideoError as error:
                raise ShardError(
                    f"{uri}, row {group * ROWS_PER_GROUP + row}, {error}: delete it and ingest again"
                ) from error
