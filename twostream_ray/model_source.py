"""Model resolver: a trained model from the MLflow registry, an object store or a local directory."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from twostream_ray import storage, tracking
from twostream_ray.errors import StorageError
from twostream_ray.storage.temporary_folders import temporary_folder
from twostream_ray.tracking import TrackingConfig


@contextmanager
def local_model(model: str, *, config: TrackingConfig) -> Iterator[Path]:
    """A local directory with a model's files for the duration of the block: the model's own, or a temporary copy.

    Raises:
        RegistryError: the registry has no such model.
        StorageError: there is no such directory or prefix.
    """
    registered = model.startswith(("models:/", "runs:/"))
    uri = model if registered else storage.absolute(model)
    if not registered and not storage.is_s3(uri):
        if not Path(uri).is_dir():
            raise StorageError(
                f"no model at {model}, the directory does not exist: give models:/NAME@champion, or a "
                "directory with model.safetensors and model.json"
            )
        yield Path(uri)
        return
    with temporary_folder() as name:
        folder = Path(name)
        if registered:
            tracking.pull(model, folder, config=config)
        else:
            for file in tracking.PACKAGE_FILES:
                (folder / file).write_bytes(storage.read_bytes(storage.join(uri, file)))
        yield folder
