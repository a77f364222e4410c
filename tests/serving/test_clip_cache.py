import time

import pytest

from twostream_ray.data.encoded_clip import EncodedClip
from twostream_ray.serving.clip_cache import ClipCache


def clip(size: int) -> EncodedClip:
    return EncodedClip(video=bytes(size // 2), flow=[bytes(size - size // 2)], num_frames=2, height=2, width=2, fps=25)


def test_what_was_not_used_for_longest_goes_first_and_no_more_than_the_limit_is_kept() -> None:
    cache = ClipCache(limit_bytes=100, seconds=60)
    cache.put("a", clip(40))
    cache.put("b", clip(40))
    assert cache.get("a") is not None
    cache.put("c", clip(40))
    assert cache.get("b") is None and cache.get("a") is not None and cache.get("c") is not None
    assert cache.size_bytes == 80
    cache.put("too large", clip(101))
    cache.put("a", clip(40))
    assert cache.size_bytes == 80
    cache.clear()
    assert cache.size_bytes == 0 and cache.get("a") is None


def test_what_was_not_used_for_so_long_goes(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    cache = ClipCache(limit_bytes=100, seconds=10)
    cache.put("a", clip(40))
    now[0] = 9
    assert cache.get("a") is not None
    now[0] = 18
    assert cache.get("a") is not None
    now[0] = 28
    cache.drop_old()
    assert cache.size_bytes == 0 and cache.get("a") is None


def test_a_cache_of_nothing_keeps_nothing() -> None:
    cache = ClipCache(limit_bytes=0, seconds=10)
    cache.put("a", clip(1))
    assert cache.get("a") is None
