"""Incremental ingest: records of finished shards decide which are kept, which are stale and what may be deleted.

A file is deleted only if a record of this set names it, its name has the form that ingest gives, its size is the
recorded one, and its footer is that of a shard. Any other file is left alone and reported.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from twostream_ray import storage
from twostream_ray.data.flow import CONTRACT_SCHEMA, FlowContract, differences
from twostream_ray.data.shards.index import INDEX_SCHEMA, INDEX_SCHEMA_WITH_GROUPS
from twostream_ray.data.shards.manifest import FORMAT, SHARD_NAME, read_manifest
from twostream_ray.data.sources.catalog import Clip
from twostream_ray.errors import AccessError, ConfigError, MissingError, ShardError, TooLongError
from twostream_ray.storage import json_files
from twostream_ray.storage.json_files import COUNT, SHA256, WORD, list_of, record

QUARANTINE_COLUMNS = ("clip_id", "uri", "reason", "sha256", "splits")

_KEY = r"[0-9a-f]{16}"
_RECORD_NAME = re.compile(rf"({_KEY})\.json")
_PARTIAL_NAME = re.compile(rf"\.{_KEY}(-\d+\.parquet|\.json)\.[0-9a-f]{{8}}\.partial")
"""Partial files of a killed `storage.write_bytes` or `write_file`."""

_PLACE = {"type": "string", "maxLength": 10_000}
_IDENTITY = {
    "type": "array",
    "prefixItems": [WORD, COUNT, {**COUNT, "maximum": 2**31 - 1}, WORD, list_of(WORD, at_most=10_000)],
    "minItems": 5,
    "maxItems": 5,
}
_FORMAT_ONLY = record({"format": {"type": "integer"}}, others=True)
_RECORD = record(
    {
        "format": {"const": FORMAT},
        "key": {"type": "string", "pattern": rf"^{_KEY}\Z"},
        "flow_contract": CONTRACT_SCHEMA,
        "max_frames": {"anyOf": [COUNT, {"type": "null"}]},
        "shard": {"anyOf": [SHARD_NAME, {"type": "null"}]},
        "bytes": COUNT,
        "sha256": {"anyOf": [SHA256, {"type": "null"}]},
        "clips": list_of(
            record(
                {
                    "identity": _IDENTITY,
                    "num_frames": {**COUNT, "minimum": 1, "maximum": 2**31 - 1},
                    "seconds": {"type": "number", "minimum": 0},
                },
                {"notes": list_of({"type": "string", "maxLength": 1_000}, at_most=100)},
                others=True,
            ),
            at_most=100_000,
        ),
        "quarantined": list_of(
            record(
                {
                    "identity": _IDENTITY,
                    "uri": _PLACE,
                    "reason": {"type": "string", "maxLength": 100_000},
                    "sha256": {"type": "string", "pattern": r"^([0-9a-f]{64})?\Z"},
                },
                others=True,
            ),
            at_most=100_000,
        ),
    },
    {"encoder": {"type": "object", "additionalProperties": {"type": "string", "maxLength": 200}, "maxProperties": 20}},
    others=True,
)


def clip_identity(clip: Clip) -> list[Any]:
    """Identity of a clip across ingests: name, size, label and splits."""
    return [clip.clip_id, clip.size_bytes, clip.label, clip.class_name, list(clip.splits)]


@dataclass(frozen=True, kw_only=True, slots=True)
class StaleShard:
    """A finished shard that no longer matches the catalog or the settings."""

    record: Mapping[str, Any]
    """Its record."""

    why: str
    """The reason, for example "a video has changed"."""

    example: str
    """A clip or value to which it applies."""


@dataclass(frozen=True, kw_only=True, slots=True)
class IngestState:
    """State of an output directory or prefix after earlier ingests."""

    out: str
    """Directory or s3:// prefix."""

    kept: list[dict[str, Any]]
    """Records of shards that still match the catalog and the settings."""

    stale: list[StaleShard]
    """Shards to delete once their replacements are written."""

    sizes: Mapping[str, int]
    """Every file in shards/, with its size in bytes."""

    partial: tuple[str, ...]
    """Partial files of interrupted writes, relative to `out`."""

    foreign: tuple[str, ...]
    """Files in parts/ and shards/ that no record names."""


def survey(out: str, *, clips: Sequence[Clip], contract: FlowContract, max_frames: int | None = None) -> IngestState:
    """Compare the records in `out` with the catalog and the settings; read-only.

    A shard that lacks clips which were too long is stale when the limit is another now, and one that lacks clips which
    could not be read is stale in any case: they are tried again.

    Raises:
        ShardError: a record is damaged.
        StorageError: `out` cannot be read.
    """
    names, sizes = _listed(out, "parts"), _listed(out, "shards")
    wanted = {clip.clip_id: clip for clip in clips}
    kept: list[dict[str, Any]] = []
    stale: list[StaleShard] = []
    of_others: list[str] = []
    covered: set[str] = set()
    for name in sorted(names):
        values = _read_record(out, name)
        if values is None:
            of_others.append(f"parts/{name}")
            continue
        changed = _what_has_changed(values, wanted=wanted, sizes=sizes, contract=contract, max_frames=max_frames)
        ids = _ids(values["clips"])
        if changed is None and (twice := ids & covered):
            changed = "another shard holds the same clips", min(twice)
        if changed is None:
            kept.append(values)
            covered |= ids
        else:
            stale.append(StaleShard(record=values, why=changed[0], example=changed[1]))
    recorded = {values["shard"] for values in [*kept, *(one.record for one in stale)]}
    partial = [f"{folder}/{name}" for folder, found in (("parts", names), ("shards", sizes)) for name in found]
    partial = [path for path in partial if _PARTIAL_NAME.fullmatch(path.partition("/")[2])]
    foreign = [*of_others, *(f"shards/{name}" for name in sizes if name not in recorded)]
    return IngestState(
        out=out,
        kept=kept,
        stale=stale,
        sizes=sizes,
        partial=tuple(partial),
        foreign=tuple(path for path in foreign if path not in partial),
    )


def _listed(out: str, folder: str) -> dict[str, int]:
    uri = storage.join(out, folder)
    # A store or a disk that does not answer must not look like a new directory.
    return dict(storage.list_files(uri)) if storage.exists(uri) else {}


def _read_record(out: str, name: str) -> dict[str, Any] | None:
    """A record; None for any other file, and for a record of another version."""
    match = _RECORD_NAME.fullmatch(name)
    if match is None:
        return None
    uri = storage.join(out, "parts", name)
    terms: dict[str, Any] = {
        "what": "a record of a finished shard",
        "way_out": "delete it and ingest again, its clips are then done once more",
        "error": ShardError,
    }
    values: dict[str, Any] = json_files.read_json(uri, _FORMAT_ONLY, **terms)
    if values["format"] != FORMAT:
        return None
    json_files.check(values, _RECORD, where=uri, **terms)
    rows = len(values["clips"])
    shard = f"{match[1]}-{rows}.parquet" if rows else None
    ids = [entry["identity"][0] for entry in values["clips"] + values["quarantined"]]
    if (values["key"], values["shard"]) != (match[1], shard) or len(set(ids)) < len(ids):
        raise ShardError(
            f"{uri} is not a valid record, its key, shard and clips contradict each other: {terms['way_out']}"
        )
    return values


def _what_has_changed(
    values: Mapping[str, Any],
    *,
    wanted: Mapping[str, Clip],
    sizes: Mapping[str, int],
    contract: FlowContract,
    max_frames: int | None,
) -> tuple[str, str] | None:
    """Why a finished shard is stale, and an example; None if it is up to date."""
    found = FlowContract.from_dict(values["flow_contract"])
    if found != contract:
        return "its flow contract differs", differences(found, contract)
    if values["shard"] is not None and sizes.get(values["shard"]) != values["bytes"]:
        return "the file is not there in the size that was written", values["shard"]
    for entry in values["clips"]:
        clip_id, size, *labels = entry["identity"]
        if clip_id not in wanted:
            return "the catalog no longer has one of the clips", clip_id
        if wanted[clip_id].size_bytes != size:
            return "a video has changed", clip_id
        if clip_identity(wanted[clip_id])[2:] != labels:
            return "labels or splits have changed", clip_id
    for entry in values["quarantined"]:
        clip_id, reason = entry["identity"][0], entry["reason"]
        if clip_id not in wanted or clip_identity(wanted[clip_id]) != entry["identity"]:
            return "a quarantined video has changed or is gone", clip_id
        if values["max_frames"] != max_frames and reason.startswith(TooLongError.__name__):
            return "max_frames has changed", clip_id
        if _was_away(reason, wanted[clip_id]):
            return "a video that could not be read is tried again", clip_id
    return None


def _was_away(reason: str, clip: Clip) -> bool:
    """Whether a listed clip was unavailable then; missing flow images do not count."""
    return reason.startswith((AccessError.__name__, MissingError.__name__)) and not any(
        uri in reason for uri in clip.flow_uris
    )


def _ids(entries: Sequence[Mapping[str, Any]]) -> set[str]:
    return {entry["identity"][0] for entry in entries}


def refuse_loss(standing: IngestState, *, clips: Sequence[Clip], root: str, replaced: bool) -> None:
    """Refuse to bring a shard set up to date where that would drop finished shards of another data set, or of a folder
    that may only be unavailable at the moment, unless they are to be `replaced`; and where it would overwrite files
    that are not part of a shard set.

    Raises:
        ConfigError: it would; the message says what is there.
        ShardError: the manifest there is damaged.
        StorageError: `out` cannot be read.
    """
    out = standing.out
    named = _refuse_files_of_others(out, replaced=replaced)
    if replaced:
        return
    held = {
        entry["identity"][0]: entry["identity"][1]
        for values in [*standing.kept, *(one.record for one in standing.stale)]
        for entry in values["clips"]
    }
    ways_out = "choose another --out, or --replace true to delete those shards once the new ones are there"
    if (
        unrecorded := named
        - {values["shard"] for values in standing.kept}
        - {one.record["shard"] for one in standing.stale}
    ):
        raise ConfigError(
            f"{out} holds a set whose shards, as {min(unrecorded)}, have no record in parts/, so that nothing of it "
            f"could be kept: {ways_out}"
        )
    if not held:
        return
    now = {clip.clip_id: clip.size_bytes for clip in clips}
    if not any(now.get(clip_id) == size for clip_id, size in held.items()):
        raise ConfigError(
            f"{out} holds the finished shards of another data set: none of its {len(held)} clips, as {min(held)}, is "
            f"in the catalog of {root} in the same size: {ways_out}"
        )
    folders = {str(PurePosixPath(clip_id).parent) for clip_id in now}
    gone = sorted(clip_id for clip_id in held if str(PurePosixPath(clip_id).parent) not in folders)
    if gone:
        raise ConfigError(
            f"{out} holds finished shards with {len(gone)} clips of folders in which the catalog of {root} has none "
            f"now, as {gone[0]}: run again when they can be read; if they are gone for good, {ways_out}"
        )


def _refuse_files_of_others(out: str, *, replaced: bool) -> set[str]:
    """Refuse to overwrite files that ingest did not write; returns the shard names in the existing manifest."""
    named: set[str] = set()
    uri = storage.join(out, "manifest.json")
    way_out = "move it away, or choose another --out"
    if storage.exists(uri):
        content = storage.read_bytes(uri, limit_bytes=json_files.LIMIT_BYTES)
        values = json_files.parse_json(
            content, _FORMAT_ONLY, where=uri, what="a manifest of shards", way_out=way_out, error=ShardError
        )
        if values["format"] == FORMAT:
            named = set(read_manifest(content, where=uri, way_out=way_out).shard_names)
        elif not replaced:
            raise ConfigError(
                f"{uri} has format {values['format']}, this version writes format {FORMAT}: choose another --out, or "
                "--replace true to write over it"
            )
    for name, is_own in (("index.parquet", _is_index), ("quarantine.csv", _is_quarantine)):
        uri = storage.join(out, name)
        if storage.exists(uri) and not is_own(uri):
            raise ConfigError(f"{uri} is not one that ingest wrote, but would be written over: {way_out}")
    return named


def _is_index(uri: str) -> bool:
    try:
        return _footer(uri) in (INDEX_SCHEMA, INDEX_SCHEMA_WITH_GROUPS)
    except (OSError, UnicodeDecodeError, pa.ArrowException):
        return False


def _is_quarantine(uri: str) -> bool:
    content = storage.read_bytes(uri, limit_bytes=json_files.LIMIT_BYTES)
    # Earlier versions did not say which splits a video is of.
    return content.startswith(tuple(f"{','.join(QUARANTINE_COLUMNS[:count])}\n".encode() for count in (4, 5)))


def _is_shard(uri: str) -> bool:
    try:
        return b"flow_contract" in (_footer(uri).metadata or {})
    except (OSError, UnicodeDecodeError, pa.ArrowException):
        return False


def _footer(uri: str) -> pa.Schema:
    def read() -> pa.Schema:
        with storage.open_regular(uri) as file:
            return pq.read_schema(file)

    return storage.patiently(read, uri=uri)


def delete_stale(standing: IngestState, *, written: Sequence[Mapping[str, Any]]) -> list[str]:
    """Delete stale shards and their records, except those in `written`; returns notes on deleted and foreign files.

    Call it only after the new manifest is written.

    Raises:
        StorageError: `out` cannot be written.
    """
    keys = {values["key"] for values in written}
    shards = {values["shard"] for values in written}
    foreign = [path for path in standing.foreign if path.removeprefix("shards/") not in shards]
    for path in standing.partial:
        storage.delete(storage.join(standing.out, path))
    for one in standing.stale:
        key, shard = one.record["key"], one.record["shard"]
        if shard is not None and shard not in shards and shard in standing.sizes:
            uri = storage.join(standing.out, "shards", shard)
            if standing.sizes[shard] == one.record["bytes"] and _is_shard(uri):
                storage.delete(uri)
            else:
                foreign.append(f"shards/{shard}")
        if key not in keys:
            storage.delete(storage.join(standing.out, "parts", f"{key}.json"))
    return [*stale_notes(standing.stale, "went"), *_foreign_notes(standing.out, foreign)]


def stale_notes(stale: Sequence[StaleShard], verb: str) -> list[str]:
    """Sentences on how many finished shards are deleted and why; the `verb` is "will go" or "went"."""
    with_rows = [one for one in stale if one.record["shard"] is not None]
    examples = {one.why: one.example for one in reversed(with_rows)}
    counts = Counter(one.why for one in with_rows)
    return [
        f"{count} finished shard{'s' * (count > 1)} {verb}: {why}, for example {examples[why]}"
        for why, count in counts.items()
    ]


def _foreign_notes(out: str, foreign: Sequence[str]) -> list[str]:
    if not foreign:
        return []
    count = f"{len(foreign)} files" if len(foreign) > 1 else "1 file"
    return [f"{count} in parts/ and shards/ of {out} that no record names, left alone: for example {min(foreign)}"]
