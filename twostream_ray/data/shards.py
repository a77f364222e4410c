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
import zlib
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from twostream_ray import documents, storage
from twostream_ray.data.clips import EncodedClip
from twostream_ray.data.flow import CONTRACT_SCHEMA, FlowContract
from twostream_ray.documents import COUNT, SHA256, WORD, list_of, record
from twostream_ray.errors import ShardError

FORMAT = 2
"""Version of the layout; another one is refused."""

ROWS_PER_GROUP = 16
"""Rows read together: few requests to an object store, little memory."""


_INDEX_LIMIT_BYTES = 2 << 30
"""Room for some ten million clips."""

SHARD_NAME = {"type": "string", "pattern": r"^[0-9a-f]{16}-[0-9]{1,9}\.parquet\Z"}
"""The name of a shard's file: content address and number of rows. Nothing else becomes part of a path."""

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

INDEX_SCHEMA = pa.schema(
    [
        ("clip_id", pa.string()),
        ("label", pa.int32()),
        ("splits", pa.list_(pa.string())),
        ("num_frames", pa.int32()),
        ("shard", pa.int32()),
        ("row", pa.int32()),
    ]
)
"""The index's columns."""

_COUNTS = {"type": "object", "additionalProperties": COUNT}
_FORMAT_ONLY = record({"format": {"type": "integer"}}, others=True)
_MANIFEST = record(
    {
        "format": {"const": FORMAT},
        "classes": {**list_of(WORD, at_least=1, at_most=1_000_000), "uniqueItems": True},
        "head_classes": list_of({**COUNT, "minimum": 1}, at_most=1000),
        "flow_contract": CONTRACT_SCHEMA,
        "flow_contract_hash": {"type": "string", "pattern": r"^[0-9a-f]{12}\Z"},
        "clips": COUNT,
        "frames": COUNT,
        "quarantined": COUNT,
        "splits": _COUNTS,
        "quarantined_by_split": _COUNTS,
        "index_sha256": SHA256,
        "shards": list_of(
            record({"name": SHARD_NAME, "rows": {**COUNT, "minimum": 1}, "bytes": COUNT, "sha256": SHA256}, others=True)
        ),
    },
    others=True,
)


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


@dataclass(frozen=True, kw_only=True, slots=True)
class Manifest:
    """What manifest.json says, checked; the fields are those of ShardSet."""

    hash: str
    classes: tuple[str, ...]
    head_classes: tuple[int, ...]
    contract: FlowContract
    shard_names: tuple[str, ...]
    shard_rows: tuple[int, ...]
    shard_sha256: tuple[str, ...]
    shard_bytes: tuple[int, ...]
    quarantined: Mapping[str, int]
    clips: int
    frames: int
    splits: Mapping[str, int]
    index_sha256: str


def read_manifest(content: bytes, *, where: str, way_out: str = "run `twostream ingest` again") -> Manifest:
    """A manifest from the bytes of manifest.json.

    Raises:
        ShardError: it is none, one of another version, or its parts contradict each other.
    """
    terms: dict[str, Any] = {"where": where, "what": "a manifest of shards", "way_out": way_out, "error": ShardError}
    values = documents.parse_json(content, _FORMAT_ONLY, **terms)
    if values["format"] != FORMAT:
        raise ShardError(
            f"{where} has format {values['format']}, this version reads format {FORMAT}: ingest into another --out"
        )
    documents.check(values, _MANIFEST, **terms)
    contract = FlowContract.from_dict(values["flow_contract"])
    shards = values["shards"]
    contradictions = {
        "flow_contract_hash": values["flow_contract_hash"] != contract.hash,
        "head_classes": bool(values["head_classes"]) and sum(values["head_classes"]) != len(values["classes"]),
        "shards": len({shard["name"] for shard in shards}) < len(shards),
        "clips": values["clips"] != sum(shard["rows"] for shard in shards),
    }
    if wrong := [name for name, differs in contradictions.items() if differs]:
        raise ShardError(f"a manifest of shards was wanted at {where}, its {wrong[0]} contradicts the rest: {way_out}")
    return Manifest(
        hash=hashlib.sha256(content).hexdigest(),
        classes=tuple(values["classes"]),
        head_classes=tuple(map(int, values["head_classes"])),
        contract=contract,
        shard_names=tuple(shard["name"] for shard in shards),
        shard_rows=tuple(int(shard["rows"]) for shard in shards),
        shard_sha256=tuple(shard["sha256"] for shard in shards),
        shard_bytes=tuple(int(shard["bytes"]) for shard in shards),
        quarantined=values["quarantined_by_split"],
        clips=values["clips"],
        frames=values["frames"],
        splits=values["splits"],
        index_sha256=values["index_sha256"],
    )


def open_shards(uri: str) -> ShardSet:
    """Read a shard set's manifest and index.

    Raises:
        ShardError: there is no manifest, it or the index is damaged, or they contradict each other.
        StorageError: they cannot be read.
    """
    place = storage.absolute(uri)
    manifest_uri, index_uri = (storage.join(place, name) for name in ("manifest.json", "index.parquet"))
    if not storage.exists(manifest_uri):
        raise ShardError(
            f"shards were wanted at {uri}, there is no manifest.json: run `twostream ingest` first, or check the path"
        )
    content = storage.read_bytes(manifest_uri, limit_bytes=documents.LIMIT_BYTES)
    manifest = read_manifest(content, where=manifest_uri)
    index_content = storage.read_bytes(index_uri, limit_bytes=_INDEX_LIMIT_BYTES)
    if hashlib.sha256(index_content).hexdigest() != manifest.index_sha256:
        raise ShardError(f"{index_uri} does not belong to its manifest: run `twostream ingest` again")
    return ShardSet(
        uri=place,
        hash=manifest.hash,
        classes=manifest.classes,
        head_classes=manifest.head_classes,
        contract=manifest.contract,
        shard_names=manifest.shard_names,
        shard_sha256=manifest.shard_sha256,
        shard_bytes=manifest.shard_bytes,
        quarantined=manifest.quarantined,
        index=_read_index(index_content, manifest, where=index_uri),
    )


def _read_index(content: bytes, manifest: Manifest, *, where: str) -> pa.Table:
    """The index, held against the manifest: every clip once, in a place that there is, with a label of a class."""
    try:
        file = pq.ParquetFile(io.BytesIO(content))
        if not file.schema_arrow.equals(INDEX_SCHEMA):
            raise ShardError(
                f"{where} has the columns {_brief(file.schema_arrow)}, {_brief(INDEX_SCHEMA)} were wanted: run "
                "`twostream ingest` again"
            )
        if file.metadata.num_rows != manifest.clips:
            raise ShardError(
                f"{where} has {file.metadata.num_rows} clips, its manifest {manifest.clips}: run `twostream ingest` "
                "again"
            )
        table = file.read()
    except (OSError, pa.ArrowException) as error:
        raise ShardError(
            f"an index of shards was wanted at {where} ({' '.join(str(error).split())[:160]}): run `twostream ingest` "
            "again"
        ) from error
    splits = table["splits"].combine_chunks()
    if any(table[name].null_count for name in table.column_names) or splits.flatten().null_count:
        raise ShardError(f"{where} has empty values: run `twostream ingest` again")
    rows = np.asarray(manifest.shard_rows, np.int64)
    label, frames, shard, row = (
        table[name].to_numpy().astype(np.int64) for name in ("label", "num_frames", "shard", "row")
    )
    at = np.clip(shard, 0, max(len(rows) - 1, 0))
    counts = dict(Counter(splits.flatten().to_pylist()))
    wrong = {
        "label": ((label < 0) | (label >= len(manifest.classes))).any(),
        "num_frames": (frames < 1).any() or int(frames.sum()) != manifest.frames,
        "shard": ((shard < 0) | (shard >= len(rows))).any(),
        "row": len(rows) and ((row < 0) | (row >= rows[at])).any(),
        "place of a clip": len(np.unique(shard << 32 | row)) < len(row),
        "clip_id": len(table["clip_id"].unique()) < len(table),
        "splits": counts != dict(manifest.splits),
    }
    if found := [name for name, is_wrong in wrong.items() if is_wrong]:
        raise ShardError(f"the {found[0]} in {where} contradicts its manifest: run `twostream ingest` again")
    return table


def _brief(schema: pa.Schema) -> str:
    text = ", ".join(f"{field.name} {field.type}" for field in schema)
    return text if len(text) <= 200 else f"{text[:200]}..."


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
