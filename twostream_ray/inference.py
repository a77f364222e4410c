"""Raw videos to classes: decoding, flow, snippets and scores as ingest and evaluation do them; imports no Ray."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from twostream_ray import storage
from twostream_ray.data.loading.decode_cpu import decode_sample
from twostream_ray.data.loading.device import to_device
from twostream_ray.data.snippets import collate
from twostream_ray.data.video.isolation import prepare_in_subprocess
from twostream_ray.data.views import evaluation_views
from twostream_ray.errors import CheckpointError, ConfigError, StorageError, VideoError
from twostream_ray.model_package import ModelPackage, load_model
from twostream_ray.models.build import Network

Video = str | Path | bytes
"""A path, a file:// or s3:// URI, or the bytes of a video file."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Prediction:
    """What the model says about one video."""

    video: str
    """Path or URI, or the position in the call for bytes."""
    top: tuple[tuple[str, float], ...]
    """Best classes with their probabilities in [0, 1], best first; empty where there is an error."""
    scores: tuple[float, ...]
    """The network's scores of all classes in the model's order, as `evaluate` has them (of a network for several data
    sets: of the first one's classes); empty where there is an error."""
    error: str | None
    """Why the video could not be used."""


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
        """Class names in the order of scores."""
        return self.package.classes

    def score(self, content: bytes, *, name: str = "video") -> NDArray[np.float32]:
        """Scores (K,) of one video: the mean over its test views, exactly as `evaluate` scores a shard's row.

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
            scores = self._network.scores(self._network(rgb, flow)).float().mean(dim=0)
        result: NDArray[np.float32] = scores.cpu().numpy()
        if not np.isfinite(result).all():
            raise CheckpointError(f"{name}: the model's scores are no finite numbers: use another version of it")
        return result

    def predict(self, videos: Sequence[Video], *, top_k: int = 5) -> list[Prediction]:
        """Classes of raw videos; one that cannot be used gets an error and does not spoil the others.

        Raises:
            ConfigError: top_k is less than 1.
        """
        if top_k < 1:
            raise ConfigError(f"top_k must be at least 1, got {top_k}")
        return [self._predicted(video, position, top_k=top_k) for position, video in enumerate(videos)]

    def _predicted(self, video: Video, position: int, *, top_k: int) -> Prediction:
        name = f"video {position}" if isinstance(video, bytes) else str(video)
        try:
            content = video if isinstance(video, bytes) else storage.read_bytes(storage.absolute(video))
            scores = self.score(content, name=name)
        except (VideoError, StorageError, CheckpointError) as error:
            return Prediction(video=name, top=(), scores=(), error=str(error))
        best = np.argsort(-scores, kind="stable")[:top_k]
        probabilities = self._network.probabilities(torch.from_numpy(scores)[None])[0]
        return Prediction(
            video=name,
            top=tuple((self.classes[index], float(probabilities[index])) for index in best),
            scores=tuple(float(score) for score in scores),
            error=None,
        )
