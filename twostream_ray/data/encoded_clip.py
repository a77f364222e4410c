"""Encoded clip, as shards hold it: H.264 video that seeks exactly, and a grey JPEG for each flow field."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True, slots=True)
class EncodedClip:
    """A clip as shards hold it; a stream that is not wanted is None."""

    video: bytes | memoryview | None
    """H.264 in mp4 that seeks exactly."""

    flow: Sequence[bytes | memoryview] | Mapping[int, bytes | memoryview] | None
    """Grey JPEGs, x stacked over y, by index; field k of num_frames - 1 is between frames k and k + 1."""

    num_frames: int
    """Frames that can be decoded."""

    height: int
    """Pixels."""

    width: int
    """Pixels."""

    fps: float
    """Mean frames per second of the source."""

    notes: tuple[str, ...] = ()
    """What is to be known about the source, each one of `raw_video.Note`; shards do not hold it."""
