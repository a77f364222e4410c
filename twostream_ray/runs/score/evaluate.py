"""Evaluation of a split: every clip is scored exactly once; score table, report and confusion matrix are written."""

from __future__ import annotations

import re
import shlex
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from twostream_ray import storage, tracking, visualize
from twostream_ray.data.flow import require_same_contract
from twostream_ray.data.protocols import VALIDATION, Protocol, resolve_protocol
from twostream_ray.data.shards.shards import ShardSet, open_shards
from twostream_ray.errors import ConfigError, ShardError
from twostream_ray.evaluation.report import Report, report_on
from twostream_ray.heads import Head
from twostream_ray.model_source import local_model
from twostream_ray.runs.cluster.session import require_cluster
from twostream_ray.runs.outputs import refuse_foreign_files
from twostream_ray.runs.score.evaluation_run import CONFUSION, REPORT, log_evaluation_run
from twostream_ray.runs.score.results_page import RESULTS, MeasuredOn, confident_mistakes, results_page
from twostream_ray.runs.score.settings import EvaluateConfig
from twostream_ray.runs.splits import evaluation_option, warn_of_clips_trained_on
from twostream_ray.runs.train.preflight import require_shard_files
from twostream_ray.storage import lease
from twostream_ray.storage.json_files import record
from twostream_ray.storage.temporary_folders import sweep, temporary_folder
from twostream_ray.tracking import TrackingConfig

if TYPE_CHECKING:
    from twostream_ray.model_package import ModelPackage
    from twostream_ray.runs.score.calibrate import FittedTemperature
    from twostream_ray.runs.score.clip_scores import ClipScores
    from twostream_ray.runs.score.table_record import TableRecord

_INVALID_IN_METRIC_NAMES = r"[^\w.\-]"
"""What MLflow refuses in a metric's name, and the slash, which here separates data set and metric."""
_OLD_SCORES = "scores.npz"
"""File that earlier versions wrote instead of the score table."""
_FILES = (REPORT, _OLD_SCORES, CONFUSION, RESULTS)
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
    """(n, K) logits of each clip, in the order of the shard set's index; the probabilities are their softmax over the
    classes of each data set."""
    probabilities: NDArray[np.float32]
    """(n, K) probabilities, in [0, 1]; those of each data set sum to 1."""
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
    about: TableRecord
    """The score table's record."""
    protocol: Protocol = VALIDATION
    """Which views of a clip were scored."""
    uri: str = ""
    """Where it was written; empty if nowhere."""
    fitted: FittedTemperature | None = None
    """A temperature fitted on validation clips, if one was requested."""
    model: str = ""
    """The model as it was named: models:/NAME/VERSION, or a directory or s3:// prefix."""

    @property
    def table(self) -> str:
        """sha256 that identifies the score table by data, split, protocol and model."""
        return self.about.identity

    def metrics(self) -> dict[str, float]:
        """top1 and mean_class_accuracy, and top5 if there are enough classes; in [0, 1]."""
        metrics = {"top1": self.report.top1, "mean_class_accuracy": self.report.mean_class}
        return metrics if self.report.top5 is None else metrics | {"top5": self.report.top5}

    def metrics_by_head(self) -> dict[str, float]:
        """The same metrics of each data set and its numbers of clips, as NAME/top1; {} if there is only one."""
        found = {
            f"{re.sub(_INVALID_IN_METRIC_NAMES, '_', head.name)}/{name}": value
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
        """(n,) the best class of each clip among those of its data set."""
        best = np.full(len(self.labels), -1, np.int64)
        for head in self.package.heads:
            mine = (self.labels >= head.start) & (self.labels < head.stop)
            best[mine] = head.start + self.logits[mine, head.columns].argmax(axis=1)
        return best

    def measurement(self) -> tracking.Measurement:
        """The metrics on n of N clips of the split, for the tags of a registered version."""
        return tracking.Measurement(
            manifest_hash=self.manifest_hash,
            split=self.split,
            num_evaluated=self.report.n_evaluated,
            num_clips=self.report.n_expected,
            metrics=self.metrics(),
            scores=self.uri,
            score_table=self.table if self.uri else "",
        )


def evaluate(config: EvaluateConfig, *, progress: Progress | None = None) -> Evaluation:
    """Score a split and write the score table, report.json, confusion.png and results.html to `config.out`.

    Scores of an interrupted call with the same settings are kept. A registered version is tagged with the metrics, and
    the evaluation gets an MLflow run of its own, unless `config.record` is False.

    Raises:
        LeaseError: another process writes to `config.out`.
        ContractMismatchError: the shards' flow is of another kind than the model's.
        ConfigError: the shards' classes are not the model's, or `config.out` has files that this verb did not write.
        ShardError, RegistryError, StorageError, CheckpointError: data or model cannot be read.
    """
    sweep()
    shard_set = open_shards(config.shards)
    require_shard_files(shard_set)
    if tracking.names_version(config.model):
        # An alias may move while clips are scored: the loaded version has to be the tagged one.
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
        LeaseError: another process writes to `config.out`.
        ConfigError: it has files that this verb did not write.
        ShardError: the shards have no such split.
        ClusterError: the cluster cannot be reached.
    """
    try:
        shard_set.split(config.split)
    except ShardError as error:
        raise ShardError(f"{error}: {evaluation_option(config.split, shard_set)}") from None
    # Imported late, as it imports Arrow.
    from twostream_ray.runs.score.score_table import refuse_foreign_table

    refuse_foreign_files(storage.absolute(config.out), _FILES, schema=_REPORT_SCHEMA, verb="evaluate")
    refuse_foreign_table(config.out, verb="evaluate")
    require_cluster()
    with lease.held(config.out, work="evaluate", way_out="wait for it or end it, or choose another --out"):
        yield


def score_split(
    config: EvaluateConfig, shard_set: ShardSet, *, directory: Path, progress: Progress | None = None
) -> Evaluation:
    """Score `config.split` of a shard set with the model in `directory`, into a score table below `config.out`.

    Raises:
        ContractMismatchError: the shards' flow is of another kind than the model's.
        ConfigError: the shards' classes are not the model's, or its network cannot score the protocol's samples.
        TrainingError: scores are not finite.
        ShardError, StorageError, CheckpointError: data or model cannot be read, or `config.out` cannot be written.
    """
    # Imported late: they import torch and Ray, which --help and refused settings do not need.
    from twostream_ray.model_package import MODEL_FILES, check_model
    from twostream_ray.runs.score.calibrate import fitted_temperature, require_calibrates
    from twostream_ray.runs.score.clip_scores import read_clip_scores
    from twostream_ray.runs.score.scorer import describe_table, score_blocks

    package = check_model(directory)
    _require_same_data(config, package, shard_set)
    trained_on = package.lineage.get(tracking.TRAIN_SPLIT)
    warn_of_clips_trained_on(trained_on, shard_set, config.split, model=config.model)
    protocol = resolve_protocol(config.protocol, config.views)
    expected = _expected_by_head(shard_set, config.split, heads=package.heads)
    about = describe_table(
        package,
        shard_set,
        weights=storage.read_bytes(str(directory / MODEL_FILES[0])),
        split=config.split,
        protocol=protocol,
        model=config.model,
        command=_command(config),
        num_expected_by_head=expected,
    )
    if config.calibrate_on is not None:  # before minutes of scoring
        require_calibrates(config.calibrate_on, about, out=config.out)
    score_blocks(
        directory, shard_set, about, protocol=protocol, out=config.out, workers=config.workers, progress=progress
    )
    clips = read_clip_scores(config.out)
    report = _report(clips, expected_by_head=expected)
    return Evaluation(
        report=report,
        logits=clips.scores.logits.astype(np.float32),
        probabilities=clips.scores.probabilities.astype(np.float32),
        labels=clips.labels,
        clip_ids=clips.clip_ids,
        split=config.split,
        manifest_hash=shard_set.hash,
        package=package,
        protocol=protocol,
        about=about,
        uri=storage.absolute(config.out),
        fitted=None if config.calibrate_on is None else fitted_temperature(config.calibrate_on, clips),
        model=config.model,
    )


def _require_same_data(config: EvaluateConfig, package: ModelPackage, shard_set: ShardSet) -> None:
    require_same_contract(
        package.contract, shard_set.contract, wanted_by=f"model {config.model}", found_in=config.shards
    )
    if package.classes != shard_set.classes:
        raise ConfigError(
            f"model {config.model} has {len(package.classes)} classes ({', '.join(package.classes[:4])} ...), "
            f"{config.shards} has {len(shard_set.classes)} ({', '.join(shard_set.classes[:4])} ...): choose shards "
            "of the same classes"
        )


def _report(clips: ClipScores, *, expected_by_head: Sequence[int | None]) -> Report:
    return report_on(
        clips.scores.probabilities if clips.about.protocol["average"] == "softmax" else clips.scores.logits,
        clips.labels,
        classes=clips.about.classes,
        n_expected=clips.about.num_expected,
        heads=clips.about.heads,
        expected_by_head=expected_by_head,
        probabilities=clips.scores.probabilities,
        groups=clips.groups,
    )


def _command(config: EvaluateConfig) -> str:
    """The command that makes the same score table, without --out."""
    words = ["twostream", "evaluate", "--model", config.model, "--shards", config.shards, "--split", config.split]
    if config.protocol != VALIDATION.name:
        words += ["--protocol", config.protocol]
    for field in fields(config.views):
        if (value := getattr(config.views, field.name)) is not None:
            words += [f"--views.{field.name}", str(value).lower() if isinstance(value, bool) else str(value)]
    return shlex.join(words)


def _expected_by_head(shard_set: ShardSet, split: str, *, heads: Sequence[Head]) -> list[int | None]:
    """Clips of each data set in the split, including quarantined ones; None where these were not counted."""
    labels = shard_set.labels[shard_set.split(split)]
    evaluated = [int(((labels >= head.start) & (labels < head.stop)).sum()) for head in heads]
    if not shard_set.quarantined.get(split, 0):
        return list(evaluated)
    quarantined = shard_set.quarantined_by_head.get(split, ())
    if len(quarantined) != len(heads):
        return [None] * len(heads)
    return [here + bad for here, bad in zip(evaluated, quarantined, strict=True)]


def write_evaluation(evaluation: Evaluation, *, out: str, files: Path) -> None:
    """Write report.json, confusion.png and results.html to a directory or prefix, and to `files`.

    Raises:
        StorageError: `out` cannot be written.
    """
    out = storage.absolute(out)
    values = evaluation.report.to_dict() | {"split": evaluation.split, "manifest_hash": evaluation.manifest_hash}
    values |= {
        "protocol": asdict(evaluation.protocol),
        "model": evaluation.model,
        "score_table": evaluation.table,
    }
    if evaluation.fitted is not None:
        values["fitted_temperature"] = evaluation.fitted.to_dict()
    for folder in (out, str(files)):
        storage.write_json(storage.join(folder, REPORT), values)
    storage.delete(storage.join(out, _OLD_SCORES))  # it is of another evaluation
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
    (files / RESULTS).write_bytes(_page(evaluation, confusion=picture, files=files))
    storage.write_bytes(storage.join(out, RESULTS), (files / RESULTS).read_bytes())


def _page(evaluation: Evaluation, *, confusion: Path, files: Path) -> bytes:
    """The results page."""
    about, report = evaluation.about, evaluation.report
    measured = MeasuredOn(
        model=evaluation.model,
        shards=about.shards,
        manifest_hash=about.manifest_hash,
        split=evaluation.split,
        protocol=evaluation.protocol.describe(),
        command=about.command,
        commit=about.commit,
        quarantined=about.quarantined,
        calibrated="" if evaluation.fitted is None else evaluation.fitted.sentence(),
    )
    mistakes = confident_mistakes(
        evaluation.probabilities,
        evaluation.predicted(),
        evaluation.labels,
        evaluation.clip_ids,
        classes=report.classes,
    )
    return results_page(report, measured, mistakes=mistakes, confusion=confusion, files=files)


def _short_name(model: str) -> str:
    """A model's name for a plot's title: run and checkpoint of a path; a registered version as it is."""
    return model if model.startswith("models:/") else "/".join(model.rstrip("/").split("/")[-2:])
