"""Clip + flow into snippets and batches of them; training and serving call the same functions."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from twostream_ray.data import flow, sampling, transforms
from twostream_ray.data.flow import FlowContract
from twostream_ray.data.sampling import SamplingConfig
from twostream_ray.data.transforms import Crop, TransformConfig
from twostream_ray.data.video import clips, pictures, raw_video
from twostream_ray.data.video.clips import EncodedClip
from twostream_ray.errors import DecodeError, EmptyClipError


@dataclass(frozen=True, kw_only=True, slots=True)
class View:
    """What one sample shows of a clip: the same crop for every frame and field."""

    times: NDArray[np.int64]
    """Snippet times in frames, shape (T,)."""

    crop: Crop
    """Rectangle of the stored frame."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Batch:
    """Samples side by side, as numpy arrays; a stream that is not wanted is None."""

    rgb: NDArray[np.uint8] | None
    """(N, T, 3, H, W), levels 0..255."""

    flow: NDArray[np.uint8] | None
    """(N, T, 2L, H, W), coded displacements, x1 y1 x2 y2 ..."""

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


@dataclass(frozen=True, kw_only=True, slots=True)
class Source:
    """A clip as it comes from outside."""

    video: bytes | Path | None = None
    """A video file's content, or where it lies on this machine: then it is never in memory as a whole."""

    frames: tuple[bytes, ...] = ()
    """Or its frames as images, in order."""

    flow: tuple[tuple[bytes, bytes], ...] | None = None
    """x and y images of each field, coded as the contract says; None computes the flow. One field more than there are
    pairs of frames is left out, for some tools write it."""


def prepare_clip(
    source: bytes | Source,
    contract: FlowContract,
    *,
    name: str,
    max_frames: int | None = None,
    first_frames: int | None = None,
    on_progress: Callable[[], object] | None = None,
) -> EncodedClip:
    """Decode a raw video once and in order, resize it, compute its flow, and encode both as shards hold them.

    Frames stream through: memory does not grow with the length beyond the encoded result, about 6 kB a frame of
    256 x 340 px. `on_progress` is called again and again, at least after each. Frames and flow that exist as images
    are taken as they are. With `first_frames` the clip ends there, to see what a video costs.

    The stored frame has the shape that players show: pixels that are not square are stretched to be.

    Raises:
        DecodeError: the video cannot be decoded whole, or images of flow do not fit it.
        EmptyClipError: it has fewer than two frames.
        TooLongError: it has more than max_frames, by its header or when decoded.
    """
    import cv2

    source = Source(video=source) if isinstance(source, bytes) else source
    frames = (
        raw_video.ImageSequence(source.frames, name=name)
        if source.video is None
        else raw_video.FrameStream(source.video, name=name, max_frames=max_frames, on_packet=on_progress)
    )
    with closing(frames):
        raw_video.refuse_more_frames(frames.announced, max_frames, name=name)
        compute = flow.flow_function(contract)
        writer: clips.ClipWriter | None = None
        previous: NDArray[np.uint8] | None = None
        fields: list[bytes] = []
        height = width = 0
        for frame in frames:
            if writer is None:
                height, width = _stored_size(
                    frame.shape[0], frame.shape[1] * float(frames.pixel_aspect), short_side_px=contract.short_side_px
                )
                writer = clips.ClipWriter(width=width, height=height, fps=frames.fps)
            if frame.shape[:2] != (height, width):
                shrinks = frame.shape[0] > height
                frame = cv2.resize(
                    frame, (width, height), interpolation=cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR
                )
            writer.write(frame)
            grey = cv2.cvtColor(frame, cv2.COLOR_RGB2GRAY)
            if previous is not None:
                fields.append(
                    flow.encode_field(compute(previous, grey), contract)
                    if source.flow is None
                    else _taken_field(source.flow, len(fields), (height, width), contract, name=name)
                )
            previous = grey
            raw_video.refuse_more_frames(len(fields) + 1, max_frames, name=name)
            if on_progress is not None:
                on_progress()
            if len(fields) + 1 == first_frames:
                break
        if writer is None or not fields:
            raise EmptyClipError(
                f"{name}: a clip needs at least {clips.MIN_FRAMES} frames, got {int(writer is not None)}"
            )
        if source.flow is not None and first_frames is None and len(source.flow) > len(fields) + 1:
            raise DecodeError(
                f"{name}: {len(fields)} fields of flow were wanted for {len(fields) + 1} frames, there are "
                f"{len(source.flow)} images: they belong to another video"
            )
        return EncodedClip(
            video=writer.finish(),
            flow=fields,
            num_frames=len(fields) + 1,
            height=height,
            width=width,
            fps=float(frames.fps),
            notes=frames.notes,
        )


def _taken_field(
    images: Sequence[tuple[bytes, bytes]], index: int, size: tuple[int, int], contract: FlowContract, *, name: str
) -> bytes:
    """An existing field, its levels as they are; stretched where a tool rounded the long side to another number."""
    import cv2

    if index >= len(images):
        raise DecodeError(
            f"{name}: a field of flow was wanted for every pair of frames, there are {len(images)} images"
        )
    x, y = (pictures.read_image(content, name=f"{name}, flow {index + 1}", grey=True) for content in images[index])
    if x.shape == size == y.shape:
        return flow.encode_levels(x, y, contract)
    if x.shape != y.shape or min(x.shape) != contract.short_side_px:
        raise DecodeError(
            f"{name}: flow images of {size[0]}x{size[1]} were wanted like the stored frames, got "
            f"{x.shape[0]}x{x.shape[1]} and {y.shape[0]}x{y.shape[1]}: set flow.short_side_px to {min(x.shape)}"
        )
    field = np.stack([flow.dequantise(component, contract) for component in (x, y)], axis=-1)
    stretched = cv2.resize(field, size[::-1], interpolation=cv2.INTER_LINEAR)
    return flow.encode_field(stretched * np.array([size[1] / x.shape[1], size[0] / x.shape[0]], np.float32), contract)


def _stored_size(height: float, width: float, *, short_side_px: int) -> tuple[int, int]:
    scale = short_side_px / min(height, width)
    return 2 * round(height * scale / 2), 2 * round(width * scale / 2)


def training_view(
    clip: EncodedClip,
    *,
    sampling_config: SamplingConfig,
    transform_config: TransformConfig,
    seed: int,
    epoch: int,
    clip_id: str,
) -> View:
    """The view a clip is trained on in an epoch: a function of (seed, epoch, clip id) alone."""
    rng = sampling.clip_rng(seed=seed, epoch=epoch, clip_id=clip_id)
    return View(
        times=sampling.training_times(clip.num_frames, config=sampling_config, rng=rng),
        crop=transforms.training_crop(clip.height, clip.width, config=transform_config, rng=rng),
    )


def evaluation_views(
    clip: EncodedClip, *, sampling_config: SamplingConfig, transform_config: TransformConfig
) -> list[View]:
    """The views whose scores are averaged at test time: evenly spaced times, centre crop."""
    crop = transforms.centre_crop(clip.height, clip.width, config=transform_config)
    return [
        View(times=times, crop=crop) for times in sampling.evaluation_times(clip.num_frames, config=sampling_config)
    ]


def rgb_snippets(
    clip: EncodedClip, view: View, *, size_px: int, out: NDArray[np.uint8] | None = None
) -> NDArray[np.uint8]:
    """The RGB frames of a sample: (T, 3, size, size) uint8; into `out`, a part of a batch, where it is given.

    Raises:
        DecodeError: the clip has no video, or it is damaged.
    """
    if clip.video is None:
        raise DecodeError("RGB frames were wanted of a clip read without its video column")
    import cv2

    if out is None:
        out = np.empty((len(view.times), 3, size_px, size_px), np.uint8)
    cropped = np.empty((size_px, size_px, 3), np.uint8)
    for index, frame in clips.each_frame(clip.video, view.times.tolist(), num_frames=clip.num_frames):
        transforms.apply_crop(frame, view.crop, size_px=size_px, out=cropped)
        for snippet in np.flatnonzero(view.times == index):
            cv2.split(cropped, list(out[snippet]))  # a copy of the transposed array takes several times as long
    return out


def flow_snippets(
    clip: EncodedClip,
    view: View,
    *,
    size_px: int,
    config: SamplingConfig,
    contract: FlowContract,
    out: NDArray[np.uint8] | None = None,
) -> NDArray[np.uint8]:
    """The flow stacks of a sample: (T, 2L, size, size) uint8; into `out`, a part of a batch, where it is given.

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
        out = np.empty((len(windows), 2 * config.flow_length, size_px, size_px), np.uint8)
    if config.flow_stack == "trajectory":
        decoded = {
            index: _decoded_field(clip, index)
            for index in needed_fields(view.times, config=config, num_frames=clip.num_frames)
        }
        # Where a field is sampled depends on where its stack begins: nothing more is shared.
        for stack, window in zip(out, windows, strict=True):
            sampled = _along_trajectories([decoded[int(index)] for index in window], config, contract)
            for number, levels in enumerate(sampled):
                _show(levels, view.crop, contract, out=stack[2 * number : 2 * number + 2])
        return out
    shown: dict[int, NDArray[np.uint8]] = {}
    for stack, window in zip(out, windows, strict=True):
        for number, index in enumerate(window.tolist()):
            stacked = stack[2 * number : 2 * number + 2]
            if index in shown:
                stacked[...] = shown[index]
                continue
            # Shown at once, while the processor's cache has it.
            levels = _decoded_field(clip, index)
            if config.flow_mean_subtraction:
                levels = _without_mean(levels, contract)
            _show(levels, view.crop, contract, out=stacked)
            shown[index] = stacked
    if config.flow_stack == "bidirectional":
        backward = out[:, config.flow_length :]
        backward[...] = flow.negated(backward, contract)
    return out


def _decoded_field(clip: EncodedClip, index: int) -> NDArray[np.uint8]:
    try:
        return flow.decode_field(clip.flow[index])  # type: ignore[index]
    except (ValueError, IndexError, KeyError) as error:
        raise DecodeError(f"flow field {index} of a clip of {clip.num_frames} frames is damaged ({error})") from error


def _show(levels: NDArray[np.uint8], crop: Crop, contract: FlowContract, *, out: NDArray[np.uint8]) -> None:
    """Cut, resize and mirror a field (2, H, W) into (2, size, size)."""
    for plane, component in zip(levels, out, strict=True):
        transforms.apply_crop(plane, crop, size_px=out.shape[-1], out=component)
    if crop.mirrored:
        out[0] = flow.negated(out[0], contract)


def needed_fields(times: NDArray[np.int64], *, config: SamplingConfig, num_frames: int) -> list[int]:
    """Indices of the flow fields that the stacks at these times share, each once, ascending."""
    windows = (sampling.field_indices(int(time), config=config, num_frames=num_frames) for time in times)
    return sorted({int(index) for window in windows for index in window})


def _without_mean(levels: NDArray[np.uint8], contract: FlowContract) -> NDArray[np.uint8]:
    field = flow.dequantise(levels, contract)
    return flow.quantise(field - flow.mean_vectors(field), contract)


def _along_trajectories(
    stack: Sequence[NDArray[np.uint8]], config: SamplingConfig, contract: FlowContract
) -> NDArray[np.uint8]:
    fields = flow.dequantise(np.stack(stack), contract)
    sampled = flow.along_trajectories(fields)
    if config.flow_mean_subtraction:
        # The points follow the whole motion; what is stacked is the motion less the camera's.
        sampled = sampled - flow.mean_vectors(fields)
    return flow.quantise(sampled, contract)


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
