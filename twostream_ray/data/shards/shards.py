"""Sharded dataset format (Parquet): layout of a shard set of encoded clips and flow, and its reader.

A shard set is a directory or prefix:

    manifest.json        classes, flow contract, splits, shards with rows, bytes and sha256
    index.parquet        one row per clip: its shard and row, label, splits, frames; no pictures
    quarantine.csv       videos that could not be used: uri, reason, sha256
    shards/*.parquet     128 rows a file, 16 rows a row group, one column per stream
    parts/*.json         one record per finished shard: what a later ingest need not repeat

Names are content-addressed: the same videos, settings and versions of the encoder give the same files, in
whatever order and on whichever x86 processor they are written.
"""

from __future__ import annotations

import hashlib
import json
import math
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields
from functools import cached_property
from itertools import pairwise
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from twostream_ray import storage
from twostream_ray.data.encoded_clip import EncodedClip
from twostream_ray.data.flow import FlowContract
from twostream_ray.data.shards.held_out import Part, part_named
from twostream_ray.data.shards.index import LIMIT_BYTES, names_at, read_index, splits_by_code
from twostream_ray.data.shards.manifest import named_columns, read_manifest
from twostream_ray.data.sources.splits import group_of_name
from twostream_ray.errors import AccessError, ConfigError, ShardError, StorageError
from twostream_ray.redaction import one_line
from twostream_ray.storage import json_files

ROWS_PER_GROUP = 16
"""Rows per Parquet row group, the unit of reading: few requests to an object store, little memory."""


SCHEMA = pa.schema(
    [
        ("clip_id", pa.string()),
        ("label", pa.int32()),
        ("class_name", pa.string()),
        ("splits", pa.list_(pa.string())),
        ("num_frames", pa.int32()),
        ("height", pa.int32()),
        ("width", pa.int32()),
        ("fps", pa.float64()),
        ("source_sha256", pa.string()),
        ("video_crc32", pa.uint32()),
        ("flow_crc32", pa.uint32()),
        ("video", pa.large_binary()),
        ("flow", pa.list_(pa.large_binary())),
    ]
)
"""A shard's columns."""

_MOST_PX = 16_384
_EXPECTED = ("clip_id", "label", "num_frames", "shard", "row")


def fields_crc32(fields: Iterable[bytes | memoryview]) -> int:
    """Checksum over a clip's flow fields in order."""
    value = 0
    for content in fields:
        value = zlib.crc32(content, value)
    return value


@dataclass(frozen=True, kw_only=True)
class ShardSet:
    """An opened shard set: its manifest and its index of clips."""

    uri: str
    """Directory or prefix of the set."""

    hash: str
    """SHA-256 of manifest.json, which identifies the data."""

    classes: tuple[str, ...]
    """Class names by label."""

    head_classes: tuple[int, ...]
    """Classes of each data set, in their order; () is one data set."""

    contract: FlowContract
    """Algorithm and coding of the flow."""

    shard_names: tuple[str, ...]
    """File names below shards/."""

    shard_sha256: tuple[str, ...]
    """Hash of each of these files."""

    shard_bytes: tuple[int, ...]
    """Size of each of these files."""

    quarantined: Mapping[str, int]
    """Split -> number of quarantined videos."""

    index: pa.Table
    """One row per clip: clip_id, label, splits, num_frames, shard, row, and group where names do not say it."""

    quarantined_by_head: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    """The same of each data set, where there are several; {} where an earlier ingest did not count them apart."""

    data_set: str = ""
    """Name of the data set, of several joined by "-"; empty where they have none."""

    @cached_property
    def labels(self) -> NDArray[Any]:
        """Label of each clip in the index, (num_clips,), of the integers that the index has them in."""
        labels: NDArray[Any] = self.index["label"].to_numpy()
        return labels

    def clip_ids(self, positions: Sequence[int] | NDArray[np.int64]) -> list[str]:
        """Names of clips by their positions in the index."""
        return list(names_at(self.index["clip_id"], positions))

    def groups(self, positions: Sequence[int] | NDArray[np.int64]) -> list[str]:
        """The source that each clip was cut from, by the index's group column or else parsed from the clip id."""
        if "group" in self.index.column_names:
            return list(names_at(self.index["group"], positions))
        return [group_of_name(name) for name in names_at(self.index["clip_id"], positions)]

    @cached_property
    def _members(self) -> dict[str, NDArray[np.int64]]:
        """Split -> ascending index positions of its clips."""
        found: dict[str, list[NDArray[np.int64]]] = {}
        begin = 0
        # A chunk at a time: together they are gigabytes for 100 million clips.
        for splits in self.index["splits"].chunks:
            codes, lists = splits_by_code(splits)
            for name in {name for names in lists for name in names}:
                has = np.array([name in names for names in lists])
                clips = np.arange(len(splits)) if has.all() else np.flatnonzero(has[codes])
                clips += begin
                found.setdefault(name, []).append(clips)
            begin += len(splits)
        members = {name: _joined(found.pop(name)) for name in sorted(found)}
        for clips in members.values():
            clips.flags.writeable = False  # everybody gets the same array
        return members

    def split(self, name: str) -> NDArray[np.int64]:
        """Index positions of the clips in a split or a part of one (`held_out`), ascending; computed once.

        Raises:
            ShardError: the set has no such split, or none of its groups can validate.
        """
        members = self._members.get(name)
        if members is None and (part := part_named(name)) is not None:
            members = self._members[name] = self._part(part)
        if members is None:
            known = ", ".join(self.split_names) or "no clips"
            raise ShardError(f"{self.uri} has no split {name!r}, it has {known}")
        return members

    @property
    def split_names(self) -> list[str]:
        """Names of the splits, sorted."""
        return sorted(name for name in self._members if part_named(name) is None)

    def _part(self, part: Part) -> NDArray[np.int64]:
        members = self.split(part.split)
        names = [self.classes[label] for label in self.labels[members]]
        found = part.of(zip(members.tolist(), names, self.groups(members), strict=True))
        if not found:
            raise ShardError(
                f"data.validation_fraction={part.fraction:g} was to be cut from split {part.split} of {self.uri}, but "
                "each class there has one group of clips alone: ingest more, or name a split in data.validation_split"
            )
        clips = np.asarray(found, np.int64)
        clips.flags.writeable = False
        return clips

    def locate(self, clip: int) -> str:
        """Clip id, row and shard of a clip, by its position in the index, for messages."""
        row = self.index.slice(clip, 1).to_pylist()[0]
        return f"clip {row['clip_id']}, row {row['row']} of {self.uri}/shards/{self.shard_names[row['shard']]}"

    def __getstate__(self) -> dict[str, Any]:
        """Pickle the fields only: cached properties are megabytes, and few tasks need them."""
        return {one.name: getattr(self, one.name) for one in fields(self)}


def _joined(parts: list[NDArray[np.int64]]) -> NDArray[np.int64]:
    return parts[0] if len(parts) == 1 else np.concatenate(parts)


def open_shards(uri: str) -> ShardSet:
    """Read a shard set's manifest and index.

    Raises:
        ShardError: there is no manifest, it or the index is damaged, or they contradict each other.
        StorageError: they cannot be read.
    """
    path = storage.absolute(uri)
    manifest_uri, index_uri = (storage.join(path, name) for name in ("manifest.json", "index.parquet"))
    if not storage.exists(manifest_uri):
        raise ShardError(
            f"no shards at {uri}, it has no manifest.json: run `twostream ingest` first, or check the path"
        )
    content = storage.read_bytes(manifest_uri, limit_bytes=json_files.LIMIT_BYTES)
    manifest = read_manifest(content, where=manifest_uri)
    with storage.on_disk(index_uri, limit_bytes=LIMIT_BYTES) as local, local.open("rb") as file:
        if hashlib.file_digest(file, "sha256").hexdigest() != manifest.index_sha256:
            raise ShardError(f"{index_uri} does not belong to its manifest: run `twostream ingest` again")
        file.seek(0)
        index = read_index(file, manifest, where=index_uri)
    return ShardSet(
        uri=path,
        hash=manifest.hash,
        classes=manifest.classes,
        head_classes=manifest.head_classes,
        contract=manifest.contract,
        shard_names=manifest.shard_names,
        shard_sha256=manifest.shard_sha256,
        shard_bytes=manifest.shard_bytes,
        quarantined=manifest.quarantined,
        quarantined_by_head=manifest.quarantined_by_head,
        index=index,
        data_set=manifest.data_set,
    )


def read_clips(
    shard_set: ShardSet, positions: Sequence[int], *, want_rgb: bool, want_flow: bool, copy: str | None = None
) -> Iterator[tuple[str, EncodedClip]]:
    """Clips of one row group by their positions in the index: (clip id, encoded clip); unwanted columns are not read.

    The file is that of the manifest, or a `copy` of it: its size and flow contract are held against the manifest, each
    row against the index, its streams against its checksums.

    Raises:
        ShardError: the shard is missing, damaged, or another one than the manifest and index speak of; names shard and
            row.
    """
    index = shard_set.index
    columns = {name: [index[name][position].as_py() for position in positions] for name in _EXPECTED}
    shard, group = columns["shard"][0], columns["row"][0] // ROWS_PER_GROUP
    uri = storage.join(shard_set.uri, "shards", shard_set.shard_names[shard])
    rows = [row % ROWS_PER_GROUP for row in columns["row"]]
    expected = Expected(
        bytes=shard_set.shard_bytes[shard],
        contract=shard_set.contract,
        rows=list(zip(*(columns[name] for name in ("clip_id", "label", "num_frames")), strict=True)),
    )
    yield from read_row_group(
        copy or uri, group, want_rgb=want_rgb, want_flow=want_flow, rows=rows, expected=expected, named=uri
    )


@dataclass(frozen=True, kw_only=True, slots=True)
class Expected:
    """Expected content of rows of a shard, from the manifest and the index."""

    bytes: int
    """Size of the file."""

    contract: FlowContract
    """How its flow was made."""

    rows: Sequence[tuple[str, int, int]]
    """Clip id, label and number of frames of each row that is asked for."""


def read_row_group(
    shard_uri: str,
    group: int,
    *,
    want_rgb: bool,
    want_flow: bool,
    rows: Sequence[int],
    expected: Expected | None = None,
    named: str | None = None,
) -> Iterator[tuple[str, EncodedClip]]:
    """Chosen rows of one row group, in the order asked for, as (clip id, encoded clip); unwanted columns are not read.

    They are held against what is `expected` of them. Errors speak of the shard as `named`, where this is a copy.

    Raises:
        ShardError: the shard is missing, damaged or another one; names shard and row.
        StorageError: its store or disk does not answer.
    """
    named = named or shard_uri
    group_name = f"{named}, row group {group},"
    columns = ["clip_id", "label", "num_frames", "height", "width", "fps"]
    columns += ["video", "video_crc32"] * want_rgb + ["flow", "flow_crc32"] * want_flow

    def read() -> pa.Table:
        return _read_columns(shard_uri, group, columns, rows=rows, expected=expected, group_name=group_name)

    try:
        table = storage.patiently(read, uri=shard_uri)
    except (OSError, UnicodeDecodeError, pa.ArrowException, AccessError) as error:
        raise _unreadable(error, group_name=group_name, uri=shard_uri) from error
    for number, row in enumerate(rows):
        where = f"{named}, row {group * ROWS_PER_GROUP + row}"
        clip_id, label, frames = (table[name][row].as_py() for name in ("clip_id", "label", "num_frames"))
        if expected is not None and (clip_id, label, frames) != tuple(expected.rows[number]):
            wanted = expected.rows[number]
            raise ShardError(
                f"{where}, holds clip {clip_id!r} of label {label} with {frames} frames, the index says {wanted[0]!r}, "
                f"label {wanted[1]}, {wanted[2]} frames: one of them is another set's, ingest again"
            )
        video = memoryview(table["video"][row].as_buffer()).cast("B") if want_rgb else None
        fields = None
        if want_flow:
            fields = binary_values(table["flow"][row].values)
        intact = (video is None or zlib.crc32(video) == table["video_crc32"][row].as_py()) and (
            fields is None or fields_crc32(fields) == table["flow_crc32"][row].as_py()
        )
        if not intact:
            raise ShardError(f"{where}, is damaged (checksum): delete it and ingest again")
        height, width, fps = (table[name][row].as_py() for name in ("height", "width", "fps"))
        if not (frames >= 1 and 0 < height <= _MOST_PX and 0 < width <= _MOST_PX and 0 < fps < math.inf):
            raise ShardError(
                f"{where}, says {frames} frames of {width} x {height} px at {fps} a second: it is damaged, delete it "
                "and ingest again"
            )
        if fields is not None and len(fields) not in (0, frames - 1):
            raise ShardError(
                f"{where}, has {len(fields)} fields of flow for {frames} frames: delete it and ingest again"
            )
        yield clip_id, EncodedClip(video=video, flow=fields, num_frames=frames, height=height, width=width, fps=fps)


def _unreadable(error: Exception, *, group_name: str, uri: str) -> StorageError | ShardError:
    """The error for unreadable rows: StorageError for an outage, which may be retried, ShardError for damage."""
    said = f"{group_name} cannot be read ({one_line(error, longest=200)})"
    if storage.is_outage(error, uri=uri):
        return StorageError(f"{said}: the store or the disk does not answer, see to it and run the same command again")
    return ShardError(f"{said}: ingest again")


def binary_values(array: pa.Array) -> list[memoryview]:
    """Zero-copy values of a large_binary array, without Arrow's scalars, which cost 2 us each."""
    _, ends, content = array.buffers()
    if content is None:
        return [memoryview(b"")] * len(array)
    buffer = memoryview(content).cast("B")
    offsets = np.frombuffer(ends, np.int64)[array.offset : array.offset + len(array) + 1].tolist()
    return [buffer[start:end] for start, end in pairwise(offsets)]


def _read_columns(
    shard_uri: str, group: int, columns: list[str], *, rows: Sequence[int], expected: Expected | None, group_name: str
) -> pa.Table:
    with storage.open_regular(shard_uri) as opened:
        if expected is not None and opened.size() != expected.bytes:
            raise ShardError(
                f"{group_name} cannot be read (its file has {opened.size()} bytes, its manifest says "
                f"{expected.bytes}): it is damaged or another one, ingest again"
            )
        # Pre-buffering makes few large requests to a store; from a disk it is a needless copy (19 MB: 35 ms, not 4).
        file = pq.ParquetFile(opened, pre_buffer=storage.is_s3(shard_uri))
        if not file.schema_arrow.equals(SCHEMA):
            raise ShardError(
                f"{group_name} is not in a shard, the file has columns {named_columns(file.schema_arrow)}: ingest again"
            )
        stored = (file.schema_arrow.metadata or {}).get(b"flow_contract", b"")
        if expected is not None and not _is_contract(stored, expected.contract):
            raise ShardError(f"{group_name} has another flow contract than its manifest: ingest again")
        if group >= file.num_row_groups or max(rows) >= file.metadata.row_group(group).num_rows:
            raise ShardError(
                f"{group_name} has fewer rows than its manifest says ({file.metadata.num_rows} in all): ingest again"
            )
        table = file.read_row_group(group, columns=columns)
        table.validate(full=True)
    empty = [name for name in columns if table[name].null_count]
    if "flow" in columns and any(chunk.flatten().null_count for chunk in table["flow"].chunks):
        empty.append("flow")
    if empty or len(table) <= max(rows):
        raise ShardError(f"{group_name} has rows without {', '.join(empty) or 'content'}: ingest again")
    return table


def _is_contract(stored: bytes, contract: FlowContract) -> bool:
    try:
        return FlowContract.from_dict(json.loads(stored)) == contract
    except (ValueError, ConfigError):
        return False
