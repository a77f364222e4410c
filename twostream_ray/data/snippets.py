"""Snippets: the RGB frames and flow stacks of a view, and batches of them (Feichtenhofer et al. 2016, sec. 3.3)."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from twostream_ray.data import flow, sampling, transforms
from twostream_ray.data.encoded_clip import EncodedClip
from twostream_ray.data.flow import FlowContract
from twostream_ray.data.sampling import SamplingConfig
from twostream_ray.data.views import View
from twostream_ray.errors import DecodeError


@dataclass(frozen=True, kw_only=True, slots=True)
class EncodedFlow:
    """Still encoded flow of a batch, to be decoded on the training device (`data.decode_at` device)."""

    clips: tuple[tuple[EncodedClip, tuple[View, ...]], ...]
    """Each clip with the views of its samples, in batch order."""

    size_px: int
    """Height and width of the samples."""

    config: SamplingConfig
    """How flow stacks are composed; flow_stack trajectory is not supported."""

    contract: FlowContract
    """How the flow is coded."""

    name: Callable[[int], str]
    """Index in `clips` -> clip id, shard and row, for error messages."""

    threads: int = 1
    """Decoding threads if the device is a CPU."""

    @property
    def shape(self) -> tuple[int, int, int, int, int]:
        """Shape after decoding, (N, T, 2L, H, W)."""
        samples = sum(len(views) for _, views in self.clips)
        return samples, self.config.num_snippets, 2 * self.config.flow_length, self.size_px, self.size_px

    def first_sample(self) -> EncodedFlow:
        """The flow of the first sample alone."""
        return replace(self, clips=tuple((clip, views[:1]) for clip, views in self.clips[:1]))


@dataclass(frozen=True, kw_only=True, slots=True)
class Batch:
    """A batch of samples as NumPy arrays; a stream that was not requested is None."""

    rgb: NDArray[np.uint8] | None
    """(N, T, 3, H, W), levels 0..255."""

    flow: NDArray[np.uint8] | None
    """(N, T, 2L, H, W), quantised displacements, x1 y1 x2 y2 ...; also None while it is still encoded."""

    labels: NDArray[np.int64]
    """(N,), class indices."""

    weights: NDArray[np.float32]
    """(N,), 1 for a sample, 0 for padding, which losses and metrics ignore."""

    clips: NDArray[np.int64]
    """(N,), index of each sample's clip in the shard set's index."""

    total: float
    """Sum of weights over all workers in this step."""

    decoded: int = 0
    """Clips decoded for this batch; the remaining samples came from the cache (`data.sample_cache`)."""

    encoded_flow: EncodedFlow | None = None
    """Flow to be decoded on the device (`data.decode_at` device)."""

    lanes: NDArray[np.int64] | None = None
    """(N,), lane of each sample; None for samples that do not come from lanes."""


def collate(
    samples: Sequence[tuple[NDArray[np.uint8] | None, NDArray[np.uint8] | None]],
    *,
    labels: Sequence[int],
    weights: Sequence[float],
    clip_positions: Sequence[int],
    total: float,
) -> Batch:
    """Stack N samples, rgb (T, 3, H, W) and flow (T, 2L, H, W) uint8 each, into a batch.

    Args:
        samples: (rgb, flow) of each sample; None for a stream that was not requested.
        labels: class index of each sample.
        weights: 1 for a sample, 0 for padding.
        clip_positions: index of each sample's clip in the shard set's index.
        total: sum of weights over all workers in this step.
    """
    rgb = [sample[0] for sample in samples if sample[0] is not None]
    flows = [sample[1] for sample in samples if sample[1] is not None]
    return Batch(
        rgb=np.stack(rgb) if rgb else None,
        flow=np.stack(flows) if flows else None,
        labels=np.asarray(labels, dtype=np.int64),
        weights=np.asarray(weights, dtype=np.float32),
        clips=np.asarray(clip_positions, dtype=np.int64),
        total=total,
    )


def needed_fields(times: NDArray[np.int64], *, config: SamplingConfig, num_frames: int) -> list[int]:
    """Indices of all flow fields that the stacks at these times need, deduplicated, ascending."""
    windows = (sampling.field_indices(int(time), config=config, num_frames=num_frames) for time in times)
    return sorted({int(index) for window in windows for index in window})


def rgb_snippets(
    frames: Iterable[tuple[int, NDArray[np.uint8]]],
    view: View,
    *,
    out: NDArray[np.uint8] | None = None,
) -> NDArray[np.uint8]:
    """RGB frames of a sample, (T, 3, H, W) uint8; written into `out`, a slice of a batch, if given.

    `frames` yields (index, RGB (H, W, 3) uint8) for every distinct time of the view, in any order.
    """
    import cv2

    if out is None:
        out = np.empty((len(view.times), 3, *view.size), np.uint8)
    cropped = np.empty((*view.size, 3), np.uint8)
    for index, frame in frames:
        transforms.apply_crop(frame, view.crop, size=view.size, out=cropped)
        for snippet in np.flatnonzero(view.times == index):
            cv2.split(cropped, list(out[snippet]))  # several times faster than copying the transposed array
    return out


def flow_snippets(
    clip: EncodedClip,
    view: View,
    *,
    config: SamplingConfig,
    contract: FlowContract,
    out: NDArray[np.uint8] | None = None,
) -> NDArray[np.uint8]:
    """Flow stacks of a sample, (T, 2L, H, W) uint8; written into `out`, a slice of a batch, if given.

    Fields shared by overlapping stacks are decoded and resized once. Means and trajectories are computed on the stored
    frame, before cropping. Only forward flow is stored: backward flow from frame k to k - 1 is approximated by the
    negated forward flow from k - 1 to k.

    Raises:
        DecodeError: the clip has no flow, or a field is damaged.
    """
    if clip.flow is None:
        raise DecodeError("flow requested from a clip that was read without its flow column")
    windows = [sampling.field_indices(int(time), config=config, num_frames=clip.num_frames) for time in view.times]
    if out is None:
        out = np.empty((len(windows), 2 * config.flow_length, *view.size), np.uint8)
    if config.flow_stack == "trajectory":
        decoded = {
            index: decoded_field(clip, index)
            for index in needed_fields(view.times, config=config, num_frames=clip.num_frames)
        }
        # The positions at which a field is sampled depend on the start of its stack: only decoding can be shared.
        for stack, window in zip(out, windows, strict=True):
            sampled = along_trajectories([decoded[int(index)] for index in window], config, contract)
            for number, levels in enumerate(sampled):
                write_field(levels, view, contract, out=stack[2 * number : 2 * number + 2])
        return out
    written: dict[int, NDArray[np.uint8]] = {}
    # Allocating a buffer per field would map and unmap memory each time, where threads wait for each other.
    buffer = np.empty(2 * clip.height * clip.width, np.uint8)
    for stack, window in zip(out, windows, strict=True):
        for number, index in enumerate(window.tolist()):
            stacked = stack[2 * number : 2 * number + 2]
            if index in written:
                stacked[...] = written[index]
                continue
            # Cropped right after decoding, while the field is in the processor's cache.
            levels = decoded_field(clip, index, buffer=buffer)
            if config.flow_mean_subtraction:
                levels = without_mean(levels, contract)
            write_field(levels, view, contract, out=stacked)
            written[index] = stacked
    if config.flow_stack == "bidirectional":
        backward = out[:, config.flow_length :]
        backward[...] = flow.negated(backward, contract)
    return out


def decoded_field(clip: EncodedClip, index: int, *, buffer: NDArray[np.uint8] | None = None) -> NDArray[np.uint8]:
    """One flow field of a clip as grey levels (2, H, W) uint8: x, y; decoded into `buffer` (2 H W bytes) if given.

    Raises:
        DecodeError: the clip does not have the field, or it is damaged.
    """
    try:
        return flow.decode_field(clip.flow[index], buffer=buffer)  # type: ignore[index]
    except (ValueError, IndexError, KeyError) as error:
        raise DecodeError(f"flow field {index} of a clip of {clip.num_frames} frames is damaged ({error})") from error


def write_field(levels: NDArray[np.uint8], view: View, contract: FlowContract, *, out: NDArray[np.uint8]) -> None:
    """Crop, resize and mirror a field (2, H, W) uint8 into `out`, (2, *view.size) uint8."""
    for plane, component in zip(levels, out, strict=True):
        transforms.apply_crop(plane, view.crop, size=view.size, out=component)
    if view.crop.mirrored:
        out[0] = flow.negated(out[0], contract)


def without_mean(levels: NDArray[np.uint8], contract: FlowContract) -> NDArray[np.uint8]:
    """Subtract the mean vector from a field (2, H, W) uint8; the same shape."""
    tables = flow.mean_subtraction_tables(levels.mean(axis=(1, 2), dtype=np.float64), contract)
    return np.stack([table[plane] for table, plane in zip(tables, levels, strict=True)])


def along_trajectories(
    stack: Sequence[NDArray[np.uint8]], config: SamplingConfig, contract: FlowContract
) -> NDArray[np.uint8]:
    """Sample a stack of L fields (2, H, W) uint8 along its trajectories, with mean subtraction if configured.

    Returns (L, 2, H, W) uint8.
    """
    fields = flow.dequantise(np.stack(stack), contract)
    sampled = flow.along_trajectories(fields)
    if config.flow_mean_subtraction:
        # Points follow the full motion; only the stacked values are compensated for camera motion.
        sampled = sampled - flow.mean_vectors(fields)
    return flow.quantise(sampled, contract)
