import os
import threading
import time
from concurrent.futures import CancelledError, ThreadPoolExecutor
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest

from twostream_ray.data.flow import FlowContract
from twostream_ray.data.video.clips import ClipWriter
from twostream_ray.data.video.decoder_pool import DecoderPool
from twostream_ray.data.video.isolation import decoder_pool, prepare_in_subprocess
from twostream_ray.errors import TooLongError

CONTRACT = FlowContract(short_side_px=64)


def video(num_frames: int) -> bytes:
    rng = np.random.default_rng(0)
    writer = ClipWriter(width=64, height=64, fps=Fraction(25))
    for _ in range(num_frames):
        writer.write(rng.integers(0, 255, (64, 64, 3), dtype=np.uint8))
    return writer.finish()


class Counted:
    """A child that is no process."""

    alive = 0

    def __init__(self) -> None:
        self.is_usable, self.pid = True, id(self)
        Counted.alive += 1

    def end(self) -> None:
        Counted.alive -= self.is_usable
        self.is_usable = False


def test_there_are_never_more_children_than_the_pool_may_have_and_all_end_with_it() -> None:
    pool = DecoderPool(Counted, most=3)
    most = [0]

    def work(_: int) -> None:
        with pool.acquire():
            most[0] = max(most[0], Counted.alive)
            time.sleep(0.01)

    with ThreadPoolExecutor(8) as threads:
        list(threads.map(work, range(40)))
    assert most[0] == Counted.alive == len(pool.ids) == 3
    pool.close()
    assert Counted.alive == 0 and pool.ids == []


def test_a_child_that_could_not_start_leaves_room_for_the_next() -> None:
    def fail() -> Counted:
        raise OSError

    pool = DecoderPool(fail, most=1)
    for _ in range(2):
        with pytest.raises(OSError), pool.acquire():
            pass
    pool = DecoderPool(Counted, most=1)
    with pytest.raises(ZeroDivisionError), pool.acquire() as child:
        child.end()
        raise ZeroDivisionError
    with pool.acquire() as other:
        assert other is not child
    pool.close()


def test_who_waits_for_a_child_can_be_called_off() -> None:
    pool, cancelled = DecoderPool(Counted, most=1), threading.Event()
    with pool.acquire():
        threading.Timer(0.2, cancelled.set).start()
        with pytest.raises(CancelledError), pool.acquire(cancelled):
            pass
    with pool.acquire(threading.Event()):
        pass
    pool.close()


@pytest.mark.slow
def test_videos_of_several_threads_decode_at_once() -> None:
    pool, content = decoder_pool(2), video(80)
    seen: set[int] = set()

    def prepare(_: int) -> int:
        frames = prepare_in_subprocess(content, CONTRACT, name="x", pool=pool).num_frames
        seen.update(pool.ids)
        return frames

    with ThreadPoolExecutor(4) as threads:
        assert list(threads.map(prepare, range(4))) == [80] * 4
    assert len(seen) == 2 and os.getpid() not in seen
    pool.close()
    assert not any(Path(f"/proc/{pid}").exists() for pid in seen)


@pytest.mark.slow
def test_decoding_that_is_called_off_ends_at_once_and_so_does_its_child() -> None:
    pool, cancelled, content = decoder_pool(1), threading.Event(), video(800)
    prepare_in_subprocess(video(3), CONTRACT, name="x", pool=pool)
    (pid,) = pool.ids
    started = time.monotonic()
    threading.Timer(0.3, cancelled.set).start()
    with pytest.raises(CancelledError):
        prepare_in_subprocess(content, CONTRACT, name="x", pool=pool, cancelled=cancelled)
    assert time.monotonic() - started < 2
    assert not Path(f"/proc/{pid}").exists()
    assert prepare_in_subprocess(video(3), CONTRACT, name="x", pool=pool).num_frames == 3
    pool.close()


def test_a_video_may_play_for_so_long_by_its_header_and_when_decoded() -> None:
    assert prepare_in_subprocess(video(25), CONTRACT, name="x", max_seconds=1).num_frames == 25
    with pytest.raises(TooLongError, match=r"x: a clip may take at most 1 s, this takes 1.0 s or more: cut it"):
        prepare_in_subprocess(video(26), CONTRACT, name="x", max_seconds=1)
