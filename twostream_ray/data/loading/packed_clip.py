"""Flat serialisation of a clip and its views, for passing to a decoder process through shared memory without pickling.

Layout, in 64-bit words: num_frames, height, width, lengths of times, crops, fields, video and flow, fps, then the
arrays times, crops, fields and ends; after them the bytes of video and flow.
"""

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
"""Fields of a `Crop` in packing order; height and width of the output follow."""
NUMBERS_PER_VIEW = len(CROP_FIELDS) + 2
"""Integers per packed crop."""
_COUNTS = 9
_WORD = 8


@dataclass(frozen=True, kw_only=True, slots=True)
class PackedClip:
    """A clip with its views and the flow fields that they need; lazily parsed, zero-copy.

    Passing a clip costs two copies instead of one Python object per flow field.
    """

    num_frames: int
    height: int
    """Of the stored frame in px."""
    width: int
    """Of the stored frame in px."""
    fps: float
    times: NDArray[np.int64]
    """(views * T,), snippet times in frames, view by view."""
    crops: NDArray[np.int64]
    """(views, 7): `CROP_FIELDS` of each view's crop, then height and width of the output in px."""
    fields: NDArray[np.int64]
    """(F,), indices of the flow fields, ascending."""
    ends: NDArray[np.int64]
    """(F + 1,), offsets: field i is flow[ends[i]:ends[i + 1]]."""
    video: memoryview
    """H.264 in MP4; empty if not requested."""
    flow: memoryview
    """The F grey JPEGs, concatenated."""

    @property
    def nbytes(self) -> int:
        """Bytes that `write` needs."""
        return (_COUNTS + self._numbers()) * _WORD + len(self.video) + len(self.flow)

    def _numbers(self) -> int:
        return len(self.times) + self.crops.size + len(self.fields) + len(self.ends)

    def write(self, out: NDArray[np.uint8]) -> None:
        """Serialise into `out`, of at least `nbytes` bytes and aligned to 8 bytes."""
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
        """Deserialise without copying: the result refers to `content`, (nbytes,) uint8."""
        counts = content[: _COUNTS * _WORD].view(np.int64)
        num_frames, height, width, times, views, fields, video, flow = counts[:-1].tolist()
        sizes = [times, views * NUMBERS_PER_VIEW, fields, fields + 1]
        start = _COUNTS * _WORD
        words = content[start : start + sum(sizes) * _WORD].view(np.int64)
        parts = np.split(words, np.cumsum(sizes)[:-1])
        start += words.nbytes
        buffer = memoryview(content)  # type: ignore[arg-type]  # typed as a buffer from Python 3.12 on
        return cls(
            num_frames=num_frames,
            height=height,
            width=width,
            fps=float(counts[-1:].view(np.float64)[0]),
            times=parts[0],
            crops=parts[1].reshape(-1, NUMBERS_PER_VIEW),
            fields=parts[2],
            ends=parts[3],
            video=buffer[start : start + video],
            flow=buffer[start + video : start + video + flow],
        )

    def without_flow(self) -> PackedClip:
        """A copy without flow fields."""
        return replace(self, fields=self.fields[:0], ends=np.zeros(1, np.int64), flow=self.flow[:0])

    def encoded(self) -> EncodedClip:
        """The encoded clip, with its flow fields as a dict by index."""
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
        """The views of its samples."""
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
    """Pack the crops of views as in `PackedClip.crops`: (views * 7) integers."""
    return [
        number for view in views for number in (*(int(getattr(view.crop, name)) for name in CROP_FIELDS), *view.size)
    ]
