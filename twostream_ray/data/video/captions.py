"""Video annotation: draws predicted classes into every frame as bars, and over time as a strip of colours."""

from __future__ import annotations

import unicodedata
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import av
import numpy as np
from numpy.typing import NDArray

from twostream_ray.data.video.raw_video import FrameStream

MARK = "made by twostream_ray predict"
"""The comment in the file's metadata: its own are written over, others are not."""

_COLOURS = (
    *((230, 159, 0), (86, 180, 233), (0, 158, 115), (240, 228, 66), (0, 114, 178), (213, 94, 0), (204, 121, 167)),
    (187, 187, 187),
)
"""Okabe and Ito (2008), which colour-blind people can tell apart; the last is for all further classes."""
_ROWS = 3
_INK, _PAPER, _PAPER_SHARE = (255, 255, 255), 24, 0.7


@dataclass(frozen=True, kw_only=True, slots=True)
class Caption:
    """Predicted classes of a time interval of a video."""

    start_seconds: float
    """Where it begins."""
    end_seconds: float
    """Where it ends."""
    top: tuple[tuple[str, float], ...]
    """Best classes with their probabilities in [0, 1], best first."""


def write_captioned(
    source: bytes | Path | BinaryIO,
    target: Path | BinaryIO,
    captions: Sequence[Caption],
    *,
    name: str,
    on_progress: Callable[[], object] | None = None,
) -> int:
    """Re-encode a video with captions: H.264 in MP4, original size, upright, no sound; returns the number of frames.

    A frame has the caption whose middle is nearest in time.

    Raises:
        DecodeError: the video cannot be decoded to its end.
    """
    num_frames = 0
    with (
        closing(FrameStream(source, name=name, on_packet=on_progress)) as stream,
        av.open(str(target) if isinstance(target, Path) else target, mode="w", format="mp4") as container,
    ):
        container.metadata["comment"] = MARK
        drawing: _Drawing | None = None
        encoder: Any = None
        for frame in stream:
            if drawing is None:
                shape = _shown_size(frame, float(stream.pixel_aspect))
                drawing = _Drawing(captions, height=shape[0], width=shape[1])
                encoder = container.add_stream("libx264", rate=stream.fps, options={"crf": "20", "preset": "veryfast"})
                encoder.width, encoder.height, encoder.pix_fmt = shape[1], shape[0], "yuv420p"
                encoder.codec_context.thread_count = 1
            picture = drawing.on(frame, seconds=num_frames / float(stream.fps))
            container.mux(encoder.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
            num_frames += 1
            if on_progress is not None:
                on_progress()
        if encoder is not None:
            container.mux(encoder.encode(None))
    return num_frames


def _shown_size(frame: NDArray[np.uint8], pixel_aspect: float) -> tuple[int, int]:
    """Height and width in px, even as the encoder wants them, with square pixels."""
    return max(2, 2 * round(frame.shape[0] / 2)), max(2, 2 * round(frame.shape[1] * pixel_aspect / 2))


class _Drawing:
    """Captions at the size of a video."""

    def __init__(self, captions: Sequence[Caption], *, height: int, width: int) -> None:
        self._captions, self._height, self._width = captions, height, width
        self._middles = np.array([(one.start_seconds + one.end_seconds) / 2 for one in captions])
        self._end = max(one.end_seconds for one in captions)
        best = dict.fromkeys(one.top[0][0] for one in captions)
        self._colours = {name: _COLOURS[min(at, len(_COLOURS) - 1)] for at, name in enumerate(best)}
        # Letters of about a twentieth of the short side: 12 px at 240p.
        self._row_px = max(12, round(min(height, width) / 16))
        self._scale = self._row_px / 30
        self._thickness = max(1, round(self._scale * 1.6))
        self._strip_px = max(4, self._row_px // 2)
        self._strip = self._over_time()

    def _at(self, seconds: NDArray[np.float64]) -> NDArray[np.int64]:
        """The caption of each time."""
        return np.asarray(np.abs(self._middles[None] - seconds[:, None]).argmin(axis=1), np.int64)

    def _over_time(self) -> NDArray[np.uint8]:
        """(strip px, W, 3): the colour of the best class at each time."""
        which = self._at((np.arange(self._width) + 0.5) * self._end / self._width)
        row = np.array([self._colours[self._captions[at].top[0][0]] for at in which], np.uint8)
        return np.repeat(row[None], self._strip_px, axis=0)

    def on(self, frame: NDArray[np.uint8], *, seconds: float) -> NDArray[np.uint8]:
        """Draw the caption of a time into an RGB frame (H, W, 3) uint8."""
        import cv2

        if frame.shape[:2] != (self._height, self._width):
            frame = np.asarray(cv2.resize(frame, (self._width, self._height), interpolation=cv2.INTER_AREA), np.uint8)
        picture = np.ascontiguousarray(frame)
        if not picture.flags.writeable:
            picture = picture.copy()
        top = self._captions[int(self._at(np.array([seconds]))[0])].top[:_ROWS]
        gap = self._row_px // 4
        first = max(0, self._height - self._strip_px - len(top) * self._row_px - 2 * gap)
        panel = picture[first:]
        panel[:] = ((1 - _PAPER_SHARE) * panel + _PAPER_SHARE * _PAPER).astype(np.uint8)
        for number, (name, share) in enumerate(top):
            bottom = first + gap + (number + 1) * self._row_px
            right = max(1, round(self._width * 0.96 * share))
            colour = self._colours.get(name, _COLOURS[-1])
            bar = picture[bottom - self._row_px + 1 : bottom, :right]
            bar[:] = (0.45 * bar + 0.55 * np.array(colour)).astype(np.uint8)
            text = f"{_plain(name)} {share:.0%}"
            at, face = (gap + 2, bottom - round(self._row_px * 0.24)), cv2.FONT_HERSHEY_SIMPLEX
            cv2.putText(picture, text, at, face, self._fitting(text), _INK, self._thickness, cv2.LINE_AA)
        picture[-self._strip_px :] = self._strip
        now = min(self._width - 1, round(seconds / self._end * self._width))
        half = max(1, self._width // 320)
        picture[-self._strip_px - gap :, max(0, now - half) : now + half] = _INK
        return picture

    def _fitting(self, text: str) -> float:
        """Scale of letters at which a text is no wider than the picture."""
        import cv2

        (width, _), _ = cv2.getTextSize(text, cv2.FONT_HERSHEY_SIMPLEX, self._scale, self._thickness)
        return self._scale * min(1.0, 0.95 * self._width / max(1, width))


def _plain(name: str) -> str:
    """A name in OpenCV's ASCII font: accents are removed, other characters become question marks."""
    apart = unicodedata.normalize("NFKD", name)
    return "".join(sign for sign in apart if not unicodedata.combining(sign)).encode("ascii", "replace").decode()
