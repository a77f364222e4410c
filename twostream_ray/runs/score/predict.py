"""A trained model on raw videos: fetch it, then classify each file."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from twostream_ray import storage, tracking
from twostream_ray.data.protocols import resolve_protocol
from twostream_ray.data.sources import lists
from twostream_ray.data.sources.video_files import TABLE_SUFFIXES, VideoFiles, find_videos, is_video_name
from twostream_ray.runs.score.model_source import local_model
from twostream_ray.runs.score.settings import PredictConfig, PullConfig

if TYPE_CHECKING:
    from twostream_ray.inference import Prediction


def predict(config: PredictConfig) -> Iterator[Prediction]:
    """Classify videos one after the other; one that cannot be used gives a prediction with an error.

    Raises:
        RegistryError, StorageError, CheckpointError: the model cannot be had.
        CatalogError: a folder, glob or table names no video.
        ConfigError: it was not trained on the data set that config.head names, or its network cannot score the
            protocol's samples.
    """
    with local_model(config.model, config=config.tracking) as directory:
        # It loads torch, which refused settings and --help do without.
        from twostream_ray.inference import Classifier

        classifier = Classifier.load(directory, protocol=resolve_protocol(config.protocol, config.views))
    for video in videos_of(config).uris:
        yield from classifier.predict([video], top_k=config.top_k, head=config.head)


def videos_of(config: PredictConfig) -> VideoFiles:
    """The videos that are named, as they are named.

    Raises:
        CatalogError: a folder, glob or table names no video.
        StorageError: one cannot be read.
    """

    def kind_of(uri: str) -> Literal["folder", "file"] | None:
        location = storage.absolute(uri)
        if storage.is_s3(location):
            return _kind_in_store(location)
        path = Path(location)
        return "folder" if path.is_dir() else "file" if path.exists() else None

    return find_videos(
        config.videos,
        kind_of=kind_of,
        list_files=storage.list_entries,
        read_bytes=lambda uri: storage.read_bytes(uri, limit_bytes=lists.LIMIT_BYTES),
    )


def _kind_in_store(uri: str) -> Literal["folder", "file"] | None:
    if any(sign in uri for sign in "*?["):
        return None
    if is_video_name(uri) or uri.lower().endswith(TABLE_SUFFIXES):
        return "file"
    system, path = storage.filesystem(uri, patient=True)
    return "file" if system.get_file_info(path).is_file else "folder"


def pull(config: PullConfig) -> Path:
    """Download a registered model's files, once they have been looked at; gives the directory.

    Raises:
        RegistryError: the registry has no such model, or cannot be reached.
        CheckpointError: what it has is no model.
        StorageError: the directory cannot be written, or has files under these names that were not pulled.
    """
    from twostream_ray.model_package import check_model

    return tracking.pull(config.model, Path(config.out), config=config.tracking, check=check_model)
