"""Champion-challenger comparison: the champion is also scored on the split that the challenger was scored on.

A measurement belongs to one split of one manifest, so without this no new model could be compared with the champion
once clips are added to the data.
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


def promote_against_champion(
    config: EvaluateConfig, shard_set: ShardSet, *, name: str, version: int, run: tracking.RunHandle
) -> tracking.Verdict:
    """Promote a version that was measured on a split; the champion is first scored on it if it was not.

    If the champion cannot be scored there, as with other classes or another kind of flow, the verdict says why.

    Args:
        config: shards, split and workers; its `model` is not used.
        shard_set: the opened shards.
        name: name of the registered model.
        version: the version to promote.
        run: the MLflow run that trained it, in which the champion's evaluation is nested.

    Raises:
        RegistryError: MLflow does not answer.
    """
    data = {"manifest_hash": shard_set.hash, "split": config.split}
    champion = tracking.unmeasured_champion(name, config=config.tracking, **data)
    obstacle = ""
    if champion not in (None, version):
        try:
            _measure(config, shard_set, name=name, version=champion, run=run)
        except TwoStreamError as error:  # a fault of the champion must not lose the new version
            obstacle = str(error)
    return with_significance(
        tracking.promote(name, version, config=config.tracking, shards=shard_set.uri, obstacle=obstacle, **data)
    )


def _measure(config: EvaluateConfig, shard_set: ShardSet, *, name: str, version: int, run: tracking.RunHandle) -> None:
    """Score a registered version on a split, and tag the version with the measurement.

    Raises:
        ConfigError: it was trained on clips of the split.
    """
    model = f"models:/{name}/{version}"
    _log.warning("champion %s was never scored on split %s of these data: scoring it now", model, config.split)
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
    """Refuse a model that was trained on clips of a split, as of a part that was held out later.

    Raises:
        ConfigError: names how many.
    """
    train_split = lineage.get(tracking.TRAIN_SPLIT)
    if shared := count_clips_trained_on(train_split, shard_set, split):
        raise ConfigError(
            f"{model} was trained on {shared} of the {len(shard_set.split(split))} clips of {split} (they are in "
            f"{train_split}), so its score does not generalise: compare on a split that neither was trained on"
        )


def require_same_classes(config: ExperimentConfig, shard_set: ShardSet) -> None:
    """Refuse, before hours of training, a registered model that has other classes than the shards.

    Passes if the registry cannot be reached or has no such model.

    Raises:
        ConfigError: names both, and the way out.
    """
    if not config.tracking.register:
        return
    name = config.tracking.registered_name(shard_set.data_set)
    try:
        classes = tracking.registered_classes(name, config=config.tracking)
    except TwoStreamError as error:
        _log.debug("the classes of %s are unknown: %s", name, error)
        return
    if classes is None or classes == shard_set.classes:
        return
    raise ConfigError(
        f"the registered model {name} has {_listed(classes)}, {shard_set.uri} has {_listed(shard_set.classes)}: choose "
        "another --tracking.model_name for other classes, or do not register it with --tracking.register false"
    )


def _listed(classes: tuple[str, ...]) -> str:
    return f"{len(classes)} classes ({', '.join(classes[:_SHOWN])}{' ...' if len(classes) > _SHOWN else ''})"
