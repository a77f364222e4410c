import os

import numpy as np
import pytest
from moving_square import moving_square

from twostream_ray.data.video import second_decoder
from twostream_ray.data.video.clips import fetch_frames
from twostream_ray.data.video.second_decoder import SecondDecoder
from twostream_ray.errors import DecodeError

pytestmark = pytest.mark.skipif(not second_decoder.is_installed(), reason="decord has wheels for x86-64 only")
CLIP = moving_square(20)


def test_decord_fetches_the_frames_that_we_do() -> None:
    with SecondDecoder() as decoder:
        for _ in range(2):
            decoder.compare("a", memoryview(CLIP), 20)
        assert decoder.sentence() == "decord, a second decoder, fetches the same frames of 2 of 2 clips"


def test_a_wrong_frame_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    def one_late(content: bytes, indices: list[int], *, num_frames: int) -> np.ndarray:
        frames = fetch_frames(content, indices, num_frames=num_frames)
        frames[1] = fetch_frames(content, [(indices[1] + 1) % num_frames], num_frames=num_frames)[0]
        return frames

    monkeypatch.setattr(second_decoder, "fetch_frames", one_late)
    with SecondDecoder() as decoder, pytest.raises(DecodeError, match=r"frame \d+ fetched by decord differs .* levels"):
        decoder.compare("a", CLIP, 20)


def test_a_crash_or_a_refusal_is_counted_and_the_next_clip_compared(monkeypatch: pytest.MonkeyPatch) -> None:
    with SecondDecoder() as decoder:
        decoder.compare("a", CLIP, 20)
        assert decoder._child is not None
        os.kill(decoder._child.pid, 11)
        decoder.compare("b", CLIP, 20)
        decoder.compare("c", CLIP, 20)
        monkeypatch.setattr(second_decoder, "fetch_frames", lambda *_, **__: np.zeros((4, 64, 80, 3), np.uint8))
        decoder.compare("d", b"no video", 20)
        said = decoder.sentence()
    assert (
        said
        == "decord, a second decoder, fetches the same frames of 2 of 4 clips; it cannot read the others, for example b"
    )
    assert decoder._child is None
