"""Raw videos to classes: decoding, flow, snippets and scores as ingest and evaluation do them; imports no Ray."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from twostream_ray import storage
from twostream_ray.data.loading.decode_cpu import decode_sample
from twostream_ray.data.loading.device import to_device
from twostream_ray.data.snippets import collate
from twostream_ray.data.video.isolation import prepare_in_subprocess
from twostream_ray.data.views import evaluation_views
from twostream_ray.errors import CheckpointError, ConfigError, StorageError, VideoError
from twostream_ray.heads import ClassScores, Head, choose_heads
from twostream_ray.model_package import ModelPackage, load_model
from twostream_ray.models.build import Network

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
    """Of each class; their softmax is the probabilities. `evaluate` has the same ones in scores.npz."""


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

    def __init__(self, network: Network, package: ModelPackage, *, device: str = "cpu") -> None:
        """Use `load` for a stored model."""
        self._network = network.to(device).eval()
        self._device = torch.device(device)
        self.package = package
        """Settings, classes and flow contract."""

    @classmethod
    def load(cls, directory: str | Path, *, device: str = "cpu") -> Classifier:
        """Load model.safetensors and model.json; nothing is unpickled.

        Raises:
            CheckpointError: a file is missing, damaged or of another version.
        """
        network, package = load_model(Path(directory))
        return cls(network, package, device=device)

    @property
    def classes(self) -> tuple[str, ...]:
        """Names of the K classes of all data sets, in the order of `score`."""
        return self.package.classes

    @property
    def heads(self) -> tuple[Head, ...]:
        """The data sets that the model answers for."""
        return self.package.heads

    def score(self, content: bytes, *, name: str = "video") -> ClassScores:
        """Logits and probabilities, (K,) each, of one video: means over its test views, as `evaluate` scores a row.

        Raises:
            VideoError: the bytes cannot be decoded whole, or hold fewer than two frames.
            CheckpointError: the network's answer is no number.
        """
        sampling, transforms = self.package.sampling, self.package.transforms
        clip = prepare_in_subprocess(content, self.package.contract, name=name)
        views = evaluation_views(
            clip.num_frames, clip.height, clip.width, sampling_config=sampling, transform_config=transforms
        )
        size = transforms.crop_px
        samples = [
            decode_sample(
                clip,
                view,
                size_px=size,
                config=sampling,
                contract=self.package.contract,
                want_rgb=self._network.needs_rgb,
                want_flow=self._network.needs_flow,
            )
            for view in views
        ]
        batch = collate(
            samples,
            labels=[0] * len(samples),
            weights=[1.0] * len(samples),
            clip_positions=[0] * len(samples),
            total=float(len(samples)),
        )
        with torch.no_grad():
            rgb, flow = to_device(batch, self._device).streams()
            averaged = self._network.scores(self._network(rgb, flow)).float().mean(dim=0).cpu().numpy()
        if not np.isfinite(averaged).all():
            raise CheckpointError(f"{name}: the model's scores are no finite numbers: use another version of it")
        logits, probabilities = self.package.class_scores(averaged[None])
        return ClassScores(logits=logits[0], probabilities=probabilities[0])

    def predict(self, videos: Sequence[Video], *, top_k: int = 5, head: str | None = None) -> list[Prediction]:
        """Classes of raw videos; one that cannot be used gets an error and does not spoil the others.

        Args:
            videos: each a path, a URI or the bytes of a file.
            top_k: how many of the best classes, of each data set.
            head: the one data set to answer for; by default all that the model was trained on.

        Raises:
            ConfigError: top_k is less than 1, or the model knows no such data set.
        """
        if top_k < 1:
            raise ConfigError(f"top_k must be at least 1, got {top_k}")
        heads = choose_heads(self.heads, head, of="the model")
        return [self._predicted(video, position, top_k=top_k, heads=heads) for position, video in enumerate(videos)]

    def _predicted(self, video: Video, position: int, *, top_k: int, heads: Sequence[Head]) -> Prediction:
        name = f"video {position}" if isinstance(video, bytes) else str(video)
        try:
            content = video if isinstance(video, bytes) else storage.read_bytes(storage.absolute(video))
            scores = self.score(content, name=name)
        except (VideoError, StorageError, CheckpointError) as error:
            return Prediction(video=name, heads=(), error=str(error))
        answers = tuple(_answer(head, scores, classes=self.classes, top_k=top_k) for head in heads)
        return Prediction(video=name, heads=answers, error=None)


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
