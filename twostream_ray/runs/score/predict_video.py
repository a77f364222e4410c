"""Prediction rows of a video: it is read, prepared and scored; a fault of the video becomes the status of its row."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, replace

from twostream_ray import storage
from twostream_ray.data.encoded_clip import EncodedClip
from twostream_ray.data.flow import FlowContract
from twostream_ray.data.video.isolation import prepare_in_subprocess, windows_in_subprocess
from twostream_ray.data.video.prepare import Source
from twostream_ray.errors import (
    AccessError,
    CheckpointError,
    EmptyClipError,
    MissingError,
    TooLongError,
    TwoStreamError,
    VideoError,
)
from twostream_ray.heads import Head
from twostream_ray.inference import Classifier
from twostream_ray.runs.score.prediction_table import PredictionRow, Status

_LARGEST_VIDEO_BYTES = 64 << 30
_STATUS: tuple[tuple[type[TwoStreamError], Status], ...] = (
    (EmptyClipError, "too_short"),
    (TooLongError, "too_long"),
    (VideoError, "undecodable"),
    (MissingError, "missing"),
    (AccessError, "unreadable"),
    (CheckpointError, "no_finite_score"),
)
"""Error class -> status; the first match counts."""


@dataclass(frozen=True, kw_only=True, slots=True)
class PreparedVideo:
    """A video ready for the network, or the row with the reason why it is not."""

    uri: str
    """Absolute URI of the video."""
    clip: EncodedClip | None
    """Both streams; None for a bad video."""
    row: PredictionRow | None
    """The row of a bad video."""
    seconds: float
    """Wall time of reading, decoding and flow."""


@dataclass(frozen=True, kw_only=True, slots=True)
class RowScorer:
    """Scores prepared videos with a model."""

    classifier: Classifier
    """The model, with its flow contract."""
    heads: Sequence[Head]
    """Data sets to predict for."""
    top_k: int
    """Number of best classes for each."""

    def rows(self, prepared: PreparedVideo) -> Iterator[PredictionRow]:
        """The row of a video that is predicted as a whole, or of a window."""
        if prepared.clip is None:
            assert prepared.row is not None  # noqa: S101  (either is set)
            yield prepared.row
            return
        started = time.perf_counter()
        clip = prepared.clip
        try:
            scores = self.classifier.score_clip(clip, name=prepared.uri)
        except (VideoError, CheckpointError) as error:
            yield bad_row(prepared.uri, error, seconds=prepared.seconds + time.perf_counter() - started)
            return
        yield PredictionRow(
            uri=prepared.uri,
            status="ok",
            heads=self.classifier.answers(scores, heads=self.heads, top_k=self.top_k),
            start_seconds=0.0,
            end_seconds=clip.num_frames / clip.fps,
            frames=clip.num_frames,
            taken_seconds=prepared.seconds + time.perf_counter() - started,
        )


def window_rows(uri: str, scorer: RowScorer, *, every_seconds: float, window_seconds: float) -> Iterator[PredictionRow]:
    """A row for each window of a video, while it is decoded; if decoding fails, a last row with the error.

    Raises:
        StorageError: a store fails or does not answer, which is no fault of the video.
    """
    classifier = scorer.classifier
    started = time.perf_counter()
    try:
        with (
            storage.on_disk(uri, limit_bytes=_LARGEST_VIDEO_BYTES) as path,
            closing(
                windows_in_subprocess(
                    path,
                    classifier.package.contract,
                    name=uri,
                    every_seconds=every_seconds,
                    window_seconds=window_seconds,
                )
            ) as windows,
        ):
            for window in windows:
                prepared = PreparedVideo(uri=uri, clip=window.clip, row=None, seconds=time.perf_counter() - started)
                for row in scorer.rows(prepared):
                    start = window.start_frame / window.clip.fps
                    end = (window.start_frame + window.clip.num_frames) / window.clip.fps
                    yield replace(row, start_seconds=start, end_seconds=end)
                started = time.perf_counter()
    except (VideoError, AccessError) as error:
        yield bad_row(uri, error, seconds=time.perf_counter() - started)


def prepare_video(uri: str, *, contract: FlowContract, max_frames: int) -> PreparedVideo:
    """Read and decode a video and compute its flow; a bad video becomes a row with a status.

    Raises:
        StorageError: a store fails or does not answer, which is no fault of the video.
    """
    started = time.perf_counter()
    try:
        with storage.on_disk(uri, limit_bytes=_LARGEST_VIDEO_BYTES) as path:
            clip = prepare_in_subprocess(Source(video=path), contract, name=uri, max_frames=max_frames)
    except (VideoError, AccessError) as error:
        seconds = time.perf_counter() - started
        return PreparedVideo(uri=uri, clip=None, row=bad_row(uri, error, seconds=seconds), seconds=seconds)
    return PreparedVideo(uri=uri, clip=clip, row=None, seconds=time.perf_counter() - started)


def bad_row(uri: str, error: TwoStreamError, *, seconds: float) -> PredictionRow:
    """The row of a video without a prediction."""
    status = next(status for kind, status in _STATUS if isinstance(error, kind))
    return PredictionRow(uri=uri, status=status, error=str(error), taken_seconds=seconds)
