"""Score table: cached logits of every view of every clip by every tower, as a Parquet dataset of an evaluation.

    OUT/scores/table.json          record: data, model, protocol, classes, expected and quarantined clips
    OUT/scores/part-00000.parquet  a row per (clip, view, tower) of the clips of one block

A block is part of a row group of the shards, determined by manifest and split alone. Its part is written atomically and
names the table it belongs to, so an existing part is finished, whichever process wrote it.
"""

from __future__ import annotations

import io
import json
import logging
import re
import shlex
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, fields
from typing import Any, TypeVar

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from twostream_ray import storage
from twostream_ray.data.views import ViewKey
from twostream_ray.errors import ConfigError, StorageError
from twostream_ray.redaction import one_line
from twostream_ray.runs.score.table_record import TableRecord, parse_record

FOLDER, TABLE = "scores", "table.json"
"""Folder below an evaluation's output, and the record's file in it."""

_PART = re.compile(r"part-(\d{5,9})\.parquet")
_ABOUT = b"twostream_ray"
_READERS = 8
_LIMIT_BYTES = 4 << 30
_Item = TypeVar("_Item")
_Result = TypeVar("_Result")

_log = logging.getLogger(__name__)

_SCHEMA = pa.schema(
    [
        ("clip", pa.int32()),
        ("clip_id", pa.string()),
        ("label", pa.int32()),
        ("group", pa.string()),
        ("view", pa.int16()),
        ("time", pa.int16()),
        ("crop", pa.string()),
        ("mirrored", pa.bool_()),
        ("tower", pa.string()),
        ("logits", pa.list_(pa.float32())),
    ]
)


@dataclass(frozen=True, kw_only=True, eq=False)
class ScoreTable(TableRecord):
    """Scores of clips and the table's record; a complete table has all n clips, a part of it fewer."""

    uri: str
    """Folder of the table."""
    positions: NDArray[np.int64]
    """(n,) position of each clip in the shard set's index, ascending in a complete table."""
    clip_ids: NDArray[np.str_]
    """(n,) names of the clips."""
    labels: NDArray[np.int64]
    """(n,) true classes, in [0, K)."""
    groups: NDArray[np.str_] | None
    """(n,) group of each clip (the video it was cut from), its own name if it has none; None if no clip has one."""
    logits: NDArray[np.float32] = field(repr=False)
    """(n, V, S, K)."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ClipLogits:
    """Logits of one clip."""

    position: int
    """Position in the shard set's index."""
    clip_id: str
    """Name of the clip."""
    label: int
    """True class, in [0, K)."""
    group: str | None
    """Group of the clip (the video it was cut from); None if unknown."""
    logits: NDArray[np.float32]
    """(V, S, K)."""


def part_name(block: int) -> str:
    """File name of a block's part."""
    return f"part-{block:05d}.parquet"


def encode_part(about: TableRecord, clips: Sequence[ClipLogits]) -> bytes:
    """A part as Parquet: a row per (clip, view, tower), in this order; deterministic bytes."""
    shape = (len(about.views), len(about.towers), len(about.classes))
    for clip in clips:
        if clip.logits.shape != shape:
            raise ValueError(f"clip {clip.clip_id}: logits {shape} were wanted, got {clip.logits.shape}")
    rows = shape[0] * shape[1]
    columns = {
        name: [getattr(clip, of) for clip in clips for _ in range(rows)]
        for name, of in (("clip", "position"), ("clip_id", "clip_id"), ("label", "label"), ("group", "group"))
    }
    columns |= {name: of_a_clip * len(clips) for name, of_a_clip in _columns_of_a_clip(about).items()}
    arrays = [pa.array(columns[name], _SCHEMA.field(name).type) for name in _SCHEMA.names[:-1]]
    ends = np.arange(len(clips) * rows + 1, dtype=np.int32) * shape[2]
    values = np.concatenate([clip.logits.reshape(-1) for clip in clips]).astype(np.float32)
    arrays.append(pa.ListArray.from_arrays(pa.array(ends), pa.array(values)))
    schema = _SCHEMA.with_metadata({_ABOUT: json.dumps(about.to_dict(), sort_keys=True)})
    content = io.BytesIO()
    texts = [name for name in _SCHEMA.names if _SCHEMA.field(name).type == pa.string()]
    rows_of_clips = pa.Table.from_arrays(arrays, schema=schema)
    pq.write_table(rows_of_clips, content, compression="zstd", use_dictionary=texts, write_page_checksum=True)
    return content.getvalue()


def begin_table(out: str, about: TableRecord, *, blocks: Sequence[Sequence[int]]) -> frozenset[int]:
    """Start or resume the table below `out`; returns the numbers of the finished blocks.

    Complete parts of the same identity are kept; a table of another identity is replaced.

    Args:
        out: the evaluation's output.
        about: the table's record.
        blocks: positions of each block's clips, ascending.

    Raises:
        ConfigError: the folder has files that `evaluate` did not write.
        StorageError: `out` cannot be read or written.
    """
    folder = storage.join(storage.absolute(out), FOLDER)
    before = _own_record(folder)
    parts = _parts_in(folder)
    kept: set[int] = set()
    if before is not None and before.identity == about.identity:
        there = [block for block in sorted(parts) if block < len(blocks)]
        found = _in_threads(lambda block: _clips_of(storage.join(folder, parts[block]), about), there)
        kept = {block for block, clips in zip(there, found, strict=True) if clips == list(blocks[block])}
        if kept and before.commit != about.commit:
            _log.warning(
                "%d of %d parts of %s are kept, which were scored by code of commit %s: delete the folder to have all "
                "scored by the current one (%s)",
                *(len(kept), len(blocks), folder, before.commit, about.commit),
            )
    for block, name in parts.items():
        if block not in kept:
            storage.delete(storage.join(folder, name))
    # After the deletion: parts without their record, or beside another one, could not be attributed to a table.
    if not kept or before is None:
        storage.write_json(storage.join(folder, TABLE), about.to_dict())
    return frozenset(kept)


def refuse_foreign_table(out: str, *, verb: str) -> None:
    """Refuse to write a table over files that `verb` did not write.

    Raises:
        ConfigError: names the file and the way out.
    """
    folder = storage.join(storage.absolute(out), FOLDER)
    if _own_record(folder, verb=verb) is None and (parts := _parts_in(folder)):
        raise _foreign_file(storage.join(folder, min(parts.values())), verb=verb)


def read_record(uri: str) -> tuple[str, TableRecord]:
    """The folder and the record of a table; `uri` is that folder or the output of the evaluation.

    Raises:
        StorageError: the table is missing, damaged or of another version.
    """
    path = storage.absolute(uri)
    folders = [storage.join(path, FOLDER), path]
    folder = next((one for one in folders if storage.exists(storage.join(one, TABLE))), None)
    if folder is None:
        raise StorageError(
            f"a score table was wanted at {uri}, but there is no {FOLDER}/{TABLE}: give the folder that `twostream "
            "evaluate --out` wrote"
        )
    return folder, parse_record(storage.read_bytes(storage.join(folder, TABLE)), where=storage.join(folder, TABLE))


def has_table(uri: str) -> bool:
    """Whether `uri` is a score table's folder or an evaluation's output with one."""
    path = storage.absolute(uri)
    return any(storage.exists(storage.join(one, TABLE)) for one in (storage.join(path, FOLDER), path))


def iter_parts(uri: str) -> Iterator[ScoreTable]:
    """Iterate over the parts of a complete table, which may be larger than memory.

    Raises:
        StorageError: the table is missing, damaged, of another version, or incomplete.
    """
    folder, about = read_record(uri)
    parts = _parts_in(folder)
    unknown = sorted(block for block in parts if block >= about.num_blocks)
    if unknown:
        raise _damaged(storage.join(folder, parts[unknown[0]]), f"the table has {about.num_blocks} parts")
    if len(parts) < about.num_blocks:
        raise _incomplete(folder, about, parts)
    seen: set[int] = set()
    for start in range(0, about.num_blocks, _READERS):
        names = [parts[block] for block in range(start, min(start + _READERS, about.num_blocks))]
        for part in _in_threads(lambda name: _read_part(storage.join(folder, name), about, uri=folder), names):
            positions = part.positions.tolist()
            if twice := sorted(seen.intersection(positions)):
                raise _damaged(folder, f"clip {twice[0]} is in two parts")
            seen.update(positions)
            yield part
    if len(seen) != about.num_clips:
        raise _damaged(folder, f"its parts have {len(seen)} clips of {about.num_clips}")


def read_table(uri: str) -> ScoreTable:
    """Read a complete table, clips in the order of the shard set's index.

    Args:
        uri: the output of `evaluate`, or its folder scores.

    Raises:
        StorageError: the table is missing, damaged, of another version, or incomplete: names the number of missing
            clips and the command that scores them.
    """
    return _joined(list(iter_parts(uri)))


def _joined(parts: Sequence[ScoreTable]) -> ScoreTable:
    positions = np.concatenate([part.positions for part in parts])
    order = np.argsort(positions)
    groups = [part.clip_ids if part.groups is None else part.groups for part in parts]
    values = {one.name: getattr(parts[0], one.name) for one in fields(ScoreTable)}
    values |= {
        name: np.concatenate([getattr(part, name) for part in parts])[order]
        for name in ("clip_ids", "labels", "logits")
    }
    grouped = any(part.groups is not None for part in parts)
    values |= {"positions": positions[order], "groups": np.concatenate(groups)[order] if grouped else None}
    return ScoreTable(**values)


def _parts_in(folder: str) -> dict[int, str]:
    """Block -> file name of the existing parts."""
    if not storage.exists(folder):
        return {}
    named = ((name, _PART.fullmatch(name)) for name, _ in storage.list_files(folder))
    return {int(match[1]): name for name, match in named if match}


def _own_record(folder: str, *, verb: str = "evaluate") -> TableRecord | None:
    """The record of the table in `folder`; None without one.

    Raises:
        ConfigError: a file that `verb` did not write is in its place.
    """
    uri = storage.join(folder, TABLE)
    if not storage.exists(uri):
        return None
    try:
        return parse_record(storage.read_bytes(uri), where=uri)
    except StorageError as error:
        raise _foreign_file(uri, verb=verb) from error


def _foreign_file(uri: str, *, verb: str) -> ConfigError:
    return ConfigError(
        f"{verb} wants to write {uri}, where there is a file that it did not write (or an earlier version did): move "
        "it away, or choose another --out"
    )


def _clips_of(path: str, about: TableRecord) -> list[int] | None:
    """Positions of a part's clips; None if it is damaged or belongs to another table."""
    content = storage.read_bytes(path, limit_bytes=_LIMIT_BYTES)
    try:
        return sorted(_parse_part(content, about, path=path, uri=path).positions.tolist())
    except StorageError:
        return None


def _read_part(path: str, about: TableRecord, *, uri: str) -> ScoreTable:
    return _parse_part(storage.read_bytes(path, limit_bytes=_LIMIT_BYTES), about, path=path, uri=uri)


def _parse_part(content: bytes, about: TableRecord, *, path: str, uri: str) -> ScoreTable:
    try:
        file = pq.ParquetFile(io.BytesIO(content), page_checksum_verification=True)
        found = file.schema_arrow
        if not found.equals(_SCHEMA):
            raise _damaged(path, f"it has the columns {', '.join(found.names)[:200]}")
        stored = json.loads((found.metadata or {}).get(_ABOUT, b"{}"))
        if not isinstance(stored, dict) or stored.get("identity") != about.identity:
            raise _damaged(path, "it belongs to another table")
        table = file.read()
        table.validate(full=True)
    except (OSError, ValueError, pa.ArrowException) as error:
        raise _damaged(path, one_line(error, longest=200)) from error
    return _checked_part(table, about, path=path, uri=uri)


def _checked_part(table: pa.Table, about: TableRecord, *, path: str, uri: str) -> ScoreTable:
    """A part's rows as arrays, after checking that it has each (clip, view, tower) once, in order."""
    shape = (len(about.views), len(about.towers), len(about.classes))
    rows = shape[0] * shape[1]
    count, rest = divmod(table.num_rows, rows)
    if not count or rest or any(table[name].null_count for name in _SCHEMA.names if name != "group"):
        raise _damaged(path, f"it has {table.num_rows} rows, not a multiple of {rows} per clip, or empty values")
    columns = {name: np.asarray(table[name].to_pylist(), dtype=object) for name in _SCHEMA.names[:-1]}
    of_clips = {name: columns[name].reshape(count, rows) for name in ("clip", "clip_id", "label", "group")}
    lists = table["logits"].combine_chunks()
    values = lists.flatten()
    labels = of_clips["label"][:, 0].astype(np.int64)
    wrong = {
        name: not np.array_equal(columns[name], np.tile(of, count)) for name, of in _columns_of_a_clip(about).items()
    }
    wrong |= {name: bool((column != column[:, :1]).any()) for name, column in of_clips.items()}
    wrong["label"] |= bool((labels < 0).any() or (labels >= shape[2]).any())
    wrong["logits"] = values.null_count > 0 or set(np.diff(lists.offsets.to_numpy()).tolist()) != {shape[2]}
    if found := [name for name, is_wrong in wrong.items() if is_wrong]:
        raise _damaged(path, f"its column {found[0]} is not that of this table")
    ids, groups = of_clips["clip_id"][:, 0], of_clips["group"][:, 0]
    is_grouped = any(group is not None for group in groups)
    named = np.asarray([group or own for group, own in zip(groups, ids, strict=True)]) if is_grouped else None
    return ScoreTable(
        **{one.name: getattr(about, one.name) for one in fields(TableRecord)},
        uri=uri,
        positions=of_clips["clip"][:, 0].astype(np.int64),
        clip_ids=ids.astype(np.str_),
        labels=labels,
        groups=named,
        logits=values.to_numpy().reshape(count, *shape),
    )


def _columns_of_a_clip(about: TableRecord) -> dict[str, list[Any]]:
    """The columns that are the same for every clip: view, time, crop, mirrored and tower."""
    numbered = [(number, view) for number, view in enumerate(about.views) for _ in about.towers]
    return {
        "view": [number for number, _ in numbered],
        **{name: [getattr(view, name) for _, view in numbered] for name in ViewKey._fields},
        "tower": list(about.towers) * len(about.views),
    }


def _incomplete(folder: str, about: TableRecord, parts: Mapping[int, str]) -> StorageError:
    read = _in_threads(lambda name: _read_part(storage.join(folder, name), about, uri=folder), list(parts.values()))
    missing = about.num_clips - sum(len(part.positions) for part in read)
    return StorageError(
        f"{folder} lacks {missing} of {about.num_clips} clips, as its evaluation is unfinished: `{about.command} --out "
        f"{shlex.quote(folder.removesuffix('/' + FOLDER))}` scores them and keeps the others"
    )


def _damaged(path: str, fault: str) -> StorageError:
    return StorageError(
        f"scores of `twostream evaluate` were wanted at {path}, but it is damaged ({fault}): delete it and run the "
        "same evaluation again, which keeps the other parts"
    )


def _in_threads(work: Callable[[_Item], _Result], items: Sequence[_Item]) -> list[_Result]:
    """Map `work` over items in threads, in order: most of the time is spent waiting for a store."""
    with ThreadPoolExecutor(_READERS) as threads:
        return list(threads.map(work, items))
