"""Inference pipeline on raw videos: decoding, flow, snippets and scores as in ingest and evaluation; imports no Ray."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from torch import Tensor

from twostream_ray import storage
from twostream_ray.data.encoded_clip import EncodedClip
from twostream_ray.data.protocols import VALIDATION, Protocol, resolve_protocol
from twostream_ray.data.sampling import field_indices
from twostream_ray.data.video.isolation import Pool, decoder_pool, prepare_in_subprocess
from twostream_ray.data.video.limits import VideoLimits
from twostream_ray.data.video.prepare import Source
from twostream_ray.data.views import View
from twostream_ray.errors import CheckpointError, ConfigError, StorageError, TooLongError, VideoError
from twostream_ray.evaluation.aggregate import aggregate
from twostream_ray.heads import ClassScores, Head, choose_heads
from twostream_ray.model_package import ModelPackage, load_model
from twostream_ray.models.build import Network
from twostream_ray.view_scorer import ViewScorer

_AHEAD = 2
"""Prefetched videos per decoder process."""

Video = str | Path | bytes
"""A path, a file:// or s3:// URI, or the bytes of a video file."""


@dataclass(frozen=True, kw_only=True, slots=True)
class HeadPrediction:
    """Prediction for one video over the K_i classes of one data set."""

    name: str
    """Name of the data set; "" where the model was trained on one."""
    top: tuple[tuple[str, float], ...]
    """Best classes with their probabilities in [0, 1], best first."""
    classes: tuple[str, ...]
    """All K_i classes, in the model's order."""
    probabilities: tuple[float, ...]
    """Of each class, in [0, 1]; they add up to 1."""
    logits: tuple[float, ...]
    """Of each class; their softmax is the probabilities, as in what `evaluate` says of the same clip."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Prediction:
    """Prediction for one video."""

    video: str
    """Path or URI, or the position in the call for bytes."""
    heads: tuple[HeadPrediction, ...]
    """An answer for each data set that the model was trained on, or that was asked for; () where there is an error."""
    error: str | None
    """Why the video could not be used."""

    @property
    def top(self) -> tuple[tuple[str, float], ...]:
        """Best classes with their probabilities, where there is one data set; () where there is an error.

        Raises:
            ConfigError: there are answers for several data sets.
        """
        if len(self.heads) > 1:
            raise ConfigError(
                f"{self.video} has an answer for each of {', '.join(head.name for head in self.heads)}: read `heads`, "
                "or predict with head=NAME"
            )
        return self.heads[0].top if self.heads else ()


@dataclass(frozen=True, kw_only=True, slots=True)
class ScoredSpan:
    """Scores of the views of one time interval of a video."""

    start_seconds: float
    """Time of their first frame, RGB or flow."""
    end_seconds: float
    """End of their last frame."""
    scores: ClassScores
    """(K,) each, their mean."""


class Classifier:
    """A trained network with everything that is needed to apply it to raw video.

    Thread-safe: each thread decodes in its own child process, up to the number of processors.
    """

    def __init__(
        self,
        network: Network,
        package: ModelPackage,
        *,
        device: str = "cpu",
        protocol: Protocol | str = VALIDATION,
        limits: VideoLimits | None = None,
        pool: Pool | None = None,
    ) -> None:
        """Use `load` for a stored model."""
        self._network, self._device = network, device
        self._limits, self._pool = limits or VideoLimits(), pool or decoder_pool()
        self._scorers: dict[Protocol, ViewScorer] = {}
        self.package = package
        """Settings, classes and flow contract."""
        self.protocol = resolve_protocol(protocol) if isinstance(protocol, str) else protocol
        """Which views of a video are scored, where a call does not say otherwise."""
        self._scorer(self.protocol)

    @classmethod
    def load(
        cls,
        directory: str | Path,
        *,
        device: str = "cpu",
        protocol: Protocol | str = VALIDATION,
        limits: VideoLimits | None = None,
        pool: Pool | None = None,
    ) -> Classifier:
        """Load model.safetensors and model.json; nothing is unpickled.

        Args:
            directory: where they are.
            device: where the network computes.
            protocol: which views of a video are scored, and what is averaged: a `Protocol`, or the name of one of
                `data.views.PROTOCOLS`.
            limits: what a video may have; by default `VideoLimits()`.
            pool: children that decode; by default a pool of its own, with one for each processor.

        Raises:
            CheckpointError: a file is missing, damaged or of another version.
            ConfigError: there is no such protocol, or the network cannot score its samples.
        """
        network, package = load_model(Path(directory))
        return cls(network, package, device=device, protocol=protocol, limits=limits, pool=pool)

    @property
    def classes(self) -> tuple[str, ...]:
        """Names of the K classes of all data sets, in the order of `score`."""
        return self.package.classes

    @property
    def heads(self) -> tuple[Head, ...]:
        """The data sets that the model answers for."""
        return self.package.heads

    def score(self, content: bytes, *, name: str = "video", protocol: Protocol | str | None = None) -> ClassScores:
        """Logits and probabilities, (K,) each, of one video: means over its views, as `evaluate` scores a row.

        Raises:
            VideoError: the bytes cannot be decoded whole, hold fewer than two frames, or more than the limits allow.
            CheckpointError: the network's scores are not finite.
            ConfigError: there is no such protocol, or the network cannot score its samples.
        """
        return self.score_clip(self.prepare(content, name=name), name=name, protocol=protocol)

    def prepare(
        self, source: bytes | Source, *, name: str = "video", cancelled: threading.Event | None = None
    ) -> EncodedClip:
        """Decode a video and compute its flow by the model's flow contract, within the limits.

        Raises:
            VideoError: it cannot be decoded whole, holds fewer than two frames, or more than the limits allow.
            CancelledError: `cancelled` was set.
        """
        if isinstance(source, bytes):
            self._limits.require_size(len(source), name=name)
        try:
            return prepare_in_subprocess(
                source,
                self.package.contract,
                name=name,
                max_frames=self._limits.max_frames,
                max_seconds=self._limits.max_seconds,
                pool=self._pool,
                cancelled=cancelled,
            )
        except TooLongError as error:
            raise TooLongError(
                f"{error}; `twostream predict --every_seconds` answers for parts of long ones"
            ) from error

    def score_clip(
        self, clip: EncodedClip, *, name: str = "video", protocol: Protocol | str | None = None
    ) -> ClassScores:
        """As `score`, of a clip that is prepared.

        Raises:
            DecodeError: the clip is damaged.
            CheckpointError: the network's scores are not finite.
            ConfigError: there is no such protocol, or the network cannot score its samples.
        """
        return self.score_over_time(clip, name=name, protocol=protocol)[0]

    def score_over_time(
        self,
        clip: EncodedClip,
        *,
        name: str = "video",
        protocol: Protocol | str | None = None,
        on_batch: Callable[[], object] = lambda: None,
    ) -> tuple[ClassScores, list[ScoredSpan]]:
        """`score_clip`, and the scores of the views of each test time, in chronological order.

        Each view is scored once. `on_batch` is called before each batch; an exception that it raises is propagated.

        Raises:
            As `score_clip`.
        """
        scorer = self._scorer(self.protocol if protocol is None else protocol)
        logits = scorer.score(clip, on_batch=on_batch)
        if not np.isfinite(logits).all():
            raise CheckpointError(f"{name}: the model's scores are not finite: use another version of it")

        def scores_of(rows: Sequence[int] | slice) -> ClassScores:
            found = aggregate(logits[rows][None], average=scorer.average, heads=self.heads)
            return ClassScores(logits=found.logits[0], probabilities=found.probabilities[0])

        views = scorer.views_of(num_frames=clip.num_frames, height=clip.height, width=clip.width)
        by_time: dict[int, list[int]] = {}
        for row, key in enumerate(scorer.keys):
            by_time.setdefault(key.time, []).append(row)
        spans = []
        for rows in by_time.values():
            start, stop = self._frames_of(views[rows[0]], num_frames=clip.num_frames)
            spans.append(
                ScoredSpan(start_seconds=start / clip.fps, end_seconds=stop / clip.fps, scores=scores_of(rows))
            )
        return scores_of(slice(None)), spans

    def _frames_of(self, view: View, *, num_frames: int) -> tuple[int, int]:
        """First frame of a view, RGB or flow, and the end after its last one."""
        seen = set(view.times.tolist())
        if self._network.needs_flow:
            for time in view.times.tolist():
                fields = field_indices(time, config=self.package.sampling, num_frames=num_frames)
                seen |= {int(fields.min()), int(fields.max()) + 1}
        return min(seen), max(seen) + 1

    def samples(
        self, clip: EncodedClip, *, protocol: Protocol | str | None = None
    ) -> Iterator[tuple[Tensor | None, Tensor | None]]:
        """RGB and flow of each view of a clip, as the network takes them: `ViewScorer.samples`."""
        return self._scorer(self.protocol if protocol is None else protocol).samples(clip)

    @property
    def network(self) -> Network:
        """In evaluation mode, on its device."""
        return self._network

    @property
    def device(self) -> str:
        """Where the network computes."""
        return self._device

    def _scorer(self, protocol: Protocol | str) -> ViewScorer:
        protocol = resolve_protocol(protocol) if isinstance(protocol, str) else protocol
        if protocol not in self._scorers:
            self._scorers[protocol] = ViewScorer(self._network, self.package, protocol=protocol, device=self._device)
        return self._scorers[protocol]

    def predict(
        self,
        videos: Sequence[Video],
        *,
        top_k: int = 5,
        head: str | None = None,
        protocol: Protocol | str | None = None,
    ) -> list[Prediction]:
        """Classify raw videos; an unusable one gets an error and does not affect the others.

        Args:
            videos: each a path, a URI or the bytes of a file.
            top_k: how many of the best classes, of each data set.
            head: the one data set to answer for; by default all that the model was trained on.
            protocol: which views are scored; by default what the classifier was made with.

        Raises:
            ConfigError: top_k is less than 1, the model knows no such data set, there is no such protocol, or the
                network cannot score its samples.
        """
        if top_k < 1:
            raise ConfigError(f"top_k must be at least 1, got {top_k}")
        heads = choose_heads(self.heads, head, of="the model")
        used = self._scorer(self.protocol if protocol is None else protocol).protocol
        return [
            self._predicted(prepared, name, top_k=top_k, heads=heads, protocol=used)
            for name, prepared in self._prepared_ahead(videos)
        ]

    def _prepared_ahead(self, videos: Sequence[Video]) -> Iterator[tuple[str, Callable[[], EncodedClip]]]:
        """Each video's name and a function that returns its clip; following videos are decoded meanwhile."""
        names = [f"video {n}" if isinstance(video, bytes) else str(video) for n, video in enumerate(videos)]
        if len(videos) < 2:
            for name, video in zip(names, videos, strict=True):
                yield name, lambda name=name, video=video: self._prepared(video, name=name)  # type: ignore[misc]
            return
        ahead: deque[tuple[str, Future[EncodedClip]]] = deque()
        with ThreadPoolExecutor(self._pool.most, thread_name_prefix="decode-video") as threads:
            for name, video in zip(names, videos, strict=True):
                ahead.append((name, threads.submit(self._prepared, video, name=name)))
                if len(ahead) >= _AHEAD * self._pool.most:
                    first, future = ahead.popleft()
                    yield first, future.result
            for name, future in ahead:
                yield name, future.result

    def _prepared(self, video: Video, *, name: str) -> EncodedClip:
        if isinstance(video, bytes):
            return self.prepare(video, name=name)
        with storage.on_disk(storage.absolute(video), limit_bytes=self._limits.max_bytes) as path:
            return self.prepare(Source(video=path), name=name)

    def _predicted(
        self,
        prepared: Callable[[], EncodedClip],
        name: str,
        *,
        top_k: int,
        heads: Sequence[Head],
        protocol: Protocol,
    ) -> Prediction:
        try:
            scores = self.score_clip(prepared(), name=name, protocol=protocol)
        except (VideoError, StorageError, CheckpointError) as error:
            return Prediction(video=name, heads=(), error=str(error))
        return Prediction(video=name, heads=self.answers(scores, heads=heads, top_k=top_k), error=None)

    def answers(self, scores: ClassScores, *, heads: Sequence[Head], top_k: int) -> tuple[HeadPrediction, ...]:
        """Predictions for each of these data sets from scores (K,), with the `top_k` best classes of each."""
        return tuple(_answer(head, scores, classes=self.classes, top_k=top_k) for head in heads)


def _answer(head: Head, scores: ClassScores, *, classes: Sequence[str], top_k: int) -> HeadPrediction:
    names = head.classes_of(classes)
    logits, probabilities = (values[head.columns].tolist() for values in scores)
    best = np.argsort(-scores.logits[head.columns], kind="stable")[:top_k]
    return HeadPrediction(
        name=head.name,
        top=tuple((names[index], probabilities[index]) for index in best),
        classes=names,
        probabilities=tuple(probabilities),
        logits=tuple(logits),
    )
