"""Multi-view inference: the logits of every view of a clip by every tower, under an evaluation protocol; no Ray.

Shared by evaluation, prediction and the registered model.
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from twostream_ray.data.encoded_clip import EncodedClip
from twostream_ray.data.loading.decoded_clip import DecodedClip
from twostream_ray.data.loading.device import normalise_flow, normalise_rgb, prefetch_one
from twostream_ray.data.protocols import Protocol
from twostream_ray.data.views import View, ViewKey, protocol_views, view_keys
from twostream_ray.errors import ConfigError
from twostream_ray.model_package import ModelPackage
from twostream_ray.models.activations import peak_activation_bytes
from twostream_ray.models.build import Network
from twostream_ray.redaction import one_line

_CPU_BYTES = 256 << 20
"""Memory budget of a batch's activations on a CPU: larger batches are no faster."""
_GPU_SHARE = 0.8
"""Fraction of the GPU's free memory, measured at the first views of a shape."""
_SAMPLE_BYTES = 256 << 20
"""Memory budget of a batch's uint8 samples on the host."""
_CLIPS_AHEAD = 16
"""Maximum number of clips decoded in parallel for a GPU, one thread each."""

Shape = tuple[int, int, int]
"""Of a view: T, height and width in px."""


@dataclass(frozen=True, kw_only=True, slots=True)
class _Batch:
    """Samples of views of one shape, grouped by clip."""

    counts: list[tuple[int, int]]
    """(index of the clip in the call, number of its views in this batch)."""
    shape: Shape
    rgb: NDArray[np.uint8] | None
    """(N, T, 3, H, W)."""
    flow: NDArray[np.uint8] | None
    """(N, T, 2L, H, W)."""


class ViewScorer:
    """Scores clips by a network under an evaluation protocol.

    A clip is decoded once, whatever the number of its views. Batches of views are cut by the memory that one view
    takes, which is measured once for each shape of views: 250 views take as much as a few.

    On a CPU a batch has views of a single clip: its logits are bit-identical whatever other clips are scored, if torch
    has as many threads. On a GPU batches mix the clips of a call, and logits are equal up to rounding.
    """

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
            memory_bytes: memory budget of a batch's activations; by default 256 MB on a CPU, and four fifths of what
                is free on a GPU. There is always at least one view.

        Raises:
            ConfigError: the network cannot score samples of this protocol.
        """
        self._device = torch.device(device)
        self._network = network.to(self._device).eval()
        self._package = package
        self._memory_bytes = memory_bytes
        self._most_views: dict[Shape, int] = {}
        with torch.device("meta"):
            # Shapes and lifetimes of activations, without weights or numbers.
            self._meta_network = package.build(pretrained=False).eval()
        self.protocol = protocol
        """Which views are scored."""
        self.towers = self._find_towers()
        """Names of the S towers."""
        self.average: Literal["softmax", "logits"] = resolved_average(protocol, package)
        """What is averaged over views and towers into the clip's score."""
        self.keys: list[ViewKey] = view_keys(protocol, sampling_config=package.sampling)
        """The views of every clip, V of them."""

    def views_of(self, *, num_frames: int, height: int, width: int) -> list[View]:
        """The views of a clip of this shape (frames, px, px), in the order of `keys`.

        Raises:
            EmptyClipError: the clip has no frame.
        """
        return protocol_views(
            self.protocol,
            num_frames,
            height,
            width,
            sampling_config=self._package.sampling,
            transform_config=self._package.transforms,
        )

    def score(self, clip: EncodedClip, *, on_batch: Callable[[], object] = lambda: None) -> NDArray[np.float32]:
        """Logits of every view by every tower: (V, S, K); `on_batch` is called before each batch and may raise.

        Raises:
            DecodeError: the clip lacks a stream that the network needs, or is damaged.
            ConfigError: one view alone takes more memory than a GPU has.
        """
        return self.score_all([clip], on_batch=on_batch)[0]

    def samples(self, clip: EncodedClip) -> Iterator[tuple[Tensor | None, Tensor | None]]:
        """RGB (1, T, 3, H, W) and flow (1, T, 2L, H, W) of each view, normalised, on the network's device.

        Raises:
            DecodeError: as `score`.
        """
        views, decoded = self._opened(clip)
        for _ in views:
            rgb, flow = decoded.next_samples(1)
            yield (
                None if rgb is None else normalise_rgb(torch.from_numpy(rgb).to(self._device)),
                None if flow is None else normalise_flow(torch.from_numpy(flow).to(self._device)),
            )

    def score_all(
        self, clips: Sequence[EncodedClip], *, on_batch: Callable[[], object] = lambda: None
    ) -> list[NDArray[np.float32]]:
        """`score` of each clip; the next samples are decoded while the network computes.

        Raises:
            DecodeError, ConfigError: as `score`.
        """
        found: list[list[NDArray[np.float32]]] = [[] for _ in clips]
        batches = self._batches(clips)
        for batch in prefetch_one(lambda: next(batches, None)):
            on_batch()
            logits, start = self._logits(batch.rgb, batch.flow, shape=batch.shape), 0
            for number, count in batch.counts:
                found[number].append(logits[start : start + count])
                start += count
        return [np.concatenate(parts) for parts in found]

    def _batches(self, clips: Sequence[EncodedClip]) -> Iterator[_Batch]:
        """Samples of all views of all clips, in order."""
        parts: list[_Batch] = []
        free_views = 0
        for number, (views, decoded) in enumerate(self._decoded(clips)):
            shape: Shape = (len(views[0].times), *views[0].size)
            left = len(views)
            while left:
                if parts and (free_views == 0 or shape != parts[0].shape):
                    yield _joined(parts)
                    parts = []
                if not parts:
                    free_views = self._views_at_once(shape)
                count = min(left, free_views)
                rgb, flow = decoded.next_samples(count)
                parts.append(_Batch(counts=[(number, count)], shape=shape, rgb=rgb, flow=flow))
                left, free_views = left - count, free_views - count
            if parts and self._device.type == "cpu":
                yield _joined(parts)
                parts = []
        if parts:
            yield _joined(parts)

    def _decoded(self, clips: Sequence[EncodedClip]) -> Iterator[tuple[list[View], DecodedClip]]:
        """Each clip with its views; for a GPU several are decoded at a time, ahead of it."""
        if self._device.type == "cpu":
            yield from (self._opened(clip) for clip in clips)
            return
        ahead: deque[Future[tuple[list[View], DecodedClip]]] = deque()
        threads = min(_CLIPS_AHEAD, os.cpu_count() or 1)

        def decode(clip: EncodedClip) -> tuple[list[View], DecodedClip]:
            views, decoded = self._opened(clip)
            decoded.decode()
            return views, decoded

        with ThreadPoolExecutor(threads, thread_name_prefix="decode-clip") as pool:
            for clip in clips:
                ahead.append(pool.submit(decode, clip))
                if len(ahead) > threads:
                    yield ahead.popleft().result()
            while ahead:
                yield ahead.popleft().result()

    def _opened(self, clip: EncodedClip) -> tuple[list[View], DecodedClip]:
        views = self.views_of(num_frames=clip.num_frames, height=clip.height, width=clip.width)
        decoded = DecodedClip(
            clip,
            views,
            config=self._package.sampling,
            contract=self._package.contract,
            want_rgb=self._network.needs_rgb,
            want_flow=self._network.needs_flow,
        )
        return views, decoded

    def _logits(
        self, rgb: NDArray[np.uint8] | None, flow: NDArray[np.uint8] | None, *, shape: Shape
    ) -> NDArray[np.float32]:
        """(N, S, K); after an out-of-memory error the batch size is halved, permanently."""
        try:
            outputs = self._outputs(
                self._network,
                None if rgb is None else torch.from_numpy(rgb).to(self._device),
                None if flow is None else torch.from_numpy(flow).to(self._device),
            )
            return torch.stack(list(outputs.values()), dim=1).float().cpu().numpy()
        except torch.OutOfMemoryError as error:
            reason = one_line(error)
        # Only now, when nothing refers to the tensors of the attempt any more.
        if self._device.type == "cuda":
            torch.cuda.empty_cache()
        half = len(next(stream for stream in (rgb, flow) if stream is not None)) // 2
        if half == 0:
            raise ConfigError(
                f"one view of {shape[0]} snippets of {shape[1]} x {shape[2]} px does not fit the memory of "
                f"{self._device} ({reason}): choose fewer views.snippets, or another protocol"
            )
        self._most_views[shape] = min(half, self._most_views.get(shape, half))
        parts = [
            self._logits(None if rgb is None else rgb[part], None if flow is None else flow[part], shape=shape)
            for part in (slice(half), slice(half, None))
        ]
        return np.concatenate(parts)

    def _outputs(self, network: Network, rgb: Tensor | None, flow: Tensor | None) -> dict[str, Tensor]:
        with torch.no_grad():
            return network(None if rgb is None else normalise_rgb(rgb), None if flow is None else normalise_flow(flow))

    def _views_at_once(self, shape: Shape) -> int:
        """The most views of a shape in a batch, at least one; measured when the shape is first met."""
        if shape not in self._most_views:
            by_memory = self._budget_bytes() // max(self._view_bytes(shape), 1)
            by_samples = _SAMPLE_BYTES // sum(
                stream.nbytes for stream in self._empty(shape, "meta") if stream is not None
            )
            self._most_views[shape] = max(min(by_memory, by_samples), 1)
        return self._most_views[shape]

    def _budget_bytes(self) -> int:
        if self._memory_bytes is not None:
            return self._memory_bytes
        if self._device.type != "cuda":
            return _CPU_BYTES
        free, _ = torch.cuda.mem_get_info(self._device)
        cached = torch.cuda.memory_reserved(self._device) - torch.cuda.memory_allocated(self._device)
        return int(_GPU_SHARE * (free + cached))

    def _view_bytes(self, shape: Shape) -> int:
        """Peak memory of one view: activations on a CPU, all allocations on a GPU."""
        if self._device.type != "cuda":
            streams = self._empty(shape, "meta")
            return peak_activation_bytes(lambda: self._outputs(self._meta_network, *streams))
        torch.cuda.reset_peak_memory_stats(self._device)
        before = torch.cuda.memory_allocated(self._device)
        self._outputs(self._network, *self._empty(shape, self._device))
        return torch.cuda.max_memory_allocated(self._device) - before

    def _empty(self, shape: Shape, device: torch.device | str) -> tuple[Tensor | None, Tensor | None]:
        """A zero sample of this shape."""
        num_snippets, *size = shape
        channels = (3, 2 * self._package.sampling.flow_length)
        rgb, flow = (torch.zeros(1, num_snippets, count, *size, dtype=torch.uint8, device=device) for count in channels)
        return rgb if self._network.needs_rgb else None, flow if self._network.needs_flow else None

    def _find_towers(self) -> tuple[str, ...]:
        """Names of the network's outputs, from a sample of the smallest size, which shows that it takes them."""
        size = self._package.transforms.crop_px
        num_snippets = self.protocol.snippets or self._package.sampling.num_snippets
        try:
            return tuple(self._outputs(self._meta_network, *self._empty((num_snippets, size, size), "meta")))
        except (ConfigError, RuntimeError) as error:
            raise ConfigError(
                f"protocol {self.protocol.name} shows samples of {num_snippets} snippets of {size} px, which this "
                f"network cannot score ({one_line(error)}): set views.snippets, or choose another protocol"
            ) from error


def _joined(parts: Sequence[_Batch]) -> _Batch:
    if len(parts) == 1:
        return parts[0]
    rgb = [part.rgb for part in parts if part.rgb is not None]
    flow = [part.flow for part in parts if part.flow is not None]
    return _Batch(
        counts=[count for part in parts for count in part.counts],
        shape=parts[0].shape,
        rgb=np.concatenate(rgb) if rgb else None,
        flow=np.concatenate(flow) if flow else None,
    )


def resolved_average(protocol: Protocol, package: ModelPackage) -> Literal["softmax", "logits"]:
    """What a protocol averages, with "network" resolved for a model."""
    if protocol.average == "network":
        return "softmax" if package.model.averages == "probabilities" else "logits"
    return protocol.average
