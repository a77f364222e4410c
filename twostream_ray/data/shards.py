"""Shards of encoded clips with their flow: what a set of them consists of, and reading it.

A shard set is a directory or prefix:

    manifest.json        classes, flow contract, splits, shards with rows, bytes and sha256
    index.parquet        one row per clip: where it lies, label, splits, frames; no pictures
    quarantine.csv       videos that could not be used: uri, reason, sha256
    shards/*.parquet     128 rows a file, 16 rows a row group, one column per stream
    parts/*.json         one record per finished shard: what a later ingest need not repeat

Names are content-addressed: the same videos and settings give the same files, whoever writes them and in what order.
"""

from __future__ import annotations

import hashlib
import io
import json
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from twostream_ray import storage
from twostream_ray.data.clips import EncodedClip
from twostream_ray.data.flow import FlowContract
from twostream_ray.errors import ShardError

FORMAT = 2
"""Version of the layout; another one is refused."""

ROWS_PER_GROUP = 16
"""Rows read together: few requests to an object store, little memory."""


def fields_crc32(fields: Iterable[bytes | memoryview]) -> int:
    """Checksum over a clip's flow fields in order."""
    value = 0
    for field in fields:
        value = zlib.crc32(field, value)
    return value


@dataclass(frozen=True, kw_only=True)
class ShardSet:
    """A manifest read back: what there is, and where each clip lies."""

    uri: str
    """Directory or prefix of the set."""

    hash: str
    """sha256 of manifest.json: names the data exactly."""

    classes: tuple[str, ...]
    """Class names by label."""

    head_classes: tuple[int, ...]
    """Classes of each data set, in their order; () is one data set."""

    contract: FlowContract
    """How the flow was made."""

    shard_names: tuple[str, ...]
    """File names below shards/."""

    shard_sha256: tuple[str, ...]
    """Hash of each of these files."""

    shard_bytes: tuple[int, ...]
    """Size of each of these files."""

    quarantined: Mapping[str, int]
    """Videos of each split that could not be used."""

    index: pa.Table
    """One row per clip: clip_id, label, splits, num_frames, shard, row."""

    @cached_property
    def labels(self) -> NDArray[np.int64]:
        """Label of each clip in the index, (num_clips,)."""
        labels: NDArray[np.int64] = self.index["label"].to_numpy().astype(np.int64)
        return labels

    def split(self, name: str) -> NDArray[np.int64]:
        """Index positions of the clips in a split.

        Raises:
            ShardError: the set has no such split.
        """
        members = [position for position, splits in enumerate(self.index["splits"].to_pylist()) if name in splits]
        if not members:
            known = sorted({split for splits in self.index["splits"].to_pylist() for split in splits})
            raise ShardError(f"split {name!r} was wanted of {self.uri}, it has {', '.join(known) or 'no clips'}")
        return np.asarray(members, dtype=np.int64)


def open_shards(uri: str) -> ShardSet:
    """Read a shard set's manifest and index.

    Raises:
        ShardError: there is no manifest, it is of another version, or the index is damaged.
    """
    place = storage.absolute(uri)
    manifest_uri = storage.join(place, "manifest.json")
    if not storage.exists(manifest_uri):
        raise ShardError(
            f"shards were wanted at {uri}, there is no manifest.json: run `twostream ingest` first, or check the path"
        )
    content = storage.read_bytes(manifest_uri)
    try:
        manifest = json.loads(content)
        version = manifest["format"]
    except (ValueError, KeyError, TypeError) as error:
        raise ShardError(f"{manifest_uri} is no manifest of shards: ingest again") from error
    if version != FORMAT:
        raise ShardError(f"{manifest_uri} has format {version}, this version reads format {FORMAT}: ingest again")
    index = storage.read_bytes(storage.join(place, "index.parquet"))
    if hashlib.sha256(index).hexdigest() != manifest["index_sha256"]:
        raise ShardError(f"{place}/index.parquet does not belong to its manifest: run `twostream ingest` again")
    return ShardSet(
        uri=place,
        hash=hashlib.sha256(content).hexdigest(),
        classes=tuple(manifest["classes"]),
        head_classes=tuple(manifest["head_classes"]),
        contract=FlowContract.from_dict(manifest["flow_contract"]),
        shard_names=tuple(shard["name"] for shard in manifest["shards"]),
        shard_sha256=tuple(shard["sha256"] for shard in manifest["shards"]),
        shard_bytes=tuple(shard["bytes"] for shard in manifest["shards"]),
        quarantined=manifest["quarantined_by_split"],
        index=pq.read_table(io.BytesIO(index)),
    )


def read_row_group(
    shard_uri: str, group: int, *, want_rgb: bool, want_flow: bool, rows: Sequence[int]
) -> Iterator[tuple[str, EncodedClip]]:
    """Chosen rows of one row group, in the order asked for, as (clip id, encoded clip); unwanted columns are not read.

    Raises:
        ShardError: the shard is missing or damaged; names shard and row.
    """
    columns = ["clip_id", "num_frames", "height", "width", "fps"]
    columns += ["video", "video_crc32"] * want_rgb + ["flow", "flow_crc32"] * want_flow
    try:
        table = storage.patiently(lambda: _read_columns(shard_uri, group, columns), place=shard_uri)
    except (OSError, pa.ArrowException) as error:
        raise ShardError(
            f"{shard_uri}, row group {group}, cannot be read ({' '.join(str(error).split())[:200]}): ingest again"
        ) from error
    for row in rows:
        video = memoryview(table["video"][row].as_buffer()).cast("B") if want_rgb else None
        fields = None
        if want_flow:
            fields = binary_values(table["flow"][row].values)
        intact = (video is None or zlib.crc32(video) == table["video_crc32"][row].as_py()) and (
            fields is None or fields_crc32(fields) == table["flow_crc32"][row].as_py()
        )
        if not intact:
            raise ShardError(
                f"{shard_uri}, row {group * ROWS_PER_GROUP + row}, is damaged (checksum): delete it and ingest again"
            )
        yield (
            table["clip_id"][row].as_py(),
            EncodedClip(
                video=video,
                flow=fields,
                num_frames=table["num_frames"][row].as_py(),
                height=table["height"][row].as_py(),
                width=table["width"][row].as_py(),
                fps=table["fps"][row].as_py(),
            ),
        )


def binary_values(array: pa.Array) -> list[memoryview]:
    """The values of a large_binary array, not copied, nor wrapped by Arrow one by one, which costs 2 us each."""
    _, ends, content = array.buffers()
    if content is None:
        return [memoryview(b"")] * len(array)
    whole = memoryview(content).cast("B")
    places = np.frombuffer(ends, np.int64)[array.offset : array.offset + len(array) + 1].tolist()
    return [whole[start:end] for start, end in pairwise(places)]


def _read_columns(shard_uri: str, group: int, columns: list[str]) -> pa.Table:
    system, path = storage.filesystem(shard_uri)
    with system.open_input_file(path) as file:
        # Few large requests to a store; from a disk it would only be another copy (35 ms instead of 4 for 19 MB).
        return pq.ParquetFile(file, pre_buffer=storage.is_s3(shard_uri)).read_row_group(group, columns=columns)
