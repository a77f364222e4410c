"""A trained model on raw videos: fetch it, then classify each file."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from twostream_ray import tracking
from twostream_ray.data.protocols import resolve_protocol
from twostream_ray.runs.score.model_source import local_model
from twostream_ray.runs.score.settings import PredictConfig, PullConfig

if TYPE_CHECKING:
    from twostream_ray.inference import Prediction


def predict(config: PredictConfig) -> Iterator[Prediction]:
    """Classify videos one after the other; one that cannot be used gives a prediction with an error.

    Raises:
        RegistryError, StorageError, CheckpointError: the model cannot be had.
        ConfigError: it was not trained on the data set that config.head names, or its network cannot score the
            protocol's samples.
    """
    with local_model(config.model, config=config.tracking) as directory:
        # It loads torch, which refused settings and --help do without.
        from twostream_ray.inference import Classifier

        classifier = Classifier.load(directory, protocol=resolve_protocol(config.protocol, config.views))
    for video in config.videos:
        yield from classifier.predict([video], top_k=config.top_k, head=config.head)


def pull(config: PullConfig) -> Path:
    """Download a registered model's files, once they have been looked at; gives the directory.

    Raises:
        RegistryError: the registry has no such model, or cannot be reached.
        CheckpointError: what it has is no model.
        StorageError: the directory cannot be written, or has files under these names that were not pulled.
    """
    from twostream_ray.model_package import check_model

    return tracking.pull(config.model, Path(config.out), config=config.tracking, check=check_model)
