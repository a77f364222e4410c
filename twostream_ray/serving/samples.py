"""Sample clips for the page: the videos of a folder, or synthetic moving shapes, drawn at the first request."""

from __future__ import annotations

import tempfile
import threading
from dataclasses import dataclass
from pathlib import Path

from twostream_ray.data.sources.synthetic import SyntheticConfig, draw_clip
from twostream_ray.data.video.files import write_video
from twostream_ray.errors import ConfigError

_DRAWN = SyntheticConfig(group="binding", size_px=160, num_frames=25)
_MEDIA_TYPES = {
    ".mp4": "video/mp4",
    ".m4v": "video/mp4",
    ".mov": "video/quicktime",
    ".webm": "video/webm",
    ".mkv": "video/x-matroska",
    ".avi": "video/x-msvideo",
}
_MOST = 12
"""Samples that fit on the page."""


@dataclass(frozen=True, kw_only=True, slots=True)
class SampleClip:
    """One sample."""

    name: str
    """Its file name."""
    title: str
    """Its caption on the page."""
    media_type: str


class SampleClips:
    """The available samples."""

    def __init__(self, folder: str | None = None) -> None:
        """List the folder's first 12 videos by name; without a folder one synthetic clip per direction.

        Raises:
            ConfigError: the folder does not exist or has no video.
        """
        self._folder = None if folder is None else Path(folder)
        self._lock = threading.Lock()
        self._drawn: dict[str, bytes] = {}
        if self._folder is None:
            self._clips = [
                SampleClip(name=f"red_{way}.mp4", title=f"red goes {way}", media_type="video/mp4")
                for way in _DRAWN.classes
            ]
        else:
            self._clips = _videos_of(self._folder)

    def all(self) -> list[SampleClip]:
        """All samples, in the order of the page."""
        return list(self._clips)

    def content(self, name: str) -> tuple[bytes, str] | None:
        """A sample's bytes and media type; None if no sample has this name."""
        number = next((number for number, clip in enumerate(self._clips) if clip.name == name), None)
        if number is None:
            return None
        media_type = self._clips[number].media_type
        if self._folder is not None:
            try:
                return (self._folder / name).read_bytes(), media_type
            except OSError:
                return None
        with self._lock:
            if name not in self._drawn:
                self._drawn[name] = _drawn_clip(number)
            return self._drawn[name], media_type


def _videos_of(folder: Path) -> list[SampleClip]:
    try:
        paths = sorted(path for path in folder.iterdir() if path.suffix.lower() in _MEDIA_TYPES and path.is_file())
    except OSError as error:
        raise ConfigError(f"samples must be a folder of videos, got {folder} ({error.strerror})") from None
    if not paths:
        raise ConfigError(f"samples must be a folder of videos ({', '.join(_MEDIA_TYPES)}), {folder} has none")
    return [
        SampleClip(name=path.name, title=path.stem.replace("_", " "), media_type=_MEDIA_TYPES[path.suffix.lower()])
        for path in paths[:_MOST]
    ]


def _drawn_clip(number: int) -> bytes:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "clip.mp4")
        write_video(draw_clip(_DRAWN, "test", number), path=path, container="mp4", fps=_DRAWN.fps)
        return path.read_bytes()
