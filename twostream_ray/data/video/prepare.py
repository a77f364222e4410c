"""Clip preparation: decodes a raw video once, in order, computes optical flow, and encodes both for a shard."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np
from numpy.typing import NDArray

from twostream_ray.data import flow
from twostream_ray.data.encoded_clip import EncodedClip
from twostream_ray.data.flow import FlowContract
from twostream_ray.data.video import clips, pictures, raw_video
from twostream_ray.errors import DecodeError, EmptyClipError


@dataclass(frozen=True, kw_only=True, slots=True)
class Source:
    """A raw clip: a video file, or images, with or without existing flow images."""

    video: bytes | Path | BinaryIO | None = None
    """A video file's content; or its path on this machine, or the open file, which stays open: then it is never in
    memory as a whole."""

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
    max_seconds: float | None = None,
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
        TooLongError: it has more than max_frames, or plays longer than max_seconds, by its header or when decoded.
    """
    source = Source(video=source) if isinstance(source, bytes) else source
    frames = (
        raw_video.ImageSequence(source.frames, name=name)
        if source.video is None
        else raw_video.FrameStream(source.video, name=name, max_frames=max_frames, on_packet=on_progress)
    )
    with closing(frames):
        raw_video.refuse_more_frames(frames.announced, max_frames, name=name)
        raw_video.refuse_longer(frames.announced / frames.fps, max_seconds, name=name)
        builder = _ClipBuilder(frames, contract, taken_flow=source.flow, name=name)
        for frame in frames:
            builder.add(frame)
            raw_video.refuse_more_frames(builder.num_frames, max_frames, name=name)
            raw_video.refuse_longer(builder.num_frames / frames.fps, max_seconds, name=name)
            if on_progress is not None:
                on_progress()
            if builder.num_frames == first_frames:
                break
        return builder.finish(is_complete=first_frames is None)


class FrameScaler:
    """Brings frames to the stored size, which the first one decides; pixels become square."""

    def __init__(self, frames: raw_video.ImageSequence | raw_video.FrameStream, *, short_side_px: int) -> None:
        # The shape of a stream's pixels comes with its first frame: asked late.
        self._frames, self._short_side_px = frames, short_side_px
        self.size = (0, 0)
        """(height, width) in px, both even; (0, 0) before the first frame."""

    def __call__(self, frame: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """An RGB frame (H, W, 3) at the stored size."""
        import cv2

        if self.size == (0, 0):
            self.size = _stored_size(
                frame.shape[0],
                frame.shape[1] * float(self._frames.pixel_aspect),
                short_side_px=self._short_side_px,
            )
        if frame.shape[:2] == self.size:
            return frame
        shrinks = frame.shape[0] > self.size[0]
        resized = cv2.resize(frame, self.size[::-1], interpolation=cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR)
        return np.asarray(resized, np.uint8)


class _ClipBuilder:
    """Frames, one after the other, into a clip: each is resized, its flow computed or taken, and both are encoded."""

    def __init__(
        self,
        frames: raw_video.ImageSequence | raw_video.FrameStream,
        contract: FlowContract,
        *,
        taken_flow: Sequence[tuple[bytes, bytes]] | None,
        name: str,
    ) -> None:
        # What the stream knows of itself (rate, notes) may come with its frames: asked late.
        self._frames, self._contract = frames, contract
        self._scale = FrameScaler(frames, short_side_px=contract.short_side_px)
        self._taken_flow, self._name = taken_flow, name
        self._compute = flow.flow_function(contract)
        self._writer: clips.ClipWriter | None = None
        self._previous: NDArray[np.uint8] | None = None
        self._fields: list[bytes] = []

    @property
    def num_frames(self) -> int:
        """Frames so far; at least 1 once there is one."""
        return len(self._fields) + 1

    def add(self, frame: NDArray[np.uint8]) -> None:
        """Append an RGB frame (H, W, 3); the first one decides the stored size."""
        import cv2

        frame = self._scale(frame)
        if self._writer is None:
            height, width = self._scale.size
            self._writer = clips.ClipWriter(width=width, height=height, fps=self._frames.fps)
        self._writer.write(frame)
        grey = np.asarray(cv2.cvtColor(frame, cv2.COLOR_RGB2GRAY), np.uint8)
        if self._previous is not None:
            self._fields.append(self._field(self._previous, grey))
        self._previous = grey

    def _field(self, previous: NDArray[np.uint8], grey: NDArray[np.uint8]) -> bytes:
        if self._taken_flow is None:
            return flow.encode_field(self._compute(previous, grey), self._contract)
        return _taken_field(self._taken_flow, len(self._fields), self._scale.size, self._contract, name=self._name)

    def finish(self, *, is_complete: bool) -> EncodedClip:
        """The encoded clip; of a complete video at most one flow image may be unused, which some tools add."""
        if self._writer is None or not self._fields:
            raise EmptyClipError(
                f"{self._name}: a clip needs at least {clips.MIN_FRAMES} frames, got {int(self._writer is not None)}"
            )
        if self._taken_flow is not None and is_complete and len(self._taken_flow) > self.num_frames:
            raise DecodeError(
                f"{self._name}: expected {len(self._fields)} fields of flow for {self.num_frames} frames, there are "
                f"{len(self._taken_flow)} images: they belong to another video"
            )
        return EncodedClip(
            video=self._writer.finish(),
            flow=self._fields,
            num_frames=self.num_frames,
            height=self._scale.size[0],
            width=self._scale.size[1],
            fps=float(self._frames.fps),
            notes=self._frames.notes,
        )


def _taken_field(
    images: Sequence[tuple[bytes, bytes]], index: int, size: tuple[int, int], contract: FlowContract, *, name: str
) -> bytes:
    """An existing field, its levels as they are; stretched where a tool rounded the long side to another number."""
    import cv2

    if index >= len(images):
        raise DecodeError(f"{name}: expected a field of flow for every pair of frames, there are {len(images)} images")
    x, y = (pictures.read_image(content, name=f"{name}, flow {index + 1}", grey=True) for content in images[index])
    if x.shape == size == y.shape:
        return flow.encode_levels(x, y, contract)
    if x.shape != y.shape or min(x.shape) != contract.short_side_px:
        raise DecodeError(
            f"{name}: expected flow images of {size[0]}x{size[1]} like the stored frames, got "
            f"{x.shape[0]}x{x.shape[1]} and {y.shape[0]}x{y.shape[1]}: set flow.short_side_px to {min(x.shape)}"
        )
    field = np.stack([flow.dequantise(component, contract) for component in (x, y)], axis=-1)
    stretched = cv2.resize(field, size[::-1], interpolation=cv2.INTER_LINEAR)
    return flow.encode_field(stretched * np.array([size[1] / x.shape[1], size[0] / x.shape[0]], np.float32), contract)


def _stored_size(height: float, width: float, *, short_side_px: int) -> tuple[int, int]:
    scale = short_side_px / min(height, width)
    return 2 * round(height * scale / 2), 2 * round(width * scale / 2)
