"""Manifest of a shard set: parsing and validation of manifest.json."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from twostream_ray.data.flow import CONTRACT_SCHEMA, FlowContract
from twostream_ray.errors import ShardError
from twostream_ray.storage import json_files
from twostream_ray.storage.json_files import COUNT, MOST, SHA256, WORD, list_of, record

FORMAT = 2
"""Version of the file layout; any other version is refused."""

SHARD_NAME = {"type": "string", "pattern": r"^[0-9a-f]{16}-[0-9]{1,9}\.parquet\Z"}
"""File name of a shard: content address and number of rows. Only such names are joined to paths."""

_SHARD_NAME, _SHA256 = (re.compile(schema["pattern"]) for schema in (SHARD_NAME, SHA256))

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
    """The validated content of manifest.json; the fields are those of ShardSet."""

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
    """Parse and validate the bytes of manifest.json.

    Raises:
        ShardError: not a manifest, another version, or inconsistent.
    """
    terms: dict[str, Any] = {"where": where, "what": "a manifest of shards", "way_out": way_out, "error": ShardError}
    values = json_files.parse_json(content, _FORMAT_ONLY, **terms)
    if values["format"] != FORMAT:
        raise ShardError(
            f"{where} has format {values['format']}, this version reads format {FORMAT}: ingest into another --out"
        )
    shards = values.get("shards")
    # 100 million clips make 800,000 shards, which take half a minute to validate by JSON Schema.
    are_right = isinstance(shards, list) and all(map(_is_shard, shards))
    json_files.check(values | {"shards": []} if are_right else values, _MANIFEST, **terms)
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
        raise ShardError(f"{where} is not a valid manifest, its {wrong[0]} contradicts the rest: {way_out}")
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


def _is_shard(value: Any) -> bool:
    """Fast equivalent of a shard's JSON Schema; stricter in rare cases, which then go through the schema."""
    return (
        isinstance(value, dict)
        and {"name", "rows", "bytes", "sha256"} <= value.keys()
        and isinstance(value["name"], str)
        and isinstance(value["sha256"], str)
        and _SHARD_NAME.match(value["name"]) is not None
        and _SHA256.match(value["sha256"]) is not None
        and type(value["rows"]) is int
        and type(value["bytes"]) is int
        and 1 <= value["rows"] <= MOST
        and 0 <= value["bytes"] <= MOST
    )


def named_columns(schema: pa.Schema) -> str:
    """A schema as one line for messages."""
    text = ", ".join(f"{field.name} {field.type}" for field in schema)
    return text if len(text) <= 200 else f"{text[:200]}..."
