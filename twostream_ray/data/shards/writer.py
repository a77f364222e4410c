"""Shard writer: plans shards, writes rows and a record per shard, then index, quarantine table and manifest."""

from __future__ import annotations

import csv
import hashlib
import io
import json
import zlib
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from twostream_ray import storage
from twostream_ray.data.encoded_clip import EncodedClip
from twostream_ray.data.flow import FlowContract
from twostream_ray.data.shards.index import INDEX_SCHEMA, INDEX_SCHEMA_WITH_GROUPS
from twostream_ray.data.shards.manifest import FORMAT
from twostream_ray.data.shards.records import QUARANTINE_COLUMNS, clip_identity
from twostream_ray.data.shards.shards import ROWS_PER_GROUP, SCHEMA, fields_crc32
from twostream_ray.data.sources.catalog import Clip
from twostream_ray.data.sources.splits import group_of_name
from twostream_ray.data.video import encoder
from twostream_ray.errors import MissingError
from twostream_ray.storage.temporary_folders import temporary_folder


@dataclass(frozen=True, kw_only=True, slots=True)
class ShardPlan:
    """One shard to be written: which clips, in which order."""

    key: str
    """Content address: 16 hexadecimal digits over the clips' identities, the flow contract and the versions of
    the encoder."""

    clips: tuple[Clip, ...]
    """The rows, in order, except those that turn out to be unusable."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Quarantined:
    """A video that could not be used."""

    uri: str
    clip_id: str
    reason: str
    sha256: str


def plan_shards(clips: Sequence[Clip], *, contract: FlowContract, rows_per_shard: int) -> list[ShardPlan]:
    """Clips shuffled by a hash of their name and cut into shards; the same clips, settings and versions of the encoder
    always give the same plan.

    Removing whole planned shards from `clips` leaves the plan of the rest unchanged, so an interrupted ingest can be
    planned again over what is missing.
    """
    shuffled = sorted(clips, key=lambda clip: hashlib.blake2b(clip.clip_id.encode(), digest_size=8).digest())
    return [
        _planned(shuffled[start : start + rows_per_shard], contract=contract)
        for start in range(0, len(shuffled), rows_per_shard)
    ]


def _planned(clips: Sequence[Clip], *, contract: FlowContract) -> ShardPlan:
    identity = json.dumps([FORMAT, contract.hash, encoder.versions(), [clip_identity(clip) for clip in clips]])
    return ShardPlan(key=hashlib.sha256(identity.encode()).hexdigest()[:16], clips=tuple(clips))


class ShardWriter:
    """Writes one shard, a row group at a time, and its record in parts/ when it is whole.

    Rows wait for their row group, and the shard for its end, in a temporary directory: a task holds one clip, however
    long the others are.
    """

    def __init__(self, plan: ShardPlan, *, out: str, contract: FlowContract, max_frames: int | None = None) -> None:
        """`out` is the shard set's directory or prefix; max_frames is what longer clips were quarantined by."""
        self._plan, self._out, self._contract, self._max_frames = plan, out, contract, max_frames
        self._folder = temporary_folder()
        self._shard, self._waiting = (Path(self._folder.name) / name for name in ("shard", "waiting"))
        self._writer = pq.ParquetWriter(
            self._shard,
            SCHEMA.with_metadata({b"flow_contract": json.dumps(contract.to_dict(), sort_keys=True).encode()}),
            # Video and JPEG are compressed already.
            compression="none",
            use_dictionary=["class_name"],
            write_statistics=["clip_id", "label", "num_frames"],
        )
        self._spool: pa.RecordBatchStreamWriter | None = None
        self._kept: list[dict[str, Any]] = []
        self._bad: list[Quarantined] = []

    def add(self, clip: Clip, encoded: EncodedClip, *, source_sha256: str) -> None:
        """Append a clip with both its streams as the next row."""
        video, fields = (
            encoded.video or b"",
            [encoded.flow[index] for index in range(encoded.num_frames - 1)] if encoded.flow else [],
        )
        row = {
            "clip_id": clip.clip_id,
            "label": clip.label,
            "class_name": clip.class_name,
            "splits": list(clip.splits),
            "num_frames": encoded.num_frames,
            "height": encoded.height,
            "width": encoded.width,
            "fps": encoded.fps,
            "source_sha256": source_sha256,
            "video_crc32": zlib.crc32(video),
            "flow_crc32": fields_crc32(fields),
            "video": video,
            "flow": fields,
        }
        if self._spool is None:
            self._spool = pa.ipc.new_stream(self._waiting, SCHEMA)
        self._spool.write_batch(pa.RecordBatch.from_pylist([row], schema=SCHEMA))
        self._kept.append(
            {
                "identity": clip_identity(clip),
                "num_frames": encoded.num_frames,
                "seconds": encoded.num_frames / encoded.fps,
            }
            | ({"notes": list(encoded.notes)} if encoded.notes else {})
        )
        if len(self._kept) % ROWS_PER_GROUP == 0:
            self._flush()

    def quarantine(self, clip: Clip, *, reason: str, sha256: str) -> None:
        """Record a clip that cannot be used."""
        self._bad.append(Quarantined(uri=clip.uri, clip_id=clip.clip_id, reason=reason, sha256=sha256))

    def _flush(self) -> None:
        if self._spool is not None:
            self._spool.close()
            self._spool = None
            with pa.memory_map(str(self._waiting)) as file:
                self._writer.write_table(pa.ipc.open_stream(file).read_all(), row_group_size=ROWS_PER_GROUP)

    def finish(self) -> dict[str, Any]:
        """Store the shard, then its record, and return the record.

        The record comes last: a shard without one does not count and is written again.

        Raises:
            StorageError: `out` cannot be written.
        """
        self._flush()
        self._writer.close()
        name = f"{self._plan.key}-{len(self._kept)}.parquet" if self._kept else None
        if name:
            storage.write_file(storage.join(self._out, "shards", name), self._shard)
        with self._shard.open("rb") as file:
            sha256 = hashlib.file_digest(file, "sha256").hexdigest()
        size = self._shard.stat().st_size
        self._folder.cleanup()
        identities = {clip.clip_id: clip_identity(clip) for clip in self._plan.clips}
        part = {
            "format": FORMAT,
            "key": self._plan.key,
            "flow_contract": self._contract.to_dict(),
            "max_frames": self._max_frames,
            "encoder": encoder.versions(),
            "shard": name,
            "bytes": size if name else 0,
            "sha256": sha256 if name else None,
            "clips": self._kept,
            "quarantined": [
                {"identity": identities[bad.clip_id], "uri": bad.uri, "reason": bad.reason, "sha256": bad.sha256}
                for bad in self._bad
            ],
        }
        storage.write_bytes(
            storage.join(self._out, "parts", f"{self._plan.key}.json"), json.dumps(part, sort_keys=True).encode()
        )
        return part


def record_of_missing(clips: Sequence[Clip]) -> dict[str, Any]:
    """A record that quarantines listed clips whose file is missing, for `write_manifest`.

    Unlike records of shards it is not stored, so a later ingest checks again.
    """
    reason = f"{MissingError.__name__}: a list names it, but it does not exist: add it, or remove its line"
    quarantined = [{"identity": clip_identity(clip), "uri": clip.uri, "reason": reason, "sha256": ""} for clip in clips]
    return {"key": "", "shard": None, "bytes": 0, "clips": [], "quarantined": quarantined}


def write_quarantine(out: str, *, parts: Sequence[dict[str, Any]]) -> None:
    """Write quarantine.csv.

    Raises:
        StorageError: `out` cannot be written.
    """
    bad = [entry for part in parts for entry in part["quarantined"]]
    storage.write_bytes(storage.join(out, "quarantine.csv"), _as_csv(bad).encode())


def write_manifest(
    out: str,
    *,
    parts: Sequence[dict[str, Any]],
    classes: Sequence[str],
    contract: FlowContract,
    head_classes: Sequence[int] = (),
    groups: Mapping[str, str] | None = None,
    data_set: str = "",
) -> None:
    """Write index, quarantine table and manifest of finished shards, in an order that depends only on their content.

    `groups`: clip id -> the source that it was cut from, where that is known; the index has a column of them where one
    is another than the clip's name says. `data_set`: its name; without one the manifest is as it was before.

    Raises:
        StorageError: `out` cannot be written.
    """
    ordered = sorted(parts, key=lambda part: str(part["key"]))
    with_rows = [part for part in ordered if part["shard"]]
    rows = [
        {
            "clip_id": entry["identity"][0],
            "label": entry["identity"][2],
            "splits": entry["identity"][4],
            "num_frames": entry["num_frames"],
            "shard": shard,
            "row": row,
        }
        for shard, part in enumerate(with_rows)
        for row, entry in enumerate(part["clips"])
    ]
    index = io.BytesIO()
    pq.write_table(_index_of(rows, groups=groups or {}), index)
    bad = [entry for part in ordered for entry in part["quarantined"]]
    splits = Counter(split for row in rows for split in row["splits"])
    bad_splits = Counter(split for entry in bad for split in entry["identity"][4])
    manifest: dict[str, Any] = {
        "format": FORMAT,
        "classes": list(classes),
        "head_classes": list(head_classes),
        "flow_contract": contract.to_dict(),
        "flow_contract_hash": contract.hash,
        "clips": len(rows),
        "frames": sum(row["num_frames"] for row in rows),
        "quarantined": len(bad),
        "splits": dict(sorted(splits.items())),
        "quarantined_by_split": dict(sorted(bad_splits.items())),
        "index_sha256": hashlib.sha256(index.getvalue()).hexdigest(),
        "shards": [
            {"name": part["shard"], "rows": len(part["clips"]), "bytes": part["bytes"], "sha256": part["sha256"]}
            for part in with_rows
        ],
    }
    if bad and len(head_classes) > 1:
        manifest["quarantined_by_head"] = _by_head(bad, head_classes)
    manifest |= {"data_set": data_set} if data_set else {}
    storage.write_bytes(storage.join(out, "index.parquet"), index.getvalue())
    write_quarantine(out, parts=ordered)
    storage.write_json(storage.join(out, "manifest.json"), manifest)


def _index_of(rows: Sequence[Mapping[str, Any]], *, groups: Mapping[str, str]) -> pa.Table:
    named = [group_of_name(row["clip_id"]) for row in rows]
    known = [groups.get(row["clip_id"]) or name for row, name in zip(rows, named, strict=True)]
    if known == named:  # as it was before there was such a column: the set's hash stays what it was
        return pa.Table.from_pylist(rows, schema=INDEX_SCHEMA)
    grouped = [{**row, "group": group} for row, group in zip(rows, known, strict=True)]
    return pa.Table.from_pylist(grouped, schema=INDEX_SCHEMA_WITH_GROUPS)


def _by_head(bad: Sequence[dict[str, Any]], head_classes: Sequence[int]) -> dict[str, list[int]]:
    """Quarantined clips of each split by data set, in the order of `head_classes`."""
    head_of_class = np.repeat(np.arange(len(head_classes)), head_classes)
    counts: dict[str, list[int]] = {}
    for entry in bad:
        for split in entry["identity"][4]:
            counts.setdefault(split, [0] * len(head_classes))[head_of_class[entry["identity"][2]]] += 1
    return dict(sorted(counts.items()))


def _as_csv(bad: Sequence[dict[str, Any]]) -> str:
    text = io.StringIO()
    table = csv.DictWriter(text, QUARANTINE_COLUMNS, lineterminator="\n")
    table.writeheader()
    for entry in sorted(bad, key=lambda entry: str(entry["uri"])):
        row = {name: entry[name] for name in ("uri", "reason", "sha256")}
        table.writerow({"clip_id": entry["identity"][0], **row, "splits": json.dumps(entry["identity"][4])})
    return text.getvalue()
