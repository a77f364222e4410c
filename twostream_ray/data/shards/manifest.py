"""The manifest and the index of a shard set: what they say, checked where they are read."""

from __future__ import annotations

import hashlib
import io
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from twostream_ray.data.flow import CONTRACT_SCHEMA, FlowContract
from twostream_ray.errors import ShardError
from twostream_ray.redaction import one_line
from twostream_ray.storage import json_files
from twostream_ray.storage.json_files import COUNT, SHA256, WORD, list_of, record

FORMAT = 2
"""Version of the layout; another one is refused."""

INDEX_LIMIT_BYTES = 2 << 30
"""Room for some ten million clips."""

SHARD_NAME = {"type": "string", "pattern": r"^[0-9a-f]{16}-[0-9]{1,9}\.parquet\Z"}
"""The name of a shard's file: content address and number of rows. Nothing else becomes part of a path."""

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

INDEX_SCHEMA_WITH_GROUPS = INDEX_SCHEMA.append(pa.field("group", pa.string()))
"""Its columns where groups of clips are other than clips' names say."""

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
    {
        "quarantined_by_head": {"type": "object", "additionalProperties": list_of(COUNT, at_most=1000)},
        "data_set": WORD,
    },
    others=True,
)


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
    quarantined_by_head: Mapping[str, tuple[int, ...]]
    clips: int
    frames: int
    splits: Mapping[str, int]
    index_sha256: str
    data_set: str


def read_manifest(content: bytes, *, where: str, way_out: str = "run `twostream ingest` again") -> Manifest:
    """A manifest from the bytes of manifest.json.

    Raises:
        ShardError: it is none, one of another version, or its parts contradict each other.
    """
    terms: dict[str, Any] = {"where": where, "what": "a manifest of shards", "way_out": way_out, "error": ShardError}
    values = json_files.parse_json(content, _FORMAT_ONLY, **terms)
    if values["format"] != FORMAT:
        raise ShardError(
            f"{where} has format {values['format']}, this version reads format {FORMAT}: ingest into another --out"
        )
    json_files.check(values, _MANIFEST, **terms)
    contract = FlowContract.from_dict(values["flow_contract"])
    shards, by_head = values["shards"], values.get("quarantined_by_head", {})
    contradictions = {
        "flow_contract_hash": values["flow_contract_hash"] != contract.hash,
        "head_classes": bool(values["head_classes"]) and sum(values["head_classes"]) != len(values["classes"]),
        "shards": len({shard["name"] for shard in shards}) < len(shards),
        "quarantined_by_head": any(
            (len(counts), sum(counts)) != (len(values["head_classes"]), values["quarantined_by_split"].get(split))
            for split, counts in by_head.items()
        ),
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
        quarantined_by_head={split: tuple(map(int, counts)) for split, counts in by_head.items()},
        clips=values["clips"],
        frames=values["frames"],
        splits=values["splits"],
        index_sha256=values["index_sha256"],
        data_set=values.get("data_set", ""),
    )


def read_index(content: bytes, manifest: Manifest, *, where: str) -> pa.Table:
    """The index from the bytes of index.parquet: every clip once, in a row that there is, with a label of a class.

    Raises:
        ShardError: it is no index, or contradicts its manifest.
    """
    try:
        file = pq.ParquetFile(io.BytesIO(content))
        if file.schema_arrow not in (INDEX_SCHEMA, INDEX_SCHEMA_WITH_GROUPS):
            raise ShardError(
                f"{where} has the columns {named_columns(file.schema_arrow)}, wanted were "
                f"{named_columns(INDEX_SCHEMA)}: run `twostream ingest` again"
            )
        if file.metadata.num_rows != manifest.clips:
            raise ShardError(
                f"{where} has {file.metadata.num_rows} clips, its manifest {manifest.clips}: run `twostream ingest` "
                "again"
            )
        table = file.read()
        table.validate(full=True)
    except (OSError, UnicodeDecodeError, pa.ArrowException) as error:
        raise ShardError(
            f"an index of shards was wanted at {where} ({one_line(error)}): run `twostream ingest` again"
        ) from error
    splits = table["splits"].combine_chunks()
    if any(table[name].null_count for name in table.column_names) or splits.flatten().null_count:
        raise ShardError(f"{where} has empty values: run `twostream ingest` again")
    rows = np.asarray(manifest.shard_rows, np.int64)
    label, frames, shard, row = (
        table[name].to_numpy().astype(np.int64) for name in ("label", "num_frames", "shard", "row")
    )
    at = np.clip(shard, 0, max(len(rows) - 1, 0))
    counts = {one["values"]: one["counts"] for one in pc.value_counts(splits.flatten()).to_pylist()}
    wrong = {
        "label": ((label < 0) | (label >= len(manifest.classes))).any(),
        "num_frames": (frames < 1).any() or int(frames.sum()) != manifest.frames,
        "shard": ((shard < 0) | (shard >= len(rows))).any(),
        "row": len(rows) and ((row < 0) | (row >= rows[at])).any(),
        "position of a clip": _has_repeated(shard << 32 | row),
        "clip_id": len(table["clip_id"].unique()) < len(table),
        "splits": counts != dict(manifest.splits),
    }
    if found := [name for name, is_wrong in wrong.items() if is_wrong]:
        raise ShardError(f"the {found[0]} in {where} contradicts its manifest: run `twostream ingest` again")
    return table


def _has_repeated(numbers: NDArray[np.int64]) -> bool:
    """Whether any stands twice; those of an index are in order, and need not be sorted."""
    return not (numbers[1:] > numbers[:-1]).all() and len(np.unique(numbers)) < len(numbers)


def named_columns(schema: pa.Schema) -> str:
    """A schema in one line, for people."""
    text = ", ".join(f"{field.name} {field.type}" for field in schema)
    return text if len(text) <= 200 else f"{text[:200]}..."
