"""Model explanations: class activation maps, contributions of the streams, temporal occlusion; imports no Ray.

Gradient-weighted class activation (Grad-CAM, Selvaraju et al. 2017), the streams' contributions, and occlusion in time
(after Zeiler and Fergus 2014), all of a class's relative logit, which `stream_contributions` defines.

Axes: V views, N samples, T snippets, H x W pixels, K classes.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from twostream_ray.data import flow as flow_coding
from twostream_ray.data.encoded_clip import EncodedClip
from twostream_ray.data.loading.decoded_clip import DecodedClip
from twostream_ray.data.loading.device import normalise_flow, normalise_rgb
from twostream_ray.data.protocols import VALIDATION, Protocol
from twostream_ray.data.views import View, protocol_views
from twostream_ray.errors import ConfigError
from twostream_ray.model_package import ModelPackage
from twostream_ray.models.build import Network
from twostream_ray.models.clip3d import Clip3dNetwork
from twostream_ray.models.fused_network import FusedNetwork
from twostream_ray.models.layers import LAST_POOL
from twostream_ray.models.networks import LateNetwork, StResNet
from twostream_ray.models.token_maps import Maps, grid
from twostream_ray.models.towers import Tower
from twostream_ray.stream_contributions import (
    Sample,
    StreamContributions,
    detached,
    mean_contributions,
    relative_logits,
    sample_of,
    shapley_contributions,
    stream_contributions,
)

LAYERS = ("spatial", "temporal", "fused")
"""Where activation maps are computed: the last maps of either tower, for the spatial one those before motion is fused
in for the last time; and the last maps after that fusion."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ExplainedSnippet:
    """A snippet of a view with its activation maps."""

    seconds: float
    """From the start of the video."""
    rgb: NDArray[np.uint8] | None
    """(H, W, 3), as the view shows the frame."""
    flow: NDArray[np.float32] | None
    """(H, W, 2) displacement in px from this frame on, as the view shows it."""
    activations: dict[str, NDArray[np.float32]]
    """(H, W) in [0, 1] by layer; 1 is the largest in all snippets of the view."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Explanation:
    """Explanation of a class's score for a video."""

    class_index: int
    """The class that is explained, in [0, K)."""
    streams: StreamContributions
    """Contributions of the streams."""
    seconds: tuple[float, ...]
    """Times of the snippets, ascending, without duplicates."""
    falls: tuple[float, ...]
    """By how much the relative logit falls without the snippets of that time, mean over the views; negative: it
    rises."""
    snippets: tuple[ExplainedSnippet, ...]
    """Of all views, by time."""
    missing: dict[str, str] = field(default_factory=dict)
    """Layers that the network lacks -> the reason."""


class Explainer:
    """Explains a network's scores for clips under an evaluation protocol."""

    def __init__(
        self,
        network: Network,
        package: ModelPackage,
        *,
        protocol: Protocol = VALIDATION,
        device: torch.device | str = "cpu",
        layers: Sequence[str] = (),
        references: Sequence[EncodedClip] = (),
    ) -> None:
        """Put the network on its device, in evaluation mode.

        Args:
            network: of the package.
            package: classes, sampling, crop and flow contract.
            protocol: which views are looked at.
            device: where the network computes.
            layers: some of `LAYERS`; () is all that the network has.
            references: other clips, from which the streams' contributions are counted; () counts them from mean RGB
                and no motion.

        Raises:
            ConfigError: there is no such layer, or the network does not have it.
        """
        self._device = torch.device(device)
        self._network = network.to(self._device).eval()
        self._package, self._protocol = package, protocol
        self._references = references
        self._layers, self._missing = activation_layers(network, layers)

    def explain(
        self, clip: EncodedClip, *, class_index: int, on_progress: Callable[[], object] | None = None
    ) -> Explanation:
        """Explain the score of a class, predicted or not, for a clip.

        Thread-safe: the network may be used by other threads meanwhile.

        Args:
            clip: prepared as the package's contract says.
            class_index: the class, in [0, K).
            on_progress: called before every forward pass of the network; what it raises ends the work.

        Raises:
            DecodeError: the clip lacks a stream that the network needs, or is damaged.
            CheckpointError: the network's scores are not finite.
            ConfigError: the network cannot take samples of the protocol.
        """
        with _called_before_passes(self._network, on_progress or (lambda: None)):
            return self._explained(clip, class_index=class_index)

    def _explained(self, clip: EncodedClip, *, class_index: int) -> Explanation:
        network, views = self._network, self._views(clip)
        samples = self._decoded(clip, views)
        parts: list[StreamContributions] = []
        falls: dict[int, float] = {}
        snippets: list[ExplainedSnippet] = []
        references = [self._reference(other, size=views[0].size) for other in self._references]
        for view in views:
            rgb, flow = samples.next_samples(1)
            sample = self._normalised(rgb, flow)
            if references:
                parts.append(shapley_contributions(network, sample, references, class_index=class_index))
            else:
                parts.append(stream_contributions(network, sample, class_index=class_index))
            for time, fall in occlusion_in_time(network, sample, view.times.tolist(), class_index=class_index).items():
                falls[time] = falls.get(time, 0.0) + fall / len(views)
            activations = class_activations(network, sample, layers=self._layers, class_index=class_index)
            snippets += [
                ExplainedSnippet(
                    seconds=time / clip.fps,
                    rgb=None if rgb is None else rgb[0, number].transpose(1, 2, 0),
                    flow=None if flow is None else self._middle_field(flow[0, number]),
                    activations={layer: maps[number] for layer, maps in activations.items()},
                )
                for number, time in enumerate(view.times.tolist())
            ]
        ordered = sorted(falls.items())
        return Explanation(
            class_index=class_index,
            streams=mean_contributions(parts),
            seconds=tuple(time / clip.fps for time, _ in ordered),
            falls=tuple(fall for _, fall in ordered),
            snippets=tuple(sorted(snippets, key=lambda snippet: snippet.seconds)),
            missing=self._missing,
        )

    def _decoded(self, clip: EncodedClip, views: Sequence[View]) -> DecodedClip:
        return DecodedClip(
            clip,
            views,
            config=self._package.sampling,
            contract=self._package.contract,
            want_rgb=self._network.needs_rgb,
            want_flow=self._network.needs_flow,
        )

    def _normalised(self, rgb: NDArray[np.uint8] | None, flow: NDArray[np.uint8] | None) -> Sample:
        return Sample(
            None if rgb is None else normalise_rgb(torch.from_numpy(rgb).to(self._device)),
            None if flow is None else normalise_flow(torch.from_numpy(flow).to(self._device)),
        )

    def _reference(self, clip: EncodedClip, *, size: tuple[int, int]) -> Sample:
        """A middle view of another clip, in the size that this one's views have."""
        views = self._views(clip)
        return self._normalised(*self._decoded(clip, [replace(views[len(views) // 2], size=size)]).next_samples(1))

    def _views(self, clip: EncodedClip) -> Sequence[View]:
        return protocol_views(
            self._protocol,
            clip.num_frames,
            clip.height,
            clip.width,
            sampling_config=self._package.sampling,
            transform_config=self._package.transforms,
        )

    def _middle_field(self, stack: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Of a stack (2L, H, W), the field that begins at the snippet's frame."""
        config = self._package.sampling
        first = config.flow_length // 2 if config.flow_stack == "centred" else 0
        return flow_coding.dequantise(stack[2 * first : 2 * first + 2], self._package.contract).transpose(1, 2, 0)


def activation_layers(network: Network, wanted: Sequence[str] = ()) -> tuple[dict[str, str], dict[str, str]]:
    """The modules whose maps are `LAYERS`, and for each layer that the network lacks the reason in words.

    Args:
        network: any of the family.
        wanted: some of `LAYERS`; () is all that there are.

    Raises:
        ConfigError: one is no layer, or the network lacks it.
    """
    found, missing = _layers_of(network)
    for layer in wanted:
        if layer not in LAYERS:
            raise ConfigError(f"layers must be of {', '.join(LAYERS)}, got {layer!r}")
        if layer in missing:
            raise ConfigError(
                f"the activations of layer {layer} were wanted, but {missing[layer]}: choose of {', '.join(found)}, or "
                "leave layers out"
            )
    return {layer: module for layer, module in found.items() if not wanted or layer in wanted}, missing


def _layers_of(network: Network) -> tuple[dict[str, str], dict[str, str]]:
    found: dict[str, str] = {}
    missing: dict[str, str] = {}
    if isinstance(network, Clip3dNetwork):
        missing = dict.fromkeys(("temporal", "fused"), "this network has no temporal stream")
        if (maps := network.maps_name) is None:
            return found, missing | {"spatial": f"{network.config.network} computes tokens, no maps"}
        return {"spatial": maps}, missing
    for stream, is_there in (("spatial", network.needs_rgb), ("temporal", network.needs_flow)):
        if is_there:
            found[stream] = f"{stream}.{_names_of_maps(network.get_submodule(stream))[-1]}"
        else:
            missing[stream] = f"this network has no {stream} stream"
    if isinstance(network, StResNet):
        # Motion enters the branch of res5b, on top of what entered the stages below.
        found |= {"spatial": "spatial.res5a", "fused": "spatial.res5c_relu"}
    elif isinstance(network, FusedNetwork):
        names = _names_of_maps(network.spatial)
        joined = [layer for layer in network.fusions if layer in names]
        if not joined:
            missing["fused"] = f"fusion at {', '.join(network.fusions)} joins maps without positions"
        elif hasattr(network, "classifier"):
            missing["fused"] = "bilinear fusion sums over all positions"
        elif joined[-1] != names[-1]:
            found |= {"spatial": f"spatial.{joined[-1]}", "fused": f"spatial.{names[-1]}"}
        else:
            found["fused"] = "time_conv" if network.conv_layer == joined[-1] else f"fusions.{joined[-1]}"
    elif isinstance(network, LateNetwork):
        missing["fused"] = "its streams meet only in their scores"
    else:
        missing["fused"] = "stfn joins features without positions"
    return found, missing


def _names_of_maps(tower: torch.nn.Module) -> Sequence[str]:
    """Layers of a tower whose output has positions that its scores depend on.

    A class token reads a vision transformer's grid in the last block for the last time.
    """
    assert isinstance(tower, Tower)  # noqa: S101  (all networks call their towers so)
    names = tower.names
    below = names[: names.index(LAST_POOL)] if LAST_POOL in names else names
    blocks = [index for index, name in enumerate(below) if name.startswith("blocks_")]
    return below[: blocks[-1]] if blocks and below[-1] == "norm" else below


def class_activations(
    network: Network, sample: Sample, *, layers: dict[str, str], class_index: int
) -> dict[str, NDArray[np.float32]]:
    """Grad-CAM: ReLU of the sum of maps weighted by their mean gradients (Selvaraju et al. 2017).

    Args:
        network: in evaluation mode.
        sample: one sample.
        layers: layer -> name of the module whose maps are looked at.
        class_index: whose relative logit has the gradients.

    Returns:
        By layer (T, H, W) in the frame's size, in [0, 1]; 1 is the largest of the sample, all 0 where nothing speaks
        for the class.
    """
    if not layers:
        return {}
    streams = {name: frames.requires_grad_() for name, frames in detached(sample).items()}
    with _recorded(network, layers) as maps, torch.enable_grad():
        value = relative_logits(network, sample_of(streams), class_index=class_index)
        gradients = torch.autograd.grad(value.sum(), list(maps.values()))
    frames = next(iter(streams.values()))
    found = {}
    for (layer, recorded), gradient in zip(maps.items(), gradients, strict=True):
        # Maps of a network over space and time, (1, D, T', H', W'), have fewer times than the sample.
        weights = gradient.mean(dim=tuple(range(2, gradient.dim())), keepdim=True)
        activation = F.relu((weights * recorded).sum(dim=1, keepdim=True)).detach()
        size, mode = frames.shape[-2:], "bilinear"
        if activation.dim() == 5:
            size, mode = torch.Size((frames.shape[1], *size)), "trilinear"
        shown = F.interpolate(activation, size=size, mode=mode, align_corners=False).flatten(0, -3)
        found[layer] = (shown / shown.amax().clamp(min=torch.finfo(shown.dtype).tiny)).cpu().numpy()
    return found


@contextmanager
def _recorded(network: Network, layers: dict[str, str]) -> Iterator[dict[str, Tensor]]:
    """Record the outputs of modules in the block's forward pass, ignoring passes of other threads."""
    maps: dict[str, Tensor] = {}
    thread = threading.get_ident()

    def recorder(layer: str) -> Callable[[torch.nn.Module, tuple[Tensor, ...], Maps], None]:
        def record(_: torch.nn.Module, __: tuple[Tensor, ...], output: Maps) -> None:
            if threading.get_ident() == thread:
                maps[layer] = grid(output)

        return record

    handles = [network.get_submodule(name).register_forward_hook(recorder(layer)) for layer, name in layers.items()]
    try:
        yield maps
    finally:
        for handle in handles:
            handle.remove()


@contextmanager
def _called_before_passes(network: Network, call: Callable[[], object]) -> Iterator[None]:
    """Call a function before each of this thread's forward passes."""
    thread = threading.get_ident()

    def before(_: torch.nn.Module, __: tuple[Tensor, ...]) -> None:
        if threading.get_ident() == thread:
            call()

    handle = network.register_forward_pre_hook(before)
    try:
        yield
    finally:
        handle.remove()


def occlusion_in_time(network: Network, sample: Sample, times: Sequence[int], *, class_index: int) -> dict[int, float]:
    """Temporal occlusion: fall of a class's relative logit when snippets of a time show mean RGB and no motion.

    Args:
        network: in evaluation mode.
        sample: one sample.
        times: T frames, of which a short clip repeats some.
        class_index: whose logit.

    Returns:
        Time -> fall, in logits.
    """
    streams = detached(sample)
    with torch.no_grad():
        unoccluded = float(relative_logits(network, sample_of(streams), class_index=class_index))
        falls = {}
        for time in dict.fromkeys(times):
            kept = torch.tensor([float(other != time) for other in times])[:, None, None, None]
            shown = {name: frames * kept.to(frames) for name, frames in streams.items()}
            falls[time] = unoccluded - float(relative_logits(network, sample_of(shown), class_index=class_index))
    return falls
