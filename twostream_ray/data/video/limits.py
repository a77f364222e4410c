"""Upload limits: what one video may have before it is decoded whole; longer ones are answered in windows."""

from __future__ import annotations

from dataclasses import dataclass

from twostream_ray.errors import TooLongError
from twostream_ray.settings.bounds import require_within


@dataclass(frozen=True, kw_only=True)
class VideoLimits:
    """What a video may have that is prepared as a whole."""

    max_bytes: int = 4_000_000_000
    """Size of its file."""

    max_seconds: float = 3600.0
    """Time that it takes to play."""

    max_frames: int = 100_000
    """Frames; prepared, they take about 10 kB each."""

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
                f"{name}: a file of at most {self.max_bytes} bytes was wanted, this has {size_bytes}: cut it into clips"
            )
