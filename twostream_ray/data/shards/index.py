"""Index of a shard set: one row per clip, read batch-wise into columns of the narrowest integer types.

For 100 million clips it takes 4 GB, two thirds of it clip ids, and must be read in well under a minute: no code
here creates a Python object per clip. Duplicate ids are found by their hashes.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, BinaryIO

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from twostream_ray.data.shards.manifest import Manifest, named_columns
from twostream_ray.errors import ShardError
from twostream_ray.redaction import one_line

LIMIT_BYTES = 64 << 30
"""Maximum file size, enough for a billion clips."""

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
"""The file's columns."""

INDEX_SCHEMA_WITH_GROUPS = INDEX_SCHEMA.append(pa.field("group", pa.string()))
"""The file's columns if groups differ from those parsed from clip ids."""

_NUMBERS = ("label", "num_frames", "shard", "row")
_AT_ONCE = 1 << 17
"""Clips per batch: their columns fit into a processor's cache."""
_FEW = 1 << 24
_WORD_BYTES = 8
_MULTIPLIER = np.uint64(0x9E3779B97F4A7C15)
_MASKS = np.array([(1 << 8 * count) - 1 for count in range(_WORD_BYTES + 1)], np.uint64)


def read_index(file: BinaryIO, manifest: Manifest, *, where: str) -> pa.Table:
    """Read and validate an open index.parquet: unique clips, existing rows, labels in range.

    Integers are 16-bit where possible, and `splits` is dictionary-encoded, with one value per distinct list of
    splits.

    Raises:
        ShardError: the file is not an index, or contradicts its manifest.
    """
    try:
        parquet = pq.ParquetFile(file, pre_buffer=False)  # which would read whole row groups ahead of the batches
        if parquet.schema_arrow not in (INDEX_SCHEMA, INDEX_SCHEMA_WITH_GROUPS):
            raise ShardError(
                f"{where} has the columns {named_columns(parquet.schema_arrow)}, wanted were "
                f"{named_columns(INDEX_SCHEMA)}: run `twostream ingest` again"
            )
        if parquet.metadata.num_rows != manifest.clips:
            raise ShardError(
                f"{where} has {parquet.metadata.num_rows} clips, its manifest {manifest.clips}: run `twostream ingest` "
                "again"
            )
        reading = _Reading(manifest, where=where)
        batches = parquet.iter_batches(_AT_ONCE)
        with ThreadPoolExecutor(1, thread_name_prefix="index-reader") as ahead:
            batch = next(batches, None)
            while batch is not None:
                following = ahead.submit(next, batches, None)
                batch.validate(full=True)
                reading.add(batch)
                batch = following.result()
    except (OSError, UnicodeDecodeError, MemoryError, pa.ArrowException) as error:
        raise ShardError(
            f"{where} is not a readable index of shards ({one_line(error)}): run `twostream ingest` again"
        ) from error
    return reading.table()


class _Reading:
    """Accumulates the batches of an index and checks them against its manifest."""

    def __init__(self, manifest: Manifest, *, where: str) -> None:
        self._manifest, self._where = manifest, where
        self._rows_of_shard = np.asarray(manifest.shard_rows, np.int64)
        self._num_read = self._num_frames = 0
        self._numbers = {name: np.empty(manifest.clips, np.int16) for name in (*_NUMBERS, "splits")}
        self._texts: dict[str, list[pa.Array]] = {}
        self._code_of_splits: dict[tuple[str, ...], int] = {}
        self._hashes = np.empty(manifest.clips, np.uint64)
        self._last_position, self._is_in_order = -1, True

    def add(self, batch: pa.RecordBatch) -> None:
        """Append a batch.

        Raises:
            ShardError: they contradict the manifest.
        """
        if not len(batch):
            return
        if any(column.null_count for column in batch.columns) or batch["splits"].flatten().null_count:
            raise ShardError(f"{self._where} has empty values: run `twostream ingest` again")
        self._refuse("clips", self._num_read + len(batch) > self._manifest.clips)
        label, frames, shard, row = (batch[name].to_numpy().astype(np.int64) for name in _NUMBERS)
        rows = self._rows_of_shard
        self._refuse("label", ((label < 0) | (label >= len(self._manifest.classes))).any())
        self._refuse("num_frames", (frames < 1).any())
        self._refuse("shard", ((shard < 0) | (shard >= len(rows))).any())
        self._refuse("row", ((row < 0) | (row >= rows[shard])).any())
        self._num_frames += int(frames.sum())
        position = shard << 32 | row
        self._is_in_order &= bool((np.diff(position, prepend=self._last_position) > 0).all())
        self._last_position = int(position[-1])
        codes, known = splits_by_code(batch["splits"])
        of_set = [self._code_of_splits.setdefault(tuple(names), len(self._code_of_splits)) for names in known]
        numbers = {"label": label, "num_frames": frames, "shard": shard, "row": row}
        for name, values in (numbers | {"splits": np.asarray(of_set)[codes]}).items():
            self._put(name, values)
        for name in ("clip_id", "group"):
            if name in batch.schema.names:
                self._texts.setdefault(name, []).append(_copied(batch[name]))
        self._hashes[self._num_read : self._num_read + len(batch)] = text_hashes(batch["clip_id"])
        self._num_read += len(batch)

    def _put(self, name: str, values: NDArray[np.int64]) -> None:
        column = self._numbers[name]
        if int(values.max()) > np.iinfo(column.dtype).max:
            column = self._numbers[name] = column.astype(np.int32)
        column[self._num_read : self._num_read + len(values)] = values

    def _refuse(self, what: str, is_wrong: Any) -> None:
        if is_wrong:
            raise ShardError(f"the {what} in {self._where} contradicts its manifest: run `twostream ingest` again")

    def table(self) -> pa.Table:
        """The index.

        Raises:
            ShardError: its totals contradict the manifest, or a clip is repeated.
        """
        self._refuse("clips", self._num_read < self._manifest.clips)
        self._refuse("num_frames", self._num_frames != self._manifest.frames)
        self._refuse("position of a clip", self._has_repeated_position())
        self._refuse("clip_id", self._has_repeated_name())
        lists = list(self._code_of_splits)
        of_list = np.bincount(self._numbers["splits"], minlength=len(lists)).tolist()
        counts: Counter[str] = Counter()
        for names, count in zip(lists, of_list, strict=True):
            for name in names:
                counts[name] += count
        self._refuse("splits", dict(counts) != dict(self._manifest.splits))
        columns: dict[str, Any] = {name: pa.array(values) for name, values in self._numbers.items()}
        columns["splits"] = pa.DictionaryArray.from_arrays(columns["splits"], pa.array(lists, pa.list_(pa.string())))
        columns |= {name: pa.chunked_array(parts, pa.string()) for name, parts in self._texts.items()}
        order = [name for name in INDEX_SCHEMA_WITH_GROUPS.names if name in columns or name == "clip_id"]
        return pa.table({name: columns.get(name, pa.chunked_array([], pa.string())) for name in order})

    def _has_repeated_position(self) -> bool:
        """Whether two clips have one position; sorting is needed only if the file is not in order."""
        if self._is_in_order:
            return False
        positions = self._numbers["shard"].astype(np.int64) << 32 | self._numbers["row"]
        return len(np.unique(positions)) < len(positions)

    def _has_repeated_name(self) -> bool:
        """Whether two clips have one id: only ids with equal hashes are compared."""
        self._hashes.sort()
        suspects = np.unique(self._hashes[1:][self._hashes[1:] == self._hashes[:-1]])
        found: set[str] = set()
        for names in self._texts.get("clip_id", []) if len(suspects) else []:
            for row in np.flatnonzero(np.isin(text_hashes(names), suspects)).tolist():
                name = names[row].as_py()
                if name in found:
                    return True
                found.add(name)
        return False


def splits_by_code(splits: pa.Array) -> tuple[NDArray[Any], list[list[str]]]:
    """The splits of clips, given as lists or as a dictionary of lists: a code for each clip, and the list of each code.

    A list keeps its order, and what stands in it twice.
    """
    if pa.types.is_dictionary(splits.type):
        return splits.indices.to_numpy(), splits.dictionary.to_pylist()
    names = splits.flatten().dictionary_encode()
    name_codes = names.indices.to_numpy(zero_copy_only=False).astype(np.int64)
    ends = np.cumsum(splits.value_lengths().to_numpy(zero_copy_only=False).astype(np.int64))
    starts = np.concatenate([[0], ends[:-1]]) if len(ends) else ends
    lengths = ends - starts
    base, count = len(names.dictionary) + 1, 1
    codes = np.zeros(len(splits), np.int64)
    # A list is encoded as a number whose n-th digit is its n-th name, renumbered densely after each digit.
    for digit in range(int(lengths.max(initial=0))):
        has = lengths > digit
        codes *= base
        codes[has] += name_codes[starts[has] + digit] + 1
        codes = _numbered(codes, below=count * base)
        count = int(codes.max()) + 1
    examples = np.zeros(min(count, len(codes)), np.int64)
    examples[codes] = np.arange(len(codes))
    return codes, splits.take(pa.array(examples)).to_pylist()


def _numbered(values: NDArray[np.int64], *, below: int) -> NDArray[np.int64]:
    """Dense ranks 0, 1, ... of values in [0, below)."""
    if below > _FEW:
        return np.unique(values, return_inverse=True)[1]
    is_there = np.zeros(below, np.bool_)
    is_there[values] = True
    return (np.cumsum(is_there) - 1)[values]


def _copied(texts: pa.Array) -> pa.Array:
    """A compact copy of a string array: Arrow's read buffers are a quarter larger."""
    _, ends, content = texts.buffers()
    bounds = np.frombuffer(ends, np.int32)[texts.offset : texts.offset + len(texts) + 1]
    letters = np.frombuffer(content or b"", np.uint8)[bounds[0] : bounds[-1]]
    return pa.StringArray.from_buffers(len(texts), *map(pa.py_buffer, (bounds - bounds[0], letters.copy())))


def text_hashes(texts: pa.Array) -> NDArray[np.uint64]:
    """64-bit hash of each string, (N,): FNV-style multiplicative hashing over words of 8 bytes."""
    _, ends, content = texts.buffers()
    bounds = np.frombuffer(ends, np.int32)[texts.offset : texts.offset + len(texts) + 1].astype(np.int64)
    starts, lengths = bounds[:-1], np.diff(bounds)
    hashes = lengths.astype(np.uint64) * _MULTIPLIER
    if not len(texts) or bounds[-1] == bounds[0]:
        return hashes
    padded = np.zeros(int(bounds[-1] - bounds[0]) + _WORD_BYTES, np.uint8)
    padded[:-_WORD_BYTES] = np.frombuffer(content, np.uint8)[bounds[0] : bounds[-1]]
    # Overlapping view: words[i] are the 8 bytes from byte i on.
    words: NDArray[np.uint64] = np.ndarray((len(padded) - _WORD_BYTES + 1,), "<u8", padded, strides=(1,))
    starts = starts - bounds[0]
    at, done = np.flatnonzero(lengths > 0), 0
    while len(at):
        left = np.minimum(lengths[at] - done, _WORD_BYTES)
        mixed = (hashes[at] ^ (words[starts[at] + done] & _MASKS[left])) * _MULTIPLIER
        hashes[at] = mixed ^ (mixed >> np.uint64(29))
        done += _WORD_BYTES
        at = at[lengths[at] > done]
    return hashes


def names_at(names: pa.ChunkedArray, positions: Sequence[int] | NDArray[np.int64]) -> Iterator[str]:
    """Strings at positions of a column; Arrow's `take` concatenates all chunks first and fails above 2 GiB."""
    for position in positions:
        name: str = names[int(position)].as_py()
        yield name
