"""Multi-view inference: the logits of every view of a clip by every tower, under an evaluation protocol; no Ray.

Evaluation, prediction and the registered model all score here.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray

from twostream_ray.data.encoded_clip import EncodedClip
from twostream_ray.data.loading.decode_cpu import decode_sample
from twostream_ray.data.loading.device import normalise_flow, normalise_rgb
from twostream_ray.data.protocols import Protocol
from twostream_ray.data.views import View, ViewKey, protocol_views, view_keys
from twostream_ray.errors import ConfigError
from twostream_ray.model_package import ModelPackage
from twostream_ray.models.build import Network

_VIEWS_AT_ONCE = 16


class ViewScorer:
    """A network under a protocol."""

    def __init__(
        self,
        network: Network,
        package: ModelPackage,
        *,
        protocol: Protocol,
        device: torch.device | str = "cpu",
        memory_bytes: int | None = None,
    ) -> None:
        """Put the network on its device, in evaluation mode.

        Args:
            network: of the package.
            package: classes, sampling, crop and flow contract.
            protocol: which views.
            device: where the network computes.
            memory_bytes: what the activations of a batch of views may take; by default 256 MB on a CPU, and four fifths
                of what is free on a GPU. Always at least one view.

        Raises:
            ConfigError: the network cannot score samples of this protocol.
        """
        self._device = torch.device(device)
        self._network = network.to(self._device).eval()
        self._package = package
        self._memory_bytes = memory_bytes
        self.protocol = protocol
        """Which views are scored."""
        self.towers = self._find_towers()
        """What gives logits, in the order of axis S."""
        self.average: Literal["softmax", "logits"] = resolved_average(protocol, package)
        """What the clip's score is the mean of, over views and towers."""
        self.keys: list[ViewKey] = view_keys(protocol, sampling_config=package.sampling)
        """The views of every clip, V of them."""

    def _find_towers(self) -> tuple[str, ...]:
        """Names of the network's outputs, from a sample without numbers, which also shows that it takes them."""
        sampling, size = self._package.sampling, self._package.transforms.crop_px
        snippets = self.protocol.snippets or sampling.num_snippets
        with torch.device("meta"), torch.no_grad():
            network = self._package.build(pretrained=False).eval()
            rgb = torch.empty(1, snippets, 3, size, size)
            flow = torch.empty(1, snippets, 2 * sampling.flow_length, size, size)
            try:
                outputs = network(rgb if network.needs_rgb else None, flow if network.needs_flow else None)
            except (ConfigError, RuntimeError) as error:
                raise ConfigError(
                    f"protocol {self.protocol.name} shows samples of {snippets} snippets of {size} px, which this "
                    f"network cannot score ({error}): set views.snippets, or choose another protocol"
                ) from error
        return tuple(outputs)

    def views_of(self, *, num_frames: int, height: int, width: int) -> list[View]:
        """The views of a clip of this shape (frames, px, px), in the order of `keys`.

        Raises:
            EmptyClipError: the clip has no frame.
        """
        package = self._package
        return protocol_views(
            self.protocol,
            num_frames,
            height,
            width,
            sampling_config=package.sampling,
            transform_config=package.transforms,
        )

    def score(self, clip: EncodedClip) -> NDArray[np.float32]:
        """Logits of every view by every tower: (V, S, K).

        Raises:
            DecodeError: the clip lacks a stream that the network needs, or is damaged.
        """
        views = self.views_of(num_frames=clip.num_frames, height=clip.height, width=clip.width)
        cuts = range(0, len(views), _VIEWS_AT_ONCE)
        return np.concatenate([self._logits(clip, views[cut : cut + _VIEWS_AT_ONCE]) for cut in cuts])

    def score_all(self, clips: Sequence[EncodedClip]) -> list[NDArray[np.float32]]:
        """`score` of each clip; a clip's logits do not depend on the others.

        Raises:
            DecodeError: as `score`.
        """
        return [self.score(clip) for clip in clips]

    def _logits(self, clip: EncodedClip, views: Sequence[View]) -> NDArray[np.float32]:
        samples = [
            decode_sample(
                clip,
                view,
                config=self._package.sampling,
                contract=self._package.contract,
                want_rgb=self._network.needs_rgb,
                want_flow=self._network.needs_flow,
            )
            for view in views
        ]
        rgb = [sample[0] for sample in samples if sample[0] is not None]
        flow = [sample[1] for sample in samples if sample[1] is not None]
        with torch.no_grad():
            outputs = self._network(
                normalise_rgb(torch.from_numpy(np.stack(rgb)).to(self._device)) if rgb else None,
                normalise_flow(torch.from_numpy(np.stack(flow)).to(self._device)) if flow else None,
            )
            return torch.stack(list(outputs.values()), dim=1).float().cpu().numpy()


def resolved_average(protocol: Protocol, package: ModelPackage) -> Literal["softmax", "logits"]:
    """What a protocol averages of a model's answers, "network" looked up."""
    if protocol.average == "network":
        return "softmax" if package.model.averages == "probabilities" else "logits"
    return protocol.average
