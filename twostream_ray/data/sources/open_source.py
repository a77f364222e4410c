"""Opens a catalog clip for decoding: a local copy of its video file, or its frame images, and existing flow images."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from twostream_ray import storage
from twostream_ray.data.sources import images
from twostream_ray.data.sources.catalog import Clip
from twostream_ray.data.video.prepare import Source

_LARGEST_VIDEO_BYTES = 64 << 30


@contextmanager
def open_source(clip: Clip) -> Iterator[Source]:
    """A clip's video as a local file for the duration of the block, or its images; and its flow images.

    Raises:
        AccessError: a file or folder does not exist.
        DecodeError: an image of the sequence is missing.
    """
    flow = None
    if clip.flow_uris:
        flow = tuple(images.read_flow(*clip.flow_uris, name=clip.clip_id))
    if clip.frames:
        yield Source(frames=tuple(images.read_frames(clip.uri, name=clip.clip_id)), flow=flow)
        return
    with storage.on_disk(clip.uri, limit_bytes=_LARGEST_VIDEO_BYTES) as path:
        yield Source(video=path, flow=flow)


def source_sha256(source: Source) -> str:
    """SHA-256 of a source's video, or of its images in order, and its flow images; 64 hexadecimal digits."""
    digest = hashlib.sha256()
    if isinstance(source.video, Path):
        with source.video.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256")
    for part in (*source.frames, *(image for pair in source.flow or () for image in pair)):
        digest.update(part)
    return digest.hexdigest()
