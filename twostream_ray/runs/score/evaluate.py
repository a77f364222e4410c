"""Exact evaluation: every clip of a split scored once; report, scores and confusion matrix written to a folder.

scores.npz has logits and probabilities (n, K) of n clips, labels (n,), clip_ids (n,), classes (K,), the split's name,
num_expected (N), head_classes and, of several data sets, num_expected_by_head; earlier versions wrote one array
`scores`, which was either, as `tune-scores` still reads it.
"""

from __future__ import annotations

import io
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from twostream_ray import storage, tracking, visualize
from twostream_ray.data.flow import require_same_contract
from twostream_ray.data.shards.shards import ShardSet, open_shards
from twostream_ray.errors import ConfigError, ShardError, TrainingError
from twostream_ray.evaluation.report import Report, report_on
from twostream_ray.heads import Head
from twostream_ray.runs.cluster.session import require_cluster
from twostream_ray.runs.outputs import refuse_foreign_files
from twostream_ray.runs.score.evaluation_run import CONFUSION, REPORT, log_evaluation_run
from twostream_ray.runs.score.model_source import local_model
from twostream_ray.runs.score.settings import EvaluateConfig
from twostream_ray.runs.splits import evaluation_option
from twostream_ray.runs.train.preflight import require_shard_files
from twostream_ray.storage import lease
from twostream_ray.storage.json_files import record
from twostream_ray.storage.temporary_folders import sweep, temporary_folder
from twostream_ray.tracking import TrackingConfig

if TYPE_CHECKING:
    from twostream_ray.model_package import ModelPackage

_NO_NAME_OF_A_METRIC = r"[^\w.\-]"
"""What MLflow refuses in a metric's name, and the slash, behind which the metric is named."""
_FILES = (REPORT, "scores.npz", CONFUSION)
_REPORT_SCHEMA = record(
    {"top1": {"type": "number"}, "split": {"type": "string"}, "manifest_hash": {"type": "string"}}, others=True
)

Progress = Callable[[int, int], None]
"""Called with (clips scored, clips in all)."""


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """A model's scores on a split, and the metrics computed from them."""

    report: Report
    """Accuracies and confusion."""
    logits: NDArray[np.float32]
    """(n, K) logits of each clip, in the order of the shard set's index; their softmax over the classes of each data
    set are the probabilities."""
    probabilities: NDArray[np.float32]
    """(n, K) probabilities, in [0, 1]; those of each data set add up to 1."""
    labels: NDArray[np.int64]
    """(n,) true classes."""
    clip_ids: tuple[str, ...]
    """(n,) names of the clips."""
    split: str
    """Split that was scored."""
    manifest_hash: str
    """sha256 of the data's manifest."""
    package: ModelPackage
    """The model's settings."""
    model: str = ""
    """The model as it was named: models:/NAME/VERSION, or a directory or s3:// prefix."""

    def metrics(self) -> dict[str, float]:
        """top1 and mean_class_accuracy, and top5 where there are enough classes; in [0, 1]."""
        metrics = {"top1": self.report.top1, "mean_class_accuracy": self.report.mean_class}
        return metrics if self.report.top5 is None else metrics | {"top5": self.report.top5}

    def metrics_by_head(self) -> dict[str, float]:
        """The same metrics of each data set, and how many clips they are of, as NAME/top1; {} where there is one."""
        found = {
            f"{re.sub(_NO_NAME_OF_A_METRIC, '_', head.name)}/{name}": value
            for head in self.report.heads
            for name, value in (
                ("top1", head.top1),
                ("mean_class_accuracy", head.mean_class),
                ("top5", head.top5),
                ("clips_evaluated", head.n_evaluated),
                ("clips_expected", head.n_expected),
            )
        }
        return {name: float(value) for name, value in found.items() if value is not None}

    def predicted(self) -> NDArray[np.int64]:
        """(n,) the best class of each clip, of those of its own data set."""
        best = np.full(len(self.labels), -1, np.int64)
        for head in self.package.heads:
            mine = (self.labels >= head.start) & (self.labels < head.stop)
            best[mine] = head.start + self.logits[mine, head.columns].argmax(axis=1)
        return best

    def measurement(self) -> tracking.Measurement:
        """The metrics on n of N clips of the split, as a registered version is tagged with them."""
        return tracking.Measurement(
            manifest_hash=self.manifest_hash,
            split=self.split,
            num_evaluated=self.report.n_evaluated,
            num_clips=self.report.n_expected,
            metrics=self.metrics(),
        )


def evaluate(config: EvaluateConfig, *, progress: Progress | None = None) -> Evaluation:
    """Score a split and write report.json, scores.npz and confusion.png to `config.out`.

    A registered version is tagged with the metrics, and MLflow has a run of its own for the evaluation, unless
    `config.record` is False.

    Raises:
        LeaseError: another process writes there.
        ContractMismatchError: the shards' flow is of another kind than the model's.
        ConfigError: the shards' classes are not the model's, or somebody else's files are there.
        ShardError, RegistryError, StorageError, CheckpointError: data or model cannot be had.
    """
    sweep()
    shard_set = open_shards(config.shards)
    require_shard_files(shard_set)
    if tracking.names_version(config.model):
        # An alias may move while clips are scored: what is loaded is what is tagged.
        name, version = tracking.find_version(config.model, config=config.tracking)
        config = replace(config, model=f"models:/{name}/{version}")
    with (
        reserve_output(config, shard_set),
        local_model(config.model, config=config.tracking) as directory,
        temporary_folder() as pictures,
    ):
        evaluation = score_split(config, shard_set, directory=directory, progress=progress)
        write_evaluation(evaluation, out=config.out, files=Path(pictures))
        if config.is_logged():
            log_evaluation_run(config, evaluation, shard_set, files=Path(pictures))
        if config.is_recorded():
            record_evaluation(evaluation, config.model, config=config.tracking)
    return evaluation


def record_evaluation(evaluation: Evaluation, model: str, *, config: TrackingConfig) -> None:
    """Tag the registered version `model`, such as models:/NAME/VERSION, with its measurement.

    Raises:
        RegistryError: there is no such version, or MLflow does not answer.
    """
    name, version = tracking.find_version(model, config=config)
    tracking.record_measurement(name, version, evaluation.measurement(), config=config)


@contextmanager
def reserve_output(config: EvaluateConfig, shard_set: ShardSet) -> Iterator[None]:
    """Hold the lease of `config.out` while the block runs, after all checks that need neither model nor cluster.

    Raises:
        LeaseError: another process writes there.
        ConfigError: somebody else's files are there.
        ShardError: the shards have no such split.
        ClusterError: the cluster cannot be reached.
    """
    try:
        shard_set.split(config.split)
    except ShardError as error:
        raise ShardError(f"{error}: {evaluation_option(config.split, shard_set)}") from None
    refuse_foreign_files(storage.absolute(config.out), _FILES, schema=_REPORT_SCHEMA, verb="evaluate")
    require_cluster()
    with lease.held(config.out, work="evaluate", way_out="wait for it or end it, or choose another --out"):
        yield


def score_split(
    config: EvaluateConfig, shard_set: ShardSet, *, directory: Path, progress: Progress | None = None
) -> Evaluation:
    """Score `config.split` of a shard set by the model in `directory`; writes nothing.

    Raises:
        ContractMismatchError: the shards' flow is of another kind than the model's.
        ConfigError: the shards' classes are not the model's.
        TrainingError: a clip was not scored.
        ShardError, StorageError, CheckpointError: data or model cannot be read.
    """
    # They load torch and Ray, which refused settings and --help do without.
    from twostream_ray.model_package import check_model
    from twostream_ray.runs.score.scorer import score_clips

    package = check_model(directory)
    require_same_contract(
        package.contract, shard_set.contract, wanted_by=f"model {config.model}", found_in=config.shards
    )
    if package.classes != shard_set.classes:
        raise ConfigError(
            f"model {config.model} knows {len(package.classes)} classes ({', '.join(package.classes[:4])} ...), "
            f"{config.shards} has {len(shard_set.classes)} ({', '.join(shard_set.classes[:4])} ...): choose shards "
            "of the same classes"
        )
    scores = score_clips(directory, shard_set, split=config.split, workers=config.workers, progress=progress)
    members = shard_set.split(config.split)
    missing = len(members) - len(scores)
    if missing:
        raise TrainingError(f"all {len(members)} clips of {config.split} were to be scored, {missing} were not")
    averaged = np.stack([scores[int(clip)] for clip in members])
    labels = shard_set.labels[members]
    found = package.class_scores(averaged)
    ids = shard_set.index["clip_id"].to_pylist()
    return Evaluation(
        report=report_on(
            averaged,
            labels,
            classes=shard_set.classes,
            n_expected=len(members) + shard_set.quarantined.get(config.split, 0),
            heads=package.heads,
            expected_by_head=_expected_by_head(shard_set, labels, split=config.split, heads=package.heads),
        ),
        logits=found.logits.astype(np.float32),
        probabilities=found.probabilities.astype(np.float32),
        labels=labels,
        clip_ids=tuple(ids[clip] for clip in members),
        split=config.split,
        manifest_hash=shard_set.hash,
        package=package,
        model=config.model,
    )


def _expected_by_head(
    shard_set: ShardSet, labels: NDArray[np.int64], *, split: str, heads: Sequence[Head]
) -> list[int | None]:
    """Clips of each data set in the split, those in quarantine among them; None where nobody has counted these."""
    evaluated = [int(((labels >= head.start) & (labels < head.stop)).sum()) for head in heads]
    if not shard_set.quarantined.get(split, 0):
        return list(evaluated)
    quarantined = shard_set.quarantined_by_head.get(split, ())
    if len(quarantined) != len(heads):
        return [None] * len(heads)
    return [here + bad for here, bad in zip(evaluated, quarantined, strict=True)]


def _num_expected_by_head(report: Report) -> dict[str, NDArray[np.int64]]:
    """For scores.npz; {} where there is one data set, or an earlier ingest did not count each one's quarantine."""
    counts = [head.n_expected for head in report.heads if head.n_expected is not None]
    return {"num_expected_by_head": np.asarray(counts, dtype=np.int64)} if 0 < len(counts) == len(report.heads) else {}


def write_evaluation(evaluation: Evaluation, *, out: str, files: Path) -> None:
    """Write report.json, scores.npz and confusion.png to a directory or prefix; report and picture to `files` too.

    Raises:
        StorageError: `out` cannot be written.
    """
    out = storage.absolute(out)
    values = evaluation.report.to_dict() | {"split": evaluation.split, "manifest_hash": evaluation.manifest_hash}
    for folder in (out, str(files)):
        storage.write_json(storage.join(folder, REPORT), values)
    table = io.BytesIO()
    arrays: dict[str, Any] = _num_expected_by_head(evaluation.report)
    np.savez_compressed(
        table,
        logits=evaluation.logits,
        probabilities=evaluation.probabilities,
        labels=evaluation.labels,
        clip_ids=np.asarray(evaluation.clip_ids),
        classes=np.asarray(evaluation.report.classes),
        split=np.asarray(evaluation.split),
        num_expected=np.asarray(evaluation.report.n_expected),
        head_classes=np.asarray(evaluation.package.model.head_classes, dtype=np.int64),
        **arrays,
    )
    storage.write_bytes(storage.join(out, _FILES[1]), table.getvalue())
    picture = files / CONFUSION
    report = evaluation.report
    visualize.confusion_picture(
        report.confusion,
        report.classes,
        picture,
        title=f"{_short_name(evaluation.model)}, split {evaluation.split}",
        num_expected=report.n_expected,
    )
    storage.write_bytes(storage.join(out, CONFUSION), picture.read_bytes())


def _short_name(model: str) -> str:
    """A model in a picture's words: run and checkpoint of a path, a registered version as it is."""
    return model if model.startswith("models:/") else "/".join(model.rstrip("/").split("/")[-2:])
