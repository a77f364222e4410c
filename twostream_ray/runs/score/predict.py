"""Inference on raw videos with a trained model: load the model, then classify each file, or windows of it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from twostream_ray import storage, tracking
from twostream_ray.data.protocols import resolve_protocol
from twostream_ray.data.sources import lists
from twostream_ray.data.sources.video_files import TABLE_SUFFIXES, VideoFiles, find_videos, is_video_name
from twostream_ray.errors import ConfigError, DecodeError
from twostream_ray.heads import choose_heads
from twostream_ray.model_source import local_model
from twostream_ray.runs.outputs import refuse_unmarked_file
from twostream_ray.runs.score.settings import PredictConfig, PullConfig
from twostream_ray.storage.temporary_folders import temporary_folder

if TYPE_CHECKING:
    from twostream_ray.inference import Prediction
    from twostream_ray.runs.score.prediction_table import PredictionRow


def predict(config: PredictConfig) -> Iterator[Prediction]:
    """Classify videos one after the other; for a bad video the prediction has an error.

    Raises:
        RegistryError, StorageError, CheckpointError: the model cannot be loaded.
        CatalogError: a folder, glob or table names no video.
        ConfigError: the model was not trained on the data set that config.head names, or cannot score the
            protocol's samples.
    """
    with local_model(config.model, config=config.tracking) as directory:
        # Imported late: it imports torch, which --help and refused settings do not need.
        from twostream_ray.inference import Classifier

        classifier = Classifier.load(directory, protocol=resolve_protocol(config.protocol, config.views))
    for video in videos_of(config).uris:
        yield from classifier.predict([video], top_k=config.top_k, head=config.head)


def predict_windows(config: PredictConfig) -> Iterator[PredictionRow]:
    """Classify windows of videos as they are decoded; a video with a fault gets a row with the fault.

    Raises:
        As `predict`.
    """
    assert config.windows is not None  # noqa: S101  (checked by the verb)
    with local_model(config.model, config=config.tracking) as directory:
        from twostream_ray.inference import Classifier
        from twostream_ray.runs.score.predict_video import RowScorer, window_rows

        classifier = Classifier.load(directory, protocol=resolve_protocol(config.protocol, config.views))
    heads = choose_heads(classifier.heads, config.head, of="the model")
    scorer = RowScorer(classifier=classifier, heads=heads, top_k=config.top_k)
    every, length = config.windows
    for video in videos_of(config).uris:
        yield from window_rows(video, scorer, every_seconds=every, window_seconds=length)


def require_annotatable(config: PredictConfig) -> str:
    """The video to annotate as `config.video`, checked before anything slow starts.

    Raises:
        CatalogError, StorageError: as `videos_of`.
        ConfigError: there are several, or `config.video` exists and was not written by this verb.
    """
    from twostream_ray.data.video.captions import MARK

    assert config.video is not None  # noqa: S101  (checked by the verb)
    uris = videos_of(config).uris
    if len(uris) != 1:
        raise ConfigError(f"--video annotates one video, got {len(uris)}: name one")
    if storage.contains(config.video, uris[0]):
        raise ConfigError(f"video must be another file than the one to read, got {config.video}")
    refuse_unmarked_file(config.video, mark=MARK, verb="predict")
    storage.require_writable(config.video)
    return uris[0]


def draw(config: PredictConfig, rows: Sequence[PredictionRow]) -> int:
    """Write the video of these rows to `config.video`, annotated with their classes; returns the number of frames.

    Raises:
        ConfigError: the rows have predictions for several data sets.
        VideoError: the video cannot be decoded to its end.
        StorageError: `config.video` cannot be written.
    """
    from twostream_ray.data.video.captions import Caption
    from twostream_ray.data.video.isolation import caption_in_subprocess

    assert config.video is not None  # noqa: S101  (checked by the verb)
    captions = []
    for row in rows:
        if row.start_seconds is None or row.end_seconds is None:
            raise DecodeError(f"{row.error}: nothing was drawn")
        if len(row.heads) != 1:
            raise ConfigError(f"one data set's classes can be drawn, got {len(row.heads)}: give --head NAME")
        top = tuple((name.removeprefix(f"{row.heads[0].name}/"), share) for name, share in row.heads[0].top)
        captions.append(Caption(start_seconds=row.start_seconds, end_seconds=row.end_seconds, top=top))
    with storage.on_disk(rows[0].uri) as path, temporary_folder() as folder:
        drawn = Path(folder) / "drawn.mp4"
        num_frames = caption_in_subprocess(path, drawn, captions, name=rows[0].uri)
        storage.write_file(config.video, drawn)
    return num_frames


def videos_of(config: PredictConfig) -> VideoFiles:
    """The videos that the settings name.

    Raises:
        CatalogError: a folder, glob or table names no video.
        StorageError: a folder or table cannot be read.
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
    """Download a registered model's files after checking them; returns the directory.

    Raises:
        RegistryError: the registry has no such model, or cannot be reached.
        CheckpointError: its files are not a model.
        StorageError: the directory cannot be written, or has files under these names that were not pulled.
    """
    from twostream_ray.model_package import check_model

    return tracking.pull(config.model, Path(config.out), config=config.tracking, check=check_model)
