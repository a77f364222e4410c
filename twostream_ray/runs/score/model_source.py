"""Where a trained model comes from: a registry, an object store or a directory of this machine."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from twostream_ray import storage, tracking
from twostream_ray.errors import StorageError
from twostream_ray.model_package import MODEL_FILES
from twostream_ray.tracking import TrackingConfig


@dataclass(frozen=True, kw_only=True)
class PullConfig:
    """Download a registered model for use without MLflow: weights, settings and classes."""

    out: str
    """Directory for model.safetensors and model.json."""

    model: str = "models:/two-stream@champion"
    """models:/NAME@champion, models:/NAME/VERSION, or runs:/ID/model."""

    tracking: TrackingConfig = field(default_factory=TrackingConfig)
    """MLflow, whose registry holds the model."""


def local_model(model: str, *, config: tracking.TrackingConfig, folder: Path) -> Path:
    """The directory of a model's files, fetched into `folder` when it is a registry's or an object store's.

    Raises:
        RegistryError: the registry has no such model.
        StorageError: there is no such place.
    """
    if model.startswith(("models:/", "runs:/")):
        return tracking.pull(model, folder, config=config)
    uri = storage.absolute(model)
    if not storage.is_s3(uri):
        if not Path(uri).is_dir():
            raise StorageError(
                f"a model was wanted at {model}, there is no such directory: give models:/NAME@champion, or a "
                "directory with model.safetensors and model.json"
            )
        return Path(uri)
    for name in MODEL_FILES:
        (folder / name).write_bytes(storage.read_bytes(storage.join(uri, name)))
    return folder
