"""Serialised clip: the bytes and numbers that a sample is decoded from, laid out to be handed to another process."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from twostream_ray.data.encoded_clip import EncodedClip
from twostream_ray.data.transforms import Crop
from twostream_ray.data.views import View

CROP_FIELDS = ("top", "left", "height", "width", "mirrored")
"""Of a `Crop`, in the order in which they are packed; behind them height and width that it is shown in."""
NUMBERS_A_VIEW = len(CROP_FIELDS) + 2
_COUNTS = 9
_WORD = 8


@dataclass(frozen=True, kw_only=True, slots=True)
class PackedClip:
    """A clip with the flow fields that its views need, and the views; nothing is copied or parsed until it is used.

    Handing a clip over costs the worker two copies, not one Python object a field.
    """

    num_frames: int
    height: int
    width: int
    fps: float
    times: NDArray[np.int64]
    """(views * T,), frames; the views one after the other."""
    crops: NDArray[np.int64]
    """(views, 7): `CROP_FIELDS` of each, and the size that it is shown in."""
    fields: NDArray[np.int64]
    """(F,), indices of the flow fields, ascending."""
    ends: NDArray[np.int64]
    """(F + 1,), where each field begins in `flow`, and where the last ends."""
    video: memoryview
    """H.264 in mp4; empty where it is not wanted."""
    flow: memoryview
    """Grey JPEGs, one after the other."""

    @property
    def nbytes(self) -> int:
        """Bytes that `write` takes."""
        return (_COUNTS + self._numbers()) * _WORD + len(self.video) + len(self.flow)

    def _numbers(self) -> int:
        return len(self.times) + self.crops.size + len(self.fields) + len(self.ends)

    def write(self, out: NDArray[np.uint8]) -> None:
        """Copy it into memory of at least `nbytes` bytes that begins at a multiple of 8."""
        counts = [len(self.times), len(self.crops), len(self.fields), len(self.video), len(self.flow)]
        fps = np.array([self.fps]).view(np.int64)
        header = np.concatenate(
            [
                np.array([self.num_frames, self.height, self.width, *counts], np.int64),
                fps,
                self.times,
                self.crops.reshape(-1),
                self.fields,
                self.ends,
            ]
        )
        start = header.nbytes
        out[:start] = header.view(np.uint8)
        for part in (self.video, self.flow):
            out[start : start + len(part)] = np.frombuffer(part, np.uint8)
            start += len(part)

    @classmethod
    def read(cls, content: NDArray[np.uint8]) -> PackedClip:
        """What `write` wrote; refers to `content`."""
        counts = content[: _COUNTS * _WORD].view(np.int64)
        num_frames, height, width, times, views, fields, video, flow = counts[:-1].tolist()
        sizes = [times, views * NUMBERS_A_VIEW, fields, fields + 1]
        start = _COUNTS * _WORD
        words = content[start : start + sum(sizes) * _WORD].view(np.int64)
        parts = np.split(words, np.cumsum(sizes)[:-1])
        start += words.nbytes
        whole = memoryview(content)  # type: ignore[arg-type]  # NumPy says so from 3.12 on
        return cls(
            num_frames=num_frames,
            height=height,
            width=width,
            fps=float(counts[-1:].view(np.float64)[0]),
            times=parts[0],
            crops=parts[1].reshape(-1, NUMBERS_A_VIEW),
            fields=parts[2],
            ends=parts[3],
            video=whole[start : start + video],
            flow=whole[start + video : start + video + flow],
        )

    def without_flow(self) -> PackedClip:
        """The clip without its flow fields."""
        return replace(self, fields=self.fields[:0], ends=np.zeros(1, np.int64), flow=self.flow[:0])

    def encoded(self) -> EncodedClip:
        """The clip, its fields by their indices."""
        bounds = self.ends.tolist()
        contents = [self.flow[start:end] for start, end in pairwise(bounds)]
        return EncodedClip(
            video=self.video or None,
            flow=dict(zip(self.fields.tolist(), contents, strict=True)) or None,
            num_frames=self.num_frames,
            height=self.height,
            width=self.width,
            fps=self.fps,
        )

    def views(self) -> tuple[View, ...]:
        """What its samples show."""
        return tuple(
            View(
                times=times,
                crop=Crop(top=top, left=left, height=height, width=width, mirrored=bool(mirrored)),
                size=(size[0], size[1]),
            )
            for times, (top, left, height, width, mirrored, *size) in zip(
                self.times.reshape(len(self.crops), -1), self.crops.tolist(), strict=True
            )
        )


def crop_numbers(views: Sequence[View]) -> list[int]:
    """The crops of views as `PackedClip.crops` holds them, flat."""
    return [
        number for view in views for number in (*(int(getattr(view.crop, name)) for name in CROP_FIELDS), *view.size)
    ]
