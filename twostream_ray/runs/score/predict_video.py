"""One video of a batch prediction: read, prepared and scored into rows; what is wrong with it is a row's status."""

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
"""The first kind that an error is of."""


@dataclass(frozen=True, kw_only=True, slots=True)
class PreparedVideo:
    """A video ready for the network, or the row that says why it cannot be."""

    uri: str
    """Absolute."""
    clip: EncodedClip | None
    """Both streams; None where there is a row already."""
    row: PredictionRow | None
    """Of a video that cannot be used."""
    seconds: float
    """What reading, decoding and flow have taken."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Answers:
    """A model and what is asked of it."""

    classifier: Classifier
    """It holds the flow contract too."""
    heads: Sequence[Head]
    """Data sets to answer for."""
    top_k: int
    """Best classes of each."""

    def rows(self, prepared: PreparedVideo) -> Iterator[PredictionRow]:
        """The row of a whole video."""
        if prepared.clip is None:
            assert prepared.row is not None  # noqa: S101  (the one or the other)
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


def window_rows(uri: str, answers: Answers, *, every_seconds: float, window_seconds: float) -> Iterator[PredictionRow]:
    """A row for each window of a video, as it comes; where the video breaks off a last row says so.

    Raises:
        StorageError: a store fails or does not answer, which is no fault of the video.
    """
    classifier = answers.classifier
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
                for row in answers.rows(prepared):
                    start = window.start_frame / window.clip.fps
                    end = (window.start_frame + window.clip.num_frames) / window.clip.fps
                    yield replace(row, start_seconds=start, end_seconds=end)
                started = time.perf_counter()
    except (VideoError, AccessError) as error:
        yield bad_row(uri, error, seconds=time.perf_counter() - started)


def prepare_video(uri: str, *, contract: FlowContract, max_frames: int) -> PreparedVideo:
    """Read, decode and compute flow; a bad video gives a row with a status.

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
    """The row of a video that has no answer."""
    status = next(status for kind, status in _STATUS if isinstance(error, kind))
    return PredictionRow(uri=uri, status=status, error=str(error), taken_seconds=seconds)
