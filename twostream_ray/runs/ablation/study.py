"""Ablation study of the streams: one training each, evaluated on the same clips, with paired comparisons."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields, replace

from twostream_ray.data.shards.shards import ShardSet
from twostream_ray.evaluation.intervals import MetricIntervals, metric_intervals
from twostream_ray.evaluation.late_fusion import late_fusion
from twostream_ray.evaluation.paired import PairedComparison, compare_hits
from twostream_ray.heads import ClassScores
from twostream_ray.models.settings import ModelConfig
from twostream_ray.runs.ablation.settings import AblationConfig
from twostream_ray.runs.experiment import ExperimentConfig
from twostream_ray.runs.run_folder import RunFolder
from twostream_ray.runs.score.clip_scores import ClipScores, read_clip_scores
from twostream_ray.runs.score.compare import require_same_clips
from twostream_ray.runs.score.publish import FinishedRun, prepare_run
from twostream_ray.runs.score.staged import stream_config, train_stages
from twostream_ray.runs.stages import StagesConfig
from twostream_ray.runs.train.preflight import SPLITS, require_ready
from twostream_ray.runs.train.run import build_on_meta_device

APPEARANCE, MOTION, FUSED, CLIP3D = "appearance", "motion", "fused", "clip3d"
"""Suffixes of the runs' names."""
LATE = "late"
"""Late fusion of the first two."""


@dataclass(frozen=True, kw_only=True, eq=False)
class AblationRow:
    """Result of one network on the test split."""

    network: str
    """Its streams and fusion, in words."""
    run: str
    """Name of the run that trained it, or of both."""
    parameters: int
    """Number of its parameters."""
    num_clips: int
    """Clips that it was scored on."""
    num_expected: int
    """Clips of the split, including quarantined ones."""
    top1: float
    """Accuracy, in [0, 1]."""
    intervals: MetricIntervals
    """95 % intervals, over groups of clips if the data define groups."""
    against_appearance: PairedComparison | None
    """Clip by clip, appearance alone first and this network second; None for appearance alone itself."""

    @property
    def coverage(self) -> str:
        """As in "400 of 403 clips"."""
        return f"{self.num_clips} of {self.num_expected} clips"


def trainings(config: AblationConfig) -> dict[str, ExperimentConfig]:
    """The runs to train, by the suffixes of their names.

    All have the recipe's clips and budget; with stages.enabled the single-stream runs are those that the fused network
    starts from.
    """
    values = {one.name: getattr(config, one.name) for one in fields(ExperimentConfig)}
    fused = ExperimentConfig(**(values | {"name": f"{config.name}-{FUSED}"}))
    streams = {APPEARANCE: stream_config(fused, "spatial"), MOTION: stream_config(fused, "temporal")}
    if not config.stages.enabled:
        streams = {suffix: replace(one, name=f"{config.name}-{suffix}") for suffix, one in streams.items()}
    found = {**streams, FUSED: fused}
    if config.clip3d:
        found[CLIP3D] = replace(
            fused,
            name=f"{config.name}-{CLIP3D}",
            model=replace(config.model, architecture="clip3d", freeze_below_fusion=False),
            tracking=replace(config.tracking, register=False),
            stages=StagesConfig(),
        )
    return found


def prepare(config: AblationConfig) -> ShardSet:
    """Check all runs before the first is trained for hours.

    Raises:
        ConfigError: settings contradict each other or the shards.
        ShardError: the shards are missing, or lack a split.
        WeightsError, StorageError: a file of weights cannot be read.
    """
    for one in trainings(config).values():
        shard_set = require_ready(one, splits=SPLITS, folder=RunFolder.of(one))
        build_on_meta_device(one, shard_set)
        prepare_run(one, shard_set)
    return shard_set


def train_all(
    runs: Mapping[str, ExperimentConfig], train_one: Callable[[ExperimentConfig], FinishedRun]
) -> dict[str, FinishedRun]:
    """Train and evaluate the runs one after the other with `train_one`, which returns finished runs at once."""
    trained = {}
    for suffix, one in runs.items():
        # Stages under the names of earlier runs are found to be finished.
        trained[suffix] = train_stages(one, train_one) if one.stages.enabled else train_one(one)
    return trained


def table_of(config: AblationConfig, parameters: Mapping[str, int]) -> list[AblationRow]:
    """The rows, from the evaluations of finished runs.

    Args:
        config: settings of the study.
        parameters: each network's number of parameters, by the suffix of its run's name.

    Raises:
        StorageError: an evaluation is missing or damaged.
        ConfigError: they scored different clips.
    """
    runs = trainings(config)
    scores = {suffix: read_clip_scores(RunFolder.of(one).evaluation) for suffix, one in runs.items()}
    for one in scores.values():
        require_same_clips(scores[APPEARANCE], one)
    both = f"{runs[APPEARANCE].name} and {runs[MOTION].name}"
    entries = [
        (names_of(config.model)[suffix], one.name, parameters[suffix], scores[suffix]) for suffix, one in runs.items()
    ]
    late = averaged(scores[APPEARANCE], scores[MOTION])
    total = parameters[APPEARANCE] + parameters[MOTION]
    entries.insert(2, (names_of(config.model)[LATE], both, total, late))
    return [
        _row(network, run=run, parameters=count, found=found, appearance=scores[APPEARANCE])
        for network, run, count, found in entries
    ]


def names_of(model: ModelConfig) -> dict[str, str]:
    """Descriptions of the networks in the table, by suffix."""
    joined = {
        "fused": f"{model.fusion.method} at {', '.join(model.fusion.layers)}",
        "st_resnet": "motion into residual units",
        "stfn": "residual inception blocks over time",
    }
    return {
        APPEARANCE: "appearance alone",
        MOTION: "motion alone",
        LATE: "late: scores averaged",
        FUSED: f"fused: {joined[model.architecture]}",
        CLIP3D: f"RGB clips, no flow: {model.clip3d.network}",
    }


def averaged(first: ClipScores, second: ClipScores) -> ClipScores:
    """Late fusion: the mean of two streams' probabilities for each clip."""
    mean = late_fusion(first.scores.probabilities, second.scores.probabilities, of="logits")
    with_softmax = replace(first.about, protocol={**first.about.protocol, "average": "softmax"})
    return replace(first, about=with_softmax, scores=ClassScores(logits=mean, probabilities=mean))


def _row(network: str, *, run: str, parameters: int, found: ClipScores, appearance: ClipScores) -> AblationRow:
    labels, num_classes = found.labels, len(found.about.classes)
    hits, before = found.predicted() == labels, appearance.predicted() == labels
    # Groups of one clip each add nothing to the clips.
    groups = None if found.groups is None or len(set(found.groups)) == len(labels) else found.groups
    paired = compare_hits(before, hits, labels, num_classes=num_classes, groups=groups)
    return AblationRow(
        network=network,
        run=run,
        parameters=parameters,
        num_clips=len(labels),
        num_expected=found.about.num_expected,
        top1=float(hits.mean()),
        intervals=metric_intervals(hits, None, labels, num_classes=num_classes, groups=groups),
        against_appearance=None if found is appearance else paired,
    )
