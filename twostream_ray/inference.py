"""Raw videos to classes: decoding, flow, snippets and scores as ingest and evaluation do them; imports no Ray."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from twostream_ray import storage
from twostream_ray.data.encoded_clip import EncodedClip
from twostream_ray.data.protocols import VALIDATION, Protocol, resolve_protocol
from twostream_ray.data.video.isolation import prepare_in_subprocess
from twostream_ray.errors import CheckpointError, ConfigError, StorageError, VideoError
from twostream_ray.evaluation.aggregate import aggregate
from twostream_ray.heads import ClassScores, Head, choose_heads
from twostream_ray.model_package import ModelPackage, load_model
from twostream_ray.models.build import Network
from twostream_ray.view_scorer import ViewScorer

Video = str | Path | bytes
"""A path, a file:// or s3:// URI, or the bytes of a video file."""


@dataclass(frozen=True, kw_only=True, slots=True)
class HeadPrediction:
    """What the model says about one video by the classes of one data set, K_i of them."""

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
    """What the model says about one video."""

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


class Classifier:
    """A trained network with everything it takes to use it on raw video."""

    def __init__(
        self, network: Network, package: ModelPackage, *, device: str = "cpu", protocol: Protocol | str = VALIDATION
    ) -> None:
        """Use `load` for a stored model."""
        self._network, self._device = network, device
        self._scorers: dict[Protocol, ViewScorer] = {}
        self.package = package
        """Settings, classes and flow contract."""
        self.protocol = resolve_protocol(protocol) if isinstance(protocol, str) else protocol
        """Which views of a video are scored, where a call does not say otherwise."""
        self._scorer(self.protocol)

    @classmethod
    def load(cls, directory: str | Path, *, device: str = "cpu", protocol: Protocol | str = VALIDATION) -> Classifier:
        """Load model.safetensors and model.json; nothing is unpickled.

        Args:
            directory: where they are.
            device: where the network computes.
            protocol: which views of a video are scored, and what is averaged: a `Protocol`, or the name of one of
                `data.views.PROTOCOLS`.

        Raises:
            CheckpointError: a file is missing, damaged or of another version.
            ConfigError: there is no such protocol, or the network cannot score its samples.
        """
        network, package = load_model(Path(directory))
        return cls(network, package, device=device, protocol=protocol)

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
            VideoError: the bytes cannot be decoded whole, or hold fewer than two frames.
            CheckpointError: the network's answer is no number.
            ConfigError: there is no such protocol, or the network cannot score its samples.
        """
        clip = prepare_in_subprocess(content, self.package.contract, name=name)
        return self.score_clip(clip, name=name, protocol=protocol)

    def score_clip(
        self, clip: EncodedClip, *, name: str = "video", protocol: Protocol | str | None = None
    ) -> ClassScores:
        """As `score`, of a clip that is prepared.

        Raises:
            DecodeError: the clip is damaged.
            CheckpointError: the network's answer is no number.
            ConfigError: there is no such protocol, or the network cannot score its samples.
        """
        scorer = self._scorer(self.protocol if protocol is None else protocol)
        logits = scorer.score(clip)
        if not np.isfinite(logits).all():
            raise CheckpointError(f"{name}: the model's scores are no finite numbers: use another version of it")
        scores = aggregate(logits[None], average=scorer.average, heads=self.heads)
        return ClassScores(logits=scores.logits[0], probabilities=scores.probabilities[0])

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
        """Classes of raw videos; one that cannot be used gets an error and does not spoil the others.

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
            self._predicted(video, position, top_k=top_k, heads=heads, protocol=used)
            for position, video in enumerate(videos)
        ]

    def _predicted(
        self, video: Video, position: int, *, top_k: int, heads: Sequence[Head], protocol: Protocol
    ) -> Prediction:
        name = f"video {position}" if isinstance(video, bytes) else str(video)
        try:
            content = video if isinstance(video, bytes) else storage.read_bytes(storage.absolute(video))
            scores = self.score(content, name=name, protocol=protocol)
        except (VideoError, StorageError, CheckpointError) as error:
            return Prediction(video=name, heads=(), error=str(error))
        return Prediction(video=name, heads=self.answers(scores, heads=heads, top_k=top_k), error=None)

    def answers(self, scores: ClassScores, *, heads: Sequence[Head], top_k: int) -> tuple[HeadPrediction, ...]:
        """What scores (K,) say by the classes of each of these data sets, with the `top_k` best of each."""
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
