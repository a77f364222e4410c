"""Clip scores from a score table: views and towers averaged as the protocol says, one part of the table at a time."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from twostream_ray import storage
from twostream_ray.evaluation.aggregate import aggregate
from twostream_ray.evaluation.metrics import own_head_first, predicted_classes
from twostream_ray.heads import ClassScores
from twostream_ray.runs.score.score_table import has_table, iter_parts, read_record
from twostream_ray.runs.score.table_record import TableRecord

_EVALUATION = "evaluation"
"""Subfolder of a run with its evaluation."""


@dataclass(frozen=True, kw_only=True, eq=False)
class ClipScores:
    """One score per class for each clip of a table, in the order of the shard set's index."""

    uri: str
    """Folder of the table."""
    about: TableRecord
    """The table's record."""
    positions: NDArray[np.int64]
    """(n,) position of each clip in the shard set's index, ascending."""
    clip_ids: tuple[str, ...]
    """(n,) names of the clips."""
    labels: NDArray[np.int64]
    """(n,) true classes, in [0, K)."""
    groups: tuple[str, ...] | None
    """(n,) group of each clip, its own name if it has none; None if no clip has a group."""
    scores: ClassScores
    """(n, K) each, averaged over views and towers."""

    def ranked_by(self) -> NDArray[np.float64]:
        """(n, K) values by which classes are ranked, logits or probabilities; classes of other data sets rank last."""
        is_softmax = self.about.protocol["average"] == "softmax"
        values = self.scores.probabilities if is_softmax else self.scores.logits
        sizes = [head.stop - head.start for head in self.about.heads]
        return own_head_first(values, self.labels, head_classes=sizes) if len(sizes) > 1 else values

    def predicted(self) -> NDArray[np.int64]:
        """(n,) the best class of each clip among those of its data set."""
        return predicted_classes(self.ranked_by())


def find_table(name: str, *, runs: str = "runs") -> str:
    """The evaluation that `name` refers to: its folder, the folder of a run, or a run's name below `runs`.

    Returns `name` itself if there is none, so that reading it raises an error that names it.
    """
    candidates = (name, storage.join(name, _EVALUATION), storage.join(runs, name, _EVALUATION))
    return next((uri for uri in candidates if has_table(uri)), name)


def read_clip_scores(uri: str) -> ClipScores:
    """The scores of all clips of a table; a table of many views need not fit into memory.

    Args:
        uri: the output of `evaluate`, or its folder of scores.

    Raises:
        StorageError: the table is missing, damaged, of another version, or incomplete.
        TrainingError: its scores cannot be averaged.
    """
    folder, about = read_record(uri)
    parts = []
    for part in iter_parts(uri):
        scores = aggregate(part.logits, average=about.protocol["average"], heads=about.heads)
        parts.append((part.positions, part.clip_ids, part.labels, part.groups, *scores))
    order = np.argsort(np.concatenate([part[0] for part in parts]))
    positions, clip_ids, labels, logits, probabilities = (
        np.concatenate([part[column] for part in parts])[order] for column in (0, 1, 2, 4, 5)
    )
    groups = None
    if any(part[3] is not None for part in parts):
        groups = np.concatenate([part[1] if part[3] is None else part[3] for part in parts])[order]
    return ClipScores(
        uri=folder,
        about=about,
        positions=positions,
        clip_ids=tuple(clip_ids.tolist()),
        labels=labels,
        groups=None if groups is None else tuple(groups.tolist()),
        scores=ClassScores(logits=logits, probabilities=probabilities),
    )
