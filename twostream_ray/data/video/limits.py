"""Size limits of a video that is decoded as a whole; longer ones are processed in windows."""

from __future__ import annotations

from dataclasses import dataclass

from twostream_ray.errors import TooLongError
from twostream_ray.settings.bounds import require_within


@dataclass(frozen=True, kw_only=True)
class VideoLimits:
    """Limits of a video that is prepared as a whole."""

    max_bytes: int = 4_000_000_000
    """Maximum file size in bytes."""

    max_seconds: float = 3600.0
    """Maximum duration in seconds."""

    max_frames: int = 100_000
    """Maximum number of frames; a prepared frame takes about 10 kB."""

    def __post_init__(self) -> None:
        require_within(self, max_bytes="[1, 1_000_000_000_000]", max_seconds="(0, 1_000_000]")
        require_within(self, max_frames="[2, 10_000_000]")

    def require_size(self, size_bytes: int, *, name: str) -> None:
        """Refuse a file that is larger.

        Raises:
            TooLongError: it is.
        """
        if size_bytes > self.max_bytes:
            raise TooLongError(
                f"{name}: a file may have at most {self.max_bytes} bytes, this has {size_bytes}: cut it into clips"
            )
