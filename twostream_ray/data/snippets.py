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
    """The flow of a batch as shards hold it, to be decoded on the device that it is used on."""

    clips: tuple[tuple[EncodedClip, tuple[View, ...]], ...]
    """Each clip with the views that its samples show, in the order of the batch."""

    size_px: int
    """Height and width of the samples."""

    config: SamplingConfig
    """How stacks are made; not along trajectories."""

    contract: FlowContract
    """How the flow is coded."""

    name: Callable[[int], str]
    """Index in `clips` -> which clip it is, and in which row of which shard."""

    threads: int = 1
    """Threads that decode where the device is a CPU."""

    @property
    def shape(self) -> tuple[int, int, int, int, int]:
        """(N, T, 2L, H, W) once decoded."""
        samples = sum(len(views) for _, views in self.clips)
        return samples, self.config.num_snippets, 2 * self.config.flow_length, self.size_px, self.size_px

    def first_sample(self) -> EncodedFlow:
        """The flow of the first sample alone."""
        return replace(self, clips=tuple((clip, views[:1]) for clip, views in self.clips[:1]))


@dataclass(frozen=True, kw_only=True, slots=True)
class Batch:
    """Samples side by side, as numpy arrays; a stream that is not wanted is None."""

    rgb: NDArray[np.uint8] | None
    """(N, T, 3, H, W), levels 0..255."""

    flow: NDArray[np.uint8] | None
    """(N, T, 2L, H, W), coded displacements, x1 y1 x2 y2 ...; None also where it is still encoded."""

    labels: NDArray[np.int64]
    """(N,), class indices."""

    weights: NDArray[np.float32]
    """(N,), 1 for a sample, 0 for padding that must count nowhere."""

    clips: NDArray[np.int64]
    """(N,), position of each sample's clip in the shard set's index."""

    total: float
    """Sum of weights over all workers in this step."""

    decoded: int = 0
    """Clips that were decoded for it; the others' samples were kept from before (`data.sample_cache`)."""

    encoded_flow: EncodedFlow | None = None
    """Flow that its device decodes (`data.decode_at` device)."""

    lanes: NDArray[np.int64] | None = None
    """(N,), the lane that each sample is from; None where samples are from no lanes."""


def collate(
    samples: Sequence[tuple[NDArray[np.uint8] | None, NDArray[np.uint8] | None]],
    *,
    labels: Sequence[int],
    weights: Sequence[float],
    clip_positions: Sequence[int],
    total: float,
) -> Batch:
    """Samples (rgb, flow) side by side."""
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
    """Indices of the flow fields that the stacks at these times share, each once, ascending."""
    windows = (sampling.field_indices(int(time), config=config, num_frames=num_frames) for time in times)
    return sorted({int(index) for window in windows for index in window})


def rgb_snippets(
    frames: Iterable[tuple[int, NDArray[np.uint8]]],
    view: View,
    *,
    out: NDArray[np.uint8] | None = None,
) -> NDArray[np.uint8]:
    """The RGB frames of a sample: (T, 3, H, W) uint8; into `out`, a part of a batch, where it is given.

    `frames` yields (index, RGB (H, W, 3) uint8) of every time of the view, each once, in any order.
    """
    import cv2

    if out is None:
        out = np.empty((len(view.times), 3, *view.size), np.uint8)
    cropped = np.empty((*view.size, 3), np.uint8)
    for index, frame in frames:
        transforms.apply_crop(frame, view.crop, size=view.size, out=cropped)
        for snippet in np.flatnonzero(view.times == index):
            cv2.split(cropped, list(out[snippet]))  # a copy of the transposed array takes several times as long
    return out


def flow_snippets(
    clip: EncodedClip,
    view: View,
    *,
    config: SamplingConfig,
    contract: FlowContract,
    out: NDArray[np.uint8] | None = None,
) -> NDArray[np.uint8]:
    """The flow stacks of a sample: (T, 2L, H, W) uint8; into `out`, a part of a batch, where it is given.

    Fields shared by overlapping stacks are decoded and resized once. Means and trajectories are those of the stored
    frame, before it is cropped. Stored flow runs forward only: the backward flow from frame k to k - 1 is taken to be
    the negated forward flow from k - 1 to k, our reading.

    Raises:
        DecodeError: the clip has no flow, or a field is damaged.
    """
    if clip.flow is None:
        raise DecodeError("flow was wanted of a clip read without its flow column")
    windows = [sampling.field_indices(int(time), config=config, num_frames=clip.num_frames) for time in view.times]
    if out is None:
        out = np.empty((len(windows), 2 * config.flow_length, *view.size), np.uint8)
    if config.flow_stack == "trajectory":
        decoded = {
            index: decoded_field(clip, index)
            for index in needed_fields(view.times, config=config, num_frames=clip.num_frames)
        }
        # Where a field is sampled depends on where its stack begins: nothing more is shared.
        for stack, window in zip(out, windows, strict=True):
            sampled = along_trajectories([decoded[int(index)] for index in window], config, contract)
            for number, levels in enumerate(sampled):
                show_field(levels, view, contract, out=stack[2 * number : 2 * number + 2])
        return out
    shown: dict[int, NDArray[np.uint8]] = {}
    # Fresh memory for each field would be mapped and given back each time: threads wait for each other there.
    room = np.empty(2 * clip.height * clip.width, np.uint8)
    for stack, window in zip(out, windows, strict=True):
        for number, index in enumerate(window.tolist()):
            stacked = stack[2 * number : 2 * number + 2]
            if index in shown:
                stacked[...] = shown[index]
                continue
            # Shown at once, while the processor's cache has it.
            levels = decoded_field(clip, index, room=room)
            if config.flow_mean_subtraction:
                levels = without_mean(levels, contract)
            show_field(levels, view, contract, out=stacked)
            shown[index] = stacked
    if config.flow_stack == "bidirectional":
        backward = out[:, config.flow_length :]
        backward[...] = flow.negated(backward, contract)
    return out


def decoded_field(clip: EncodedClip, index: int, *, room: NDArray[np.uint8] | None = None) -> NDArray[np.uint8]:
    """One field of a clip as grey levels (2, H, W) uint8: x, y; in `room`, of as many bytes, where it is given.

    Raises:
        DecodeError: the clip does not have it, or it is damaged.
    """
    try:
        return flow.decode_field(clip.flow[index], room=room)  # type: ignore[index]
    except (ValueError, IndexError, KeyError) as error:
        raise DecodeError(f"flow field {index} of a clip of {clip.num_frames} frames is damaged ({error})") from error


def show_field(levels: NDArray[np.uint8], view: View, contract: FlowContract, *, out: NDArray[np.uint8]) -> None:
    """Cut, resize and mirror a field (2, H, W) into (2, *view.size)."""
    for plane, component in zip(levels, out, strict=True):
        transforms.apply_crop(plane, view.crop, size=view.size, out=component)
    if view.crop.mirrored:
        out[0] = flow.negated(out[0], contract)


def without_mean(levels: NDArray[np.uint8], contract: FlowContract) -> NDArray[np.uint8]:
    """A field (2, H, W) uint8 less its mean vector."""
    tables = flow.mean_subtraction_tables(levels.mean(axis=(1, 2), dtype=np.float64), contract)
    return np.stack([table[plane] for table, plane in zip(tables, levels, strict=True)])


def along_trajectories(
    stack: Sequence[NDArray[np.uint8]], config: SamplingConfig, contract: FlowContract
) -> NDArray[np.uint8]:
    """A stack's L fields (2, H, W) uint8 along its trajectories, less their means where they are subtracted."""
    fields = flow.dequantise(np.stack(stack), contract)
    sampled = flow.along_trajectories(fields)
    if config.flow_mean_subtraction:
        # The points follow the whole motion; what is stacked is the motion less the camera's.
        sampled = sampled - flow.mean_vectors(fields)
    return flow.quantise(sampled, contract)
