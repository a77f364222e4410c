"""LRU cache of decoded clips with a byte limit and a TTL: a video is decoded once for /predict and /explain."""

from __future__ import annotations

import threading
import time
from collections import OrderedDict
from collections.abc import Hashable

from twostream_ray.data.encoded_clip import EncodedClip


class ClipCache:
    """Decoded clips, keyed by the SHA-256 of the video and the flow contract; thread-safe."""

    def __init__(self, *, limit_bytes: int, seconds: float) -> None:
        """Keep at most `limit_bytes` in total, each clip for `seconds` after its last use."""
        self._limit_bytes, self._seconds = limit_bytes, seconds
        self._clips: OrderedDict[Hashable, tuple[EncodedClip, float]] = OrderedDict()
        self._lock = threading.Lock()
        self.size_bytes = 0
        """Total of the cached clips."""

    def get(self, key: Hashable) -> EncodedClip | None:
        """The clip, or None if it is not cached."""
        now = time.monotonic()
        with self._lock:
            self._drop_old(now)
            found = self._clips.get(key)
            if found is None:
                return None
            self._clips[key] = (found[0], now)
            self._clips.move_to_end(key)
            return found[0]

    def put(self, key: Hashable, clip: EncodedClip) -> None:
        """Add a clip and evict the least recently used ones over the limit."""
        size, now = _size(clip), time.monotonic()
        with self._lock:
            self._drop_old(now)
            if key in self._clips or size > self._limit_bytes:
                return
            self._clips[key] = (clip, now)
            self.size_bytes += size
            while self.size_bytes > self._limit_bytes:
                self._drop_first()

    def clear(self) -> None:
        """Evict all clips."""
        with self._lock:
            self._clips.clear()
            self.size_bytes = 0

    def drop_old(self) -> None:
        """Evict expired clips."""
        with self._lock:
            self._drop_old(time.monotonic())

    def _drop_old(self, now: float) -> None:
        while self._clips and now - next(iter(self._clips.values()))[1] >= self._seconds:
            self._drop_first()

    def _drop_first(self) -> None:
        _, (clip, _) = self._clips.popitem(last=False)
        self.size_bytes -= _size(clip)


def _size(clip: EncodedClip) -> int:
    fields = clip.flow.values() if isinstance(clip.flow, dict) else clip.flow or ()
    return len(clip.video or b"") + sum(map(len, fields))
