"""Sliding windows over a video of any length, decoded once in a stream; each window equals a clip cut out there.

Frame i is at i / fps seconds, by the video's mean frame rate. A window's flow is that between its own frames, so it is
what a clip cut out there would have. What is behind the windows that are open is gone: memory does not grow with the
length.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from contextlib import closing
from fractions import Fraction
from pathlib import Path
from typing import BinaryIO, NamedTuple

import numpy as np
from numpy.typing import NDArray

from twostream_ray.data import flow
from twostream_ray.data.encoded_clip import EncodedClip
from twostream_ray.data.flow import FlowContract
from twostream_ray.data.video import clips
from twostream_ray.data.video.prepare import FrameScaler
from twostream_ray.data.video.raw_video import FrameStream
from twostream_ray.errors import EmptyClipError


class Window(NamedTuple):
    """A part of a video."""

    start_frame: int
    """Its first frame, by its number in the video."""
    clip: EncodedClip
    """Its frames and the flow between them."""


def prepare_windows(
    source: bytes | Path | BinaryIO,
    contract: FlowContract,
    *,
    every_seconds: float,
    window_seconds: float,
    name: str,
    on_progress: Callable[[], object] | None = None,
) -> Iterator[Window]:
    """Windows of `window_seconds` that begin every `every_seconds`, in order, each as soon as it is complete.

    The last one ends with the video, and may be shorter; none begins where the one before has reached the end already.
    A window has two frames at least. `on_progress` is called again and again.

    Raises:
        DecodeError: the video cannot be decoded, or not to its end; windows before were given.
        EmptyClipError: it has fewer than two frames.
    """
    stream = FrameStream(source, name=name, on_packet=on_progress)
    with closing(stream):
        step = max(Fraction(1), Fraction(every_seconds) * stream.fps)
        length = max(clips.MIN_FRAMES, round(window_seconds * stream.fps))
        windows = _OpenWindows(stream, contract, step=step, length=length)
        for frame in stream:
            yield from windows.add(frame)
            if on_progress is not None:
                on_progress()
        yield from windows.end()
    if not windows.num_given:
        raise EmptyClipError(f"{name}: a clip needs at least {clips.MIN_FRAMES} frames, got {windows.num_frames}")


class _OpenWindow:
    """A window whose frames are coming."""

    def __init__(self, start: int, writer: clips.ClipWriter) -> None:
        self.start, self.writer = start, writer
        self.fields: list[bytes] = []
        self.num_frames = 0


class _OpenWindows:
    """The windows that a frame belongs to; flow is computed once for all of them."""

    def __init__(self, stream: FrameStream, contract: FlowContract, *, step: Fraction, length: int) -> None:
        self._stream, self._contract, self._step, self._length = stream, contract, step, length
        self._scale = FrameScaler(stream, short_side_px=contract.short_side_px)
        self._compute = flow.flow_function(contract)
        self._open: deque[_OpenWindow] = deque()
        self._begun = 0
        self._last_end = 0
        self._previous: NDArray[np.uint8] | None = None
        self.num_frames = 0
        """Of the video so far."""
        self.num_given = 0
        """Windows so far."""

    def add(self, frame: NDArray[np.uint8]) -> Iterator[Window]:
        """Take the next RGB frame (H, W, 3); gives the windows that it completes."""
        import cv2

        begins = self.num_frames == round(self._begun * self._step)
        self.num_frames += 1
        if not self._open and not begins:
            self._previous = None
            return
        frame = self._scale(frame)
        grey = np.asarray(cv2.cvtColor(frame, cv2.COLOR_RGB2GRAY), np.uint8)
        field = None
        if self._open and self._previous is not None:
            field = flow.encode_field(self._compute(self._previous, grey), self._contract)
        self._previous = grey
        if begins:
            height, width = self._scale.size
            writer = clips.ClipWriter(width=width, height=height, fps=self._stream.fps)
            self._open.append(_OpenWindow(self.num_frames - 1, writer))
            self._begun += 1
        for window in self._open:
            if field is not None and window.num_frames:
                window.fields.append(field)
            window.writer.write(frame)
            window.num_frames += 1
        while self._open and self._open[0].num_frames == self._length:
            yield self._finished(self._open.popleft())

    def end(self) -> Iterator[Window]:
        """Gives what the end of the video has cut short, unless another window has reached it."""
        if self._open and self._last_end < self.num_frames and self._open[0].num_frames >= clips.MIN_FRAMES:
            yield self._finished(self._open[0])

    def _finished(self, window: _OpenWindow) -> Window:
        self._last_end = window.start + window.num_frames
        self.num_given += 1
        height, width = self._scale.size
        clip = EncodedClip(
            video=window.writer.finish(),
            flow=window.fields,
            num_frames=window.num_frames,
            height=height,
            width=width,
            fps=float(self._stream.fps),
            notes=self._stream.notes,
        )
        return Window(window.start, clip)
