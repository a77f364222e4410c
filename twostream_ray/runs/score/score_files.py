"""Cached scores of two streams, from score tables or .npz files, matched clip by clip and converted to logits."""

from __future__ import annotations

import io
import itertools
import zipfile
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from twostream_ray import storage
from twostream_ray.errors import ConfigError, StorageError
from twostream_ray.evaluation.aggregate import aggregate
from twostream_ray.evaluation.metrics import own_head_first
from twostream_ray.heads import Head, choose_heads, heads_of, logits_from, softmax_by_head
from twostream_ray.runs.score.score_table import has_table, iter_parts, read_record
from twostream_ray.runs.score.settings import StreamScoresConfig

Stream = Literal["spatial", "temporal"]
_STREAMS: tuple[Stream, Stream] = ("spatial", "temporal")


@dataclass(frozen=True, kw_only=True, slots=True)
class ScoredClips:
    """The clips that a metric was computed on."""

    num_clips: int
    """n: scored clips."""
    num_expected: int
    """N: clips of the split, including quarantined ones."""
    split: str | None
    """Name of the split; None if the files do not have it."""
    files: tuple[str, ...]
    """Files with the scores."""

    def __str__(self) -> str:
        of = "" if self.split is None else f" of split {self.split}"
        quarantined = "" if self.num_expected == self.num_clips else f" ({self.num_expected} with those in quarantine)"
        return f"{self.num_clips} clips{of}{quarantined}"


@dataclass(frozen=True, kw_only=True, eq=False)
class StreamScores:
    """Two streams' logits of the same clips."""

    spatial: NDArray[np.float64]
    """(N, K) logits."""
    temporal: NDArray[np.float64]
    """(N, K) logits."""
    labels: NDArray[np.int64]
    """(N,) true classes, in [0, K)."""
    clip_ids: NDArray[np.str_] | None
    """(N,) names of the clips; None if the file does not have them."""
    classes: tuple[str, ...] | None
    """(K,) names of the classes; None if no file has them."""
    split: str | None
    """Name of the split; None if the files do not have it."""
    num_expected: int
    """Clips of the split, including quarantined ones."""
    files: tuple[str, ...]
    """Files with the scores."""
    notes: tuple[str, ...]
    """Notes on how the files were read, one sentence each."""
    heads: tuple[Head, ...]
    """The data sets; a clip is classified among the classes of its own."""
    expected_by_head: tuple[int, ...] | None
    """num_expected of each data set; None if the files do not have it."""
    _fused: dict[tuple[str, float | None], NDArray[np.float64]] = field(default_factory=dict, init=False, repr=False)

    def scored_clips(self) -> ScoredClips:
        """The clips of these scores."""
        return ScoredClips(
            num_clips=len(self.labels), num_expected=self.num_expected, split=self.split, files=self.files
        )

    def fusion_inputs(
        self, of: Literal["logits", "softmax"], temperatures: tuple[float, float]
    ) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Inputs of the fusion, (N, K) for either stream: logits, or the softmax of logits / temperature.

        With several data sets, the softmax is over the classes of each, and classes of other data sets rank last.
        """
        fused = []
        for stream, temperature in zip(("spatial", "temporal"), temperatures, strict=True):
            key = (stream, None if of == "logits" else temperature)
            if key not in self._fused:
                logits = getattr(self, stream)
                if of == "logits":
                    self._fused[key] = self.own_classes_first(logits)
                else:
                    values = softmax_by_head(logits / temperature, self.heads)
                    self._fused[key] = np.where(self._own_classes(), values, 0.0)
            fused.append(self._fused[key])
        return fused[0], fused[1]

    def own_classes_first(self, scores: NDArray[np.float64]) -> NDArray[np.float64]:
        """Scores (N, K) of these clips, changed so that classes of other data sets rank last."""
        if len(self.heads) == 1:
            return scores
        return own_head_first(scores, self.labels, head_classes=[head.stop - head.start for head in self.heads])

    def rows_of(self, head: Head) -> NDArray[np.int64]:
        """Rows of a data set's clips."""
        return np.flatnonzero((self.labels >= head.start) & (self.labels < head.stop))

    def _own_classes(self) -> NDArray[np.bool_]:
        own = np.zeros(self.spatial.shape, dtype=np.bool_)
        for head in self.heads:
            own[self.rows_of(head), head.columns] = True
        return own

    def of_head(self, name: str | None, *, where: str) -> StreamScores:
        """The clips and classes of one data set; all of them if `name` is None.

        Raises:
            ConfigError: there is no such data set, or it has no clip here.
        """
        if name is None:
            return self
        (head,) = choose_heads(self.heads, name, of=where)
        rows = self.rows_of(head)
        if not len(rows):
            raise ConfigError(f"{where} has no clip of data set {name!r}: choose another split or head")
        known = self.expected_by_head
        return replace(
            self.subset(rows),
            spatial=self.spatial[rows, head.columns],
            temporal=self.temporal[rows, head.columns],
            labels=self.labels[rows] - head.start,
            clip_ids=None if self.clip_ids is None else self.clip_ids[rows],
            classes=None if self.classes is None else head.classes_of(self.classes),
            num_expected=len(rows) if known is None else known[self.heads.index(head)],
            heads=(Head(name="", start=0, stop=head.stop - head.start),),
        )

    def subset(self, rows: NDArray[np.int64]) -> StreamScores:
        """The scores of the clips in `rows`."""
        return replace(
            self,
            spatial=self.spatial[rows],
            temporal=self.temporal[rows],
            labels=self.labels[rows],
            clip_ids=None,
            num_expected=len(rows),
        )


def read_scores(config: StreamScoresConfig, *, name: str) -> StreamScores:
    """Read the two streams' scores as logits, in the same order of clips.

    Raises:
        ConfigError: the streams' clips, labels or classes differ, or a file lacks one of these arrays.
        StorageError: a file cannot be read, is not an .npz, or a score table is damaged or incomplete.
    """
    if config.both is not None:
        table = other = _load(config.both, streams=_STREAMS)
        _require_arrays(table, ("spatial", "temporal", ("labels", "label")), file=config.both, name=f"{name}.both")
        spatial, temporal = table["spatial"], table["temporal"]
        labels, clip_ids = table["labels" if "labels" in table else "label"], _first(table, "clip_ids", "names")
        files: tuple[str, ...] = (config.both,)
    else:
        assert config.spatial is not None and config.temporal is not None  # noqa: S101  (checked by the settings)
        files = (config.spatial, config.temporal)
        table, other = (_load(file, streams=(stream,)) for file, stream in zip(files, _STREAMS, strict=True))
        for file, one, stream in zip(files, (table, other), _STREAMS, strict=True):
            _require_arrays(one, (("logits", "scores"), "labels", "clip_ids"), file=file, name=f"{name}.{stream}")
        order = _matching_rows(table["clip_ids"], other["clip_ids"], files=files)
        # Earlier versions wrote `scores`, which were logits or probabilities.
        spatial, temporal = (one["logits" if "logits" in one else "scores"] for one in (table, other))
        temporal = temporal[order]
        labels, clip_ids = table["labels"], table["clip_ids"]
        _refuse_other_labels(labels, other["labels"][order], clip_ids=clip_ids, files=files)
    if spatial.ndim != 2 or spatial.shape != temporal.shape or labels.shape != spatial.shape[:1]:
        raise ConfigError(
            f"{' and '.join(files)} must hold scores (N, K) of the same clips and classes with labels (N,), got "
            f"spatial {spatial.shape}, temporal {temporal.shape} and labels {labels.shape}"
        )
    _refuse_odd_values(spatial, temporal, labels, where=" and ".join(files))
    labels = labels.astype(np.int64)
    tables = dict(zip(files, (table, other), strict=False))  # one file may hold both
    head_classes = _head_classes(tables, num_classes=spatial.shape[1])
    named = {file: _class_names(one, file=file, num_classes=spatial.shape[1]) for file, one in tables.items()}
    _refuse_other_classes(named)
    notes = [
        f"{name}: {file} has no names of classes, as it is of an earlier version: its classes may be others"
        for file, classes in named.items()
        if classes is None
    ]
    streams = {}
    for stream, scores, one in (("spatial", spatial, table), ("temporal", temporal, other)):
        streams[stream] = scores.astype(np.float64)
        if "logits" not in one and _are_probabilities(streams[stream], num_heads=len(head_classes)):
            streams[stream] = logits_from(scores)
            notes.append(f"{name}: the {stream} scores are probabilities; their logarithms are used as logits")
    split, expected, by_head = (_first(table, key) for key in ("split", "num_expected", "num_expected_by_head"))
    classes = next((classes for classes in named.values() if classes is not None), None)
    heads = heads_of(classes or [""] * spatial.shape[1], head_classes)
    return StreamScores(
        spatial=streams["spatial"],
        temporal=streams["temporal"],
        labels=labels,
        clip_ids=clip_ids,
        classes=classes,
        split=None if split is None else str(split),
        num_expected=len(labels) if expected is None else int(expected),
        files=files,
        notes=tuple(notes),
        heads=heads,
        expected_by_head=None if by_head is None or len(by_head) != len(heads) else tuple(map(int, by_head)),
    )


def refuse_overlap(choose: StreamScores, quote: StreamScores) -> None:
    """Refuse scores that have clips in common, or different classes.

    Raises:
        ConfigError: they do, or a file has no clip_ids.
    """
    if choose.clip_ids is None or quote.clip_ids is None:
        raise ConfigError("choose and quote need clip_ids in their files, to check that no clip is in both")
    common = np.intersect1d(choose.clip_ids, quote.clip_ids)
    if common.size:
        raise ConfigError(
            f"choose and quote must not share clips, {common.size} of the {len(quote.labels)} of quote are in both "
            f"({common[0]}): choose the setting on one split and quote its accuracy on another"
        )
    if choose.spatial.shape[1] != quote.spatial.shape[1]:
        raise ConfigError(
            f"choose and quote must have the same classes, got {choose.spatial.shape[1]} and {quote.spatial.shape[1]}"
        )
    if [head.stop for head in choose.heads] != [head.stop for head in quote.heads]:
        raise ConfigError(
            f"choose and quote must have the same data sets, got {len(choose.heads)} and {len(quote.heads)}, or others "
            "by number of classes: evaluate both on splits of the same shards"
        )
    _refuse_other_classes({"choose": choose.classes, "quote": quote.classes})


def _refuse_other_labels(
    spatial: NDArray[Any], temporal: NDArray[Any], *, clip_ids: NDArray[Any], files: Sequence[str]
) -> None:
    """Raise ConfigError if two files have different labels for the same clips."""
    wrong = np.flatnonzero(spatial != temporal)
    if wrong.size:
        raise ConfigError(
            f"{files[0]} and {files[1]} must agree on the classes, but {clip_ids[wrong[0]]} and {wrong.size - 1} "
            "more clips have different labels: evaluate both models on the same shards"
        )


def _head_classes(tables: Mapping[str, dict[str, NDArray[Any]]], *, num_classes: int) -> list[int]:
    """Number of classes of each data set; files must agree on it, but those of earlier versions lack it."""
    said = {
        file: one["head_classes"].tolist() or [num_classes] for file, one in tables.items() if "head_classes" in one
    }
    for file, sizes in said.items():
        if sizes != next(iter(said.values())) or sum(sizes) != num_classes:
            raise ConfigError(
                f"{' and '.join(tables)} must hold {num_classes} classes of the same data sets, got head_classes "
                f"{sizes} in {file}: evaluate both models on the same shards"
            )
    return next(iter(said.values()), [num_classes])


def _class_names(table: dict[str, NDArray[Any]], *, file: str, num_classes: int) -> tuple[str, ...] | None:
    """Names of the K classes of a file's scores; None if it has none."""
    classes = _first(table, "classes")
    if classes is None:
        return None
    if classes.shape != (num_classes,) or classes.dtype.kind != "U":
        raise ConfigError(
            f"{file} must hold the names of its {num_classes} classes, got {classes.dtype} {classes.shape}: evaluate "
            "the model again"
        )
    return tuple(map(str, classes))


def _refuse_other_classes(named: Mapping[str, tuple[str, ...] | None]) -> None:
    """Raise ConfigError if lists of classes differ in names or order."""
    known = [(where, classes) for where, classes in named.items() if classes is not None]
    for (first, ours), (second, theirs) in itertools.pairwise(known):
        for label, (one, other) in enumerate(zip(ours, theirs, strict=True)):
            if one != other:
                raise ConfigError(
                    f"{first} and {second} must hold scores of the same classes in the same order, but label {label} "
                    f"is {one!r} in the one and {other!r} in the other: evaluate both on the same shards"
                )


def _refuse_odd_values(spatial: NDArray[Any], temporal: NDArray[Any], labels: NDArray[Any], *, where: str) -> None:
    """Raise ConfigError unless scores are numbers and labels are class indices."""
    for one, kinds, what in ((spatial, "fiu", "scores"), (temporal, "fiu", "scores"), (labels, "iu", "labels")):
        if one.dtype.kind not in kinds:
            raise ConfigError(f"{where} must hold numbers as {what}, got {one.dtype}: evaluate the model again")
    if labels.size and not 0 <= int(labels.min()) <= int(labels.max()) < spatial.shape[1]:
        raise ConfigError(
            f"{where} must hold labels from 0 to {spatial.shape[1] - 1}, got {labels.min()} to {labels.max()}: "
            "evaluate the model again"
        )


def _load(file: str, *, streams: Sequence[Stream]) -> dict[str, NDArray[Any]]:
    """The arrays of an .npz, or the same from a score table: `logits` of one stream, or both under their names."""
    if not file.endswith(".npz") and has_table(file):
        return _load_table(file, streams=streams)
    content = storage.read_bytes(storage.absolute(file))
    try:
        with np.load(io.BytesIO(content), allow_pickle=False) as arrays:
            return dict(arrays)
    except (ValueError, OSError, EOFError, TypeError, AttributeError, zipfile.BadZipFile, zlib.error) as error:
        raise StorageError(
            f"an .npz of scores was wanted at {file}, but it cannot be read ({error}): give the folder that `twostream "
            "evaluate` wrote, or an .npz of logits"
        ) from None


def _load_table(uri: str, *, streams: Sequence[Stream]) -> dict[str, NDArray[Any]]:
    """A stream is the tower of its name; if the network has no such tower, a single stream is the whole network."""
    folder, about = read_record(uri)
    if len(streams) > 1 and (missing := [stream for stream in streams if stream not in about.towers]):
        raise ConfigError(
            f"{uri} must have scores of a spatial and a temporal tower, it lacks {', '.join(missing)} and has "
            f"{', '.join(about.towers)}: evaluate a late network of both, or give two evaluations as spatial and "
            "temporal"
        )
    chosen = {stream: [about.towers.index(stream)] if stream in about.towers else slice(None) for stream in streams}
    parts = [
        (
            part.positions,
            *(
                aggregate(part.logits[:, :, towers], average=about.protocol["average"], heads=about.heads).logits
                for towers in chosen.values()
            ),
            part.labels,
            part.clip_ids,
        )
        for part in iter_parts(folder)
    ]
    order = np.argsort(np.concatenate([part[0] for part in parts]))
    names = [*(streams if len(streams) > 1 else ["logits"]), "labels", "clip_ids"]
    arrays = {name: np.concatenate([part[at] for part in parts])[order] for at, name in enumerate(names, start=1)}
    arrays |= {
        "classes": np.asarray(about.classes),
        "split": np.asarray(about.split),
        "num_expected": np.asarray(about.num_expected),
        "head_classes": np.asarray(about.head_classes, dtype=np.int64),
    }
    if about.num_expected_by_head is not None:
        arrays["num_expected_by_head"] = np.asarray(about.num_expected_by_head)
    return arrays


def _require_arrays(
    table: dict[str, NDArray[Any]], keys: Sequence[str | tuple[str, ...]], *, file: str, name: str
) -> None:
    wanted = [(key,) if isinstance(key, str) else key for key in keys]
    missing = [names[0] for names in wanted if not any(one in table for one in names)]
    if missing:
        raise ConfigError(
            f"{name} wants {', '.join(names[0] for names in wanted)} in {file}, it lacks {', '.join(missing)} and has "
            f"{', '.join(table) or 'nothing'}: give the folder that `twostream evaluate` wrote for one "
            f"network as {name.partition('.')[0]}.spatial and for another as {name.partition('.')[0]}.temporal"
        )


def _first(table: dict[str, NDArray[Any]], *names: str) -> NDArray[Any] | None:
    return next((table[name] for name in names if name in table), None)


def _matching_rows(spatial: NDArray[Any], temporal: NDArray[Any], *, files: Sequence[str]) -> NDArray[np.int64]:
    """Rows of the temporal file in the order of the spatial one."""
    ours, theirs = ({str(clip): row for row, clip in enumerate(ids)} for ids in (spatial, temporal))
    for ids, rows, file in ((spatial, ours, files[0]), (temporal, theirs, files[1])):
        if len(rows) != len(ids):
            raise ConfigError(f"{file} must hold each clip once, it has {len(ids)} rows of {len(rows)} clips")
    absent, more = [clip for clip in ours if clip not in theirs], [clip for clip in theirs if clip not in ours]
    if absent or more:
        both_ways = ((absent, files[0]), (more, files[1]))
        lone = [f"{len(clips)} only in {file} ({clips[0]})" for clips, file in both_ways if clips]
        raise ConfigError(
            f"{files[0]} and {files[1]} must hold the same clips, but of {len(ours)} and {len(theirs)} there are "
            f"{' and '.join(lone)}: evaluate both models on the same split of the same shards"
        )
    return np.array([theirs[clip] for clip in ours], dtype=np.int64)


def _are_probabilities(scores: NDArray[np.float64], *, num_heads: int) -> bool:
    """Whether scores sum to 1 per head: `evaluate` averages the softmax of a single stream and of late fusion."""
    return bool((scores >= 0).all() and np.abs(scores.sum(axis=1) - num_heads).max() < 1e-3 * num_heads)
