"""Champion against challenger on new data: the champion is scored on the split that its challenger was scored on.

A measurement counts on one split of one manifest, so whatever is added to the data would leave a champion that nothing
can be compared with.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path

from twostream_ray import storage, tracking
from twostream_ray.data.shards.shards import ShardSet
from twostream_ray.errors import ConfigError, TwoStreamError
from twostream_ray.model_package import read_package
from twostream_ray.model_source import local_model
from twostream_ray.runs.experiment import ExperimentConfig
from twostream_ray.runs.score.evaluate import score_split, write_evaluation
from twostream_ray.runs.score.evaluation_run import log_evaluation_run
from twostream_ray.runs.score.settings import EvaluateConfig
from twostream_ray.runs.score.significance import with_significance
from twostream_ray.runs.splits import count_clips_trained_on
from twostream_ray.storage.temporary_folders import temporary_folder

_SHOWN = 4

_log = logging.getLogger(__name__)


def compete(
    config: EvaluateConfig, shard_set: ShardSet, *, name: str, version: int, run: tracking.RunHandle
) -> tracking.Verdict:
    """Promote a version that was measured on a split; a champion that was not is scored on it first.

    What keeps the champion from being scored there, as classes or flow of another kind, is in the verdict.

    Args:
        config: shards, split and workers; the model that it names is not asked for.
        shard_set: the shards, open.
        name: of the registered model.
        version: the one that is to be promoted.
        run: the MLflow run that made it, under which the champion's evaluation is shown.

    Raises:
        RegistryError: MLflow does not answer.
    """
    data = {"manifest_hash": shard_set.hash, "split": config.split}
    champion = tracking.unmeasured_champion(name, config=config.tracking, **data)
    obstacle = ""
    if champion not in (None, version):
        try:
            _measure(config, shard_set, name=name, version=champion, run=run)
        except TwoStreamError as error:  # whatever the champion is, the new version has been trained
            obstacle = str(error)
    return with_significance(
        tracking.promote(name, version, config=config.tracking, shards=shard_set.uri, obstacle=obstacle, **data)
    )


def _measure(config: EvaluateConfig, shard_set: ShardSet, *, name: str, version: int, run: tracking.RunHandle) -> None:
    """Score a registered version on a split, and record that with it.

    Raises:
        ConfigError: it was trained on clips of the split.
    """
    model = f"models:/{name}/{version}"
    _log.warning("%s, champion, was never scored on split %s of these data: it is scored now", model, config.split)
    config = EvaluateConfig(
        model=model,
        shards=config.shards,
        split=config.split,
        out=storage.join(config.out, f"champion-{version}"),
        workers=config.workers,
        tracking=config.tracking,
    )
    with local_model(model, config=config.tracking) as directory, temporary_folder() as scratch:
        _refuse_trained_on(read_package(directory).lineage, shard_set, model=model, split=config.split)
        evaluation = score_split(config, shard_set, directory=directory)
        write_evaluation(evaluation, out=config.out, files=Path(scratch))
        log_evaluation_run(config, evaluation, shard_set, files=Path(scratch), parent=run)
    tracking.record_measurement(name, version, evaluation.measurement(), config=config.tracking)


def _refuse_trained_on(lineage: Mapping[str, str], shard_set: ShardSet, *, model: str, split: str) -> None:
    """Raise ConfigError where a model knows clips of a split from its training, as of a part that was cut off later."""
    train_split = lineage.get(tracking.TRAIN_SPLIT)
    if shared := count_clips_trained_on(train_split, shard_set, split):
        raise ConfigError(
            f"{model} was trained on {shared} of the {len(shard_set.split(split))} clips of {split} (they are in "
            f"{train_split}), so its score there says nothing of new clips: compare on a split that neither has seen"
        )


def require_same_classes(config: ExperimentConfig, shard_set: ShardSet) -> None:
    """Refuse, before hours of training, a registered model that has other classes than the shards.

    A registry that is away or has no such model refuses nothing.

    Raises:
        ConfigError: names both, and the way out.
    """
    if not config.tracking.register:
        return
    name = config.tracking.registered_name(shard_set.data_set)
    try:
        classes = tracking.registered_classes(name, config=config.tracking)
    except TwoStreamError as error:
        _log.debug("the classes of %s are not known: %s", name, error)
        return
    if classes is None or classes == shard_set.classes:
        return
    raise ConfigError(
        f"the registered model {name} has {_listed(classes)}, {shard_set.uri} has {_listed(shard_set.classes)}: other "
        "classes are another model, choose another --tracking.model_name, or leave it out with --tracking.register "
        "false"
    )


def _listed(classes: tuple[str, ...]) -> str:
    return f"{len(classes)} classes ({', '.join(classes[:_SHOWN])}{' ...' if len(classes) > _SHOWN else ''})"
