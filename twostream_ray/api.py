"""Python API (facade pattern): networks, data loaders and training, by `import twostream_ray as ts`.

Settings are those of the command line: a recipe by its name or path, and any of its fields as nested keywords.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from twostream_ray import storage
from twostream_ray.errors import ConfigError
from twostream_ray.runs.experiment import ExperimentConfig, refuse_dry_run
from twostream_ray.settings.parser import from_arguments
from twostream_ray.verbs import announce
from twostream_ray.verbs.commands import all_settings

if TYPE_CHECKING:
    import torch

    from twostream_ray.data.loading.tensor_loader import TensorLoader
    from twostream_ray.data.shards.shards import ShardSet
    from twostream_ray.models.build import Network
    from twostream_ray.runs.score.publish import FinishedRun

__all__ = ["experiment_config", "loader", "network", "train"]

Recipe = str | Path | Mapping[str, Any] | ExperimentConfig
"""A recipe's name or path, its values as nested dictionaries, or finished settings."""


def experiment_config(recipe: Recipe, **changes: Any) -> ExperimentConfig:
    """The settings of a recipe with overrides: `experiment_config("demo", training={"epochs": 2})`.

    Args:
        recipe: name or path of a YAML recipe, its values, or an ExperimentConfig.
        changes: fields of ExperimentConfig; nested settings are given as dictionaries, and fields that these leave
            out keep their values.

    Raises:
        ConfigError: an unknown field, a bad value, a missing one, or a recipe that cannot be read.
    """
    if isinstance(recipe, ExperimentConfig) and not changes:
        return recipe
    return _settings(recipe, changes)


def network(
    recipe: Recipe, *, num_classes: int, pretrained: bool = True, seed: int | None = None, **changes: Any
) -> Network:
    """A recipe's network as a `torch.nn.Module`, initialised, in training mode, on the CPU.

    `network(rgb, flow)` takes (B, T, 3, H, W) and (B, T, 2L, H, W) float32, as `loader` gives them, and answers with
    the logits (B, K) of each tower by name; `network.probabilities(outputs)` are (B, K) in [0, 1].

    Args:
        recipe: name or path of a YAML recipe, its values, or an ExperimentConfig.
        num_classes: K, at least 1.
        pretrained: whether towers load the weights that the recipe names ("imagenet" is downloaded once).
        seed: of the random initialisation, from 0; None uses torch's present random state.
        changes: fields of ExperimentConfig, as in `experiment_config`.

    Raises:
        ConfigError: settings contradict each other, or have another number of classes.
        WeightsError: weights that the recipe names are unavailable or do not fit.
    """
    if num_classes < 1:
        raise ConfigError(f"num_classes must be at least 1, got {num_classes}")
    config = _settings(recipe, changes, unused={"name": "network", "data": {"shards": "unused"}})
    import torch

    from twostream_ray.models.build import build_network

    with torch.random.fork_rng(enabled=seed is not None):
        if seed is not None:
            torch.manual_seed(seed)
        return build_network(
            config.model,
            num_classes=num_classes,
            flow_length=config.data.sampling.flow_length,
            read_bytes=storage.read_bytes,
            pretrained=pretrained,
        )


def loader(
    shards: ShardSet | str | Path,
    *,
    split: str = "train",
    batch: int = 8,
    device: torch.device | str = "cpu",
    seed: int = 0,
    training: bool | None = None,
    recipe: Recipe | None = None,
    want_rgb: bool = True,
    want_flow: bool = True,
    **data: Any,
) -> TensorLoader:
    """Normalised tensors for a plain PyTorch loop, without a Ray cluster; each iteration is an epoch.

    A batch has `rgb` (B, T, 3, H, W) and `flow` (B, T, 2L, H, W), float32, `labels` (B,) and `clip_ids`; the
    samples are those that `train` sees for the same (seed, epoch, clip), whatever the batch.

    Args:
        shards: URI or path of a shard set written by `twostream ingest`, or the result of `open_shards`.
        split: a split of the shards.
        batch: clips of a batch, at least 1; the last of an epoch may have fewer.
        device: device of the tensors; a GPU with a JPEG decoder decodes flow itself.
        seed: of order and views, from 0.
        training: True shuffles and draws one view per clip; False yields `data.sampling.test_times` evenly spaced
            views of each clip, in order. By default it is True for splits whose names begin with "train".
        recipe: its `data` settings define the samples; by default DataConfig's defaults (5 snippets of 224 px).
        want_rgb: whether RGB frames are read and decoded.
        want_flow: whether flow is read and decoded.
        data: overrides of DataConfig, as `sampling={"num_snippets": 1}, transforms={"crop_px": 96}`.

    Raises:
        ConfigError: settings contradict each other, or the device is not available.
        ShardError: the shards do not exist, are damaged, or lack the split.
        StorageError: they cannot be read.
    """
    import torch

    from twostream_ray.data.loading.tensor_loader import TensorLoader
    from twostream_ray.data.shards.shards import open_shards

    shard_set = open_shards(str(shards)) if isinstance(shards, str | Path) else shards
    values = {"data": {**data, "shards": shard_set.uri}}
    config = _settings({} if recipe is None else recipe, values, unused={"name": "loader"})
    return TensorLoader(
        shard_set,
        config=config.data,
        split=split,
        batch=batch,
        device=torch.device(device),
        seed=seed,
        training=split.startswith("train") if training is None else training,
        want_rgb=want_rgb,
        want_flow=want_flow,
    )


def train(recipe: Recipe, *, show_progress: bool = True, **changes: Any) -> FinishedRun:
    """Train, evaluate and register, as `twostream train` does; the same call again resumes an interrupted run.

    `train("demo", name="first", data={"shards": "shards"}, training={"epochs": 2})` gives what became of it:
    `.trained.checkpoint` is the folder or prefix of the model, `.published.evaluation.report` has top-1, and
    `.published` is None where an earlier call has published the run. It joins the Ray cluster of RAY_ADDRESS, or
    starts one on this machine and ends it.

    Args:
        recipe: name or path of a YAML recipe, its values, or an ExperimentConfig.
        show_progress: whether the plan and bars are shown on the terminal.
        changes: fields of ExperimentConfig, as in `experiment_config`.

    Raises:
        KeyboardInterrupt: Ctrl-C was pressed; what was finished is kept.
        TwoStreamError: one line that says what was wanted, what came and the way out.
    """
    config = experiment_config(recipe, **changes)
    refuse_dry_run(config)
    config.tracking.require_usable()
    from twostream_ray.console import TrainingDisplay
    from twostream_ray.runs.cluster.session import ray_session, stop_on_sigterm
    from twostream_ray.runs.run_folder import RunFolder
    from twostream_ray.runs.train.preflight import SPLITS, require_ready

    # Before MLflow is imported and a cluster is started, which takes seconds.
    folder = RunFolder.of(config)
    shard_set = require_ready(config, splits=SPLITS, folder=folder)
    if show_progress:
        announce(config, shard_set, folder=folder)
    else:
        from twostream_ray.runs.train.plan import plan_training

        plan_training(config, shard_set, folder=folder)
    from twostream_ray.runs.score.publish import prepare_run, train_and_publish

    prepare_run(config, shard_set)
    with ray_session(), ExitStack() as showing:
        progress = showing.enter_context(TrainingDisplay(config.name)).event if show_progress else None
        stop = showing.enter_context(stop_on_sigterm())
        return train_and_publish(config, progress=progress, stop=stop, when_trained=showing.close)


def _settings(
    recipe: Recipe, changes: Mapping[str, Any], *, unused: Mapping[str, Any] | None = None
) -> ExperimentConfig:
    """A recipe's settings with overrides, merged as the command line merges several `--config`.

    `unused` has values for required settings that the caller does not use.
    """
    layers: list[str] = [] if unused is None else [json.dumps(unused)]
    match recipe:
        case ExperimentConfig():
            layers.append(json.dumps(asdict(recipe)))
        case Mapping():
            layers.append(_as_json(recipe))
        case _:
            layers.append(str(recipe))
    layers.append(_as_json(changes))
    given = [part for layer in layers for part in ("--config", layer)]
    return from_arguments(ExperimentConfig, given, elsewhere=all_settings)


def _as_json(values: Mapping[str, Any]) -> str:
    try:
        return json.dumps(values, default=_plain)
    except (TypeError, ValueError) as error:
        raise ConfigError(f"settings are texts, numbers, true, false, None, lists and dictionaries ({error})") from None


def _plain(value: object) -> object:
    """Settings classes and paths in JSON's types."""
    if isinstance(value, Path):
        return str(value)
    if hasattr(value, "__dataclass_fields__"):
        return asdict(value)  # type: ignore[call-overload]
    raise TypeError(f"{type(value).__name__} is none of them")
