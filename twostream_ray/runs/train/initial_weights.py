"""Warm start (transfer learning): a run's network is initialised from another model's weights, copied once.

The copy is in `<storage>/<name>/init/`: the source's model.safetensors and model.json, and init.json, written last. So
a run that restarts before its first checkpoint uses the same weights even if an alias has moved meanwhile, and workers
need no access to the registry.
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

from twostream_ray import storage, tracking
from twostream_ray.data.flow import require_same_contract
from twostream_ray.errors import CheckpointError, ConfigError, StorageError
from twostream_ray.model_package import MODEL_FILES, ModelPackage, difference_to, read_package
from twostream_ray.models.build import Network
from twostream_ray.runs.experiment import ExperimentConfig
from twostream_ray.runs.run_folder import CHECKPOINT_NAME, INIT, RunFolder
from twostream_ray.settings.parser import dotted
from twostream_ray.storage.json_files import SHA256, WORD, read_json, record
from twostream_ray.storage.temporary_folders import temporary_folder

_RECORD = "init.json"
_RECORD_SCHEMA = record(
    {"wanted": WORD, "source": WORD, "sha256": SHA256, "keeps_heads": {"type": "boolean"}, "network": SHA256}
)
_REPORT = record({"checkpoint": {"type": "string", "pattern": rf"(^|/){CHECKPOINT_NAME}\Z"}}, others=True)
_WITHOUT_WEIGHTS = {
    *("weights", "dropout", "frozen_through", "freeze_below_fusion", "initialisation", "pool_snippets", "pool_stride"),
    *("num_classes", "head_classes"),
}
"""Model settings that change neither the names nor the shapes of weights, except those of the heads."""
_SHOWN = 3

_log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class InitialWeights:
    """The weights that a run's network starts from."""

    uri: str
    """The copy in the run's folder."""
    source: str
    """What was copied: models:/NAME/VERSION, or the directory or s3:// prefix of a checkpoint."""
    sha256: str
    """Of the weights file."""
    keeps_heads: bool
    """Whether its heads are used too, as it has the same classes."""

    @property
    def lineage(self) -> dict[str, str]:
        """Tags of the MLflow run and of the trained model."""
        return {"init_from": self.source, "init_sha256": self.sha256}

    @contextmanager
    def on_disk(self) -> Iterator[Path]:
        """A local directory with the copy's files while the block runs."""
        with _on_disk(self.uri) as directory:
            yield directory


def keep_initial_weights(
    config: ExperimentConfig, folder: RunFolder, *, package: ModelPackage, network: Network
) -> InitialWeights | None:
    """Copy the weights that `config.init` names into the run's folder, once; None if it names none.

    `package` and `network` describe the model to train; the network is on the meta device.

    Raises:
        ConfigError: the source has another architecture; the message names the settings.
        ContractMismatchError: it was trained on another kind of flow.
        RegistryError, StorageError, CheckpointError: it cannot be read, or is damaged.
    """
    if config.init is None:
        return None
    uri = storage.join(folder.uri, INIT)
    asked_for = {"wanted": config.init, "network": _fingerprint(package)}
    # Not needed once there is a checkpoint; before that, settings or data may have changed since they were copied.
    if (kept := _kept(uri, asked_for={} if folder.has_checkpoint() else asked_for)) is not None:
        return kept
    with _source(config.init, config=config.tracking) as (directory, source):
        source_package = read_package(directory)
        keeps_heads = _require_fitting(source_package, directory, package=package, network=network, source=source)
        with (directory / MODEL_FILES[0]).open("rb") as file:
            sha256 = hashlib.file_digest(file, "sha256").hexdigest()
        for name in MODEL_FILES:
            storage.write_file(storage.join(uri, name), directory / name)
    initial = InitialWeights(uri=uri, source=source, sha256=sha256, keeps_heads=keeps_heads)
    values = {name: value for name, value in asdict(initial).items() if name != "uri"}
    storage.write_json(storage.join(uri, _RECORD), values | asked_for)
    heads = "" if keeps_heads else f"; its heads are initialised anew: {_changed_classes(source_package, package)}"
    _log.warning("%s starts from %s%s", folder.what, source, heads)
    return initial


def _fingerprint(package: ModelPackage) -> str:
    """Hash of everything that the weights have to fit: network, classes and flow."""
    values = {"model": asdict(package.model), "classes": package.classes, "flow": package.contract.to_dict()}
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()


def _kept(uri: str, *, asked_for: dict[str, str]) -> InitialWeights | None:
    """The copy of an earlier start; None if that had other settings, or was killed before the copy was complete."""
    where = storage.join(uri, _RECORD)
    if not storage.exists(where):
        return None
    values = read_json(
        where,
        _RECORD_SCHEMA,
        what="the record of a run's initial weights",
        way_out="delete it and run the same command again",
        error=ConfigError,
    )
    if any(values[name] != value for name, value in asked_for.items()):
        return None
    return InitialWeights(uri=uri, **{name: values[name] for name in ("source", "sha256", "keeps_heads")})


@contextmanager
def _source(init: str, *, config: tracking.TrackingConfig) -> Iterator[tuple[Path, str]]:
    """A directory with the source's files while the block runs, and its name without an alias."""
    if init.startswith(("models:/", "runs:/")):
        source = init
        if tracking.names_version(init):
            name, version = tracking.find_version(init, config=config)
            source = f"models:/{name}/{version}"
        with temporary_folder() as scratch:
            yield tracking.pull(source, Path(scratch), config=config), source
        return
    source = _checkpoint_of(init)
    with _on_disk(source) as directory:
        yield directory, source


@contextmanager
def _on_disk(uri: str) -> Iterator[Path]:
    """A model's directory; for an s3:// prefix a temporary copy of its files."""
    if not storage.is_s3(uri):
        yield Path(uri)
        return
    with temporary_folder() as scratch:
        for name in MODEL_FILES:
            storage.copy_to_disk(storage.join(uri, name), Path(scratch, name))
        yield Path(scratch)


def _checkpoint_of(init: str) -> str:
    """The checkpoint at a directory or prefix; for a finished run's folder, the one that its report names."""
    if storage.exists(storage.join(init, MODEL_FILES[1])):
        return init
    report = RunFolder(uri=init, what="the run").report
    if not storage.exists(report):
        begun = storage.exists(RunFolder(uri=init, what="the run").settings)
        raise StorageError(
            f"init={init} is the folder of an unfinished run: name one of the checkpoints in it"
            if begun
            else f"init={init} wants a trained network, but there is none: give models:/NAME@champion, the folder of a "
            f"finished run, or a checkpoint with {' and '.join(MODEL_FILES)}"
        )
    way_out = "name one of the checkpoints in the folder"
    values = read_json(report, _REPORT, what="the report of a training run", way_out=way_out, error=CheckpointError)
    return storage.join(init, values["checkpoint"].rpartition("/")[2])


def _require_fitting(
    source_package: ModelPackage, directory: Path, *, package: ModelPackage, network: Network, source: str
) -> bool:
    """Refuse weights of another architecture or kind of flow; returns whether the heads fit too."""
    if network.needs_flow:
        require_same_contract(
            source_package.contract, package.contract, wanted_by=f"the network of init={source}", found_in="the data"
        )
    keeps_heads = (source_package.classes, source_package.model.head_classes) == (
        package.classes,
        package.model.head_classes,
    )
    if fault := difference_to(network, directory, heads=keeps_heads):
        then, now = dotted(asdict(source_package.model)), dotted(asdict(package.model))
        keys = [key for key in now if then.get(key) != now[key] and key.rpartition(".")[2] not in _WITHOUT_WEIGHTS]
        settings = ", ".join(f"model.{key} is {then.get(key)} there, {now[key]} here" for key in keys[:_SHOWN])
        raise ConfigError(
            f"init={source} differs from the network to train ({f'{settings}; ' if settings else ''}{fault}): "
            "use its model settings, or initialise single towers with model.spatial.weights and "
            f"model.temporal.weights from its {MODEL_FILES[0]}"
        )
    return keeps_heads


def _changed_classes(source_package: ModelPackage, package: ModelPackage) -> str:
    """How the classes differ, in words."""
    if set(source_package.classes) == set(package.classes):
        return "the same classes are in another order or belong to other data sets"
    new = [name for name in package.classes if name not in set(source_package.classes)]
    shown = ", ".join(new[:_SHOWN]) + (f" and {len(new) - _SHOWN} more" if len(new) > _SHOWN else "")
    return f"{len(source_package.classes)} classes there, {len(package.classes)} here" + (
        f" ({shown} new)" if new else ""
    )
