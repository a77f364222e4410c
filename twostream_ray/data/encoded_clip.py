"""Encoded clip, the payload of a shard row: frame-exact seekable H.264 video and one grey JPEG per flow field."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True, slots=True)
class EncodedClip:
    """A clip as stored in a shard; a stream that was not requested is None."""

    video: bytes | memoryview | None
    """H.264 in MP4, frame-exact to seek."""

    flow: Sequence[bytes | memoryview] | Mapping[int, bytes | memoryview] | None
    """num_frames - 1 grey JPEGs of (2H, W) uint8, x stacked over y, by index; field k is the motion from frame k to
    k + 1."""

    num_frames: int
    """Number of decodable frames."""

    height: int
    """Pixels."""

    width: int
    """Pixels."""

    fps: float
    """Mean frames per second of the source."""

    notes: tuple[str, ...] = ()
    """Remarks about the source, each one of `raw_video.Note`; not stored in shards."""
