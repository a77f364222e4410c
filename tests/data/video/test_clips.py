import json
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from twostream_ray.data.video import clips
from twostream_ray.data.video.clips import ClipWriter, fetch_frames, prove_seeking
from twostream_ray.data.video.raw_video import FrameStream
from twostream_ray.errors import DecodeError


def encoded(num_frames: int, *, size: int = 64) -> tuple[bytes, NDArray[np.uint8]]:
    """A clip whose every frame has a grey level of its own."""
    frames = np.stack([np.full((size, size, 3), 20 + 3 * index, np.uint8) for index in range(num_frames)])
    writer = ClipWriter(width=size, height=size, fps=Fraction(25))
    for frame in frames:
        writer.write(frame)
    return writer.finish(), frames


def test_every_frame_fetched_in_random_order_is_the_right_one() -> None:
    content, _ = encoded(60)
    order = np.random.default_rng(1).permutation(60).tolist()
    fetched = fetch_frames(content, order, num_frames=60)
    levels = fetched.reshape(60, -1).mean(axis=1)
    assert np.abs(levels - [20 + 3 * index for index in order]).max() < 1.4


def test_decoding_in_order_gives_all_frames() -> None:
    content, frames = encoded(30)
    decoded = np.stack(list(FrameStream(content)))
    assert decoded.shape == frames.shape
    assert np.abs(decoded.astype(int) - frames).mean() < 1.5


def test_another_number_of_frames_is_refused() -> None:
    content, _ = encoded(30)
    with pytest.raises(DecodeError, match="a clip of 31 frames, its video has 30"):
        fetch_frames(content, [0], num_frames=31)


def test_a_clip_that_lost_its_end_fails_the_proof_of_seeking() -> None:
    content, _ = encoded(30)
    prove_seeking(content, num_frames=30)
    with pytest.raises(DecodeError):
        prove_seeking(content, num_frames=29)


def test_seeking_to_another_picture_fails_the_proof(monkeypatch: pytest.MonkeyPatch) -> None:
    content, frames = encoded(30)
    monkeypatch.setattr(clips, "fetch_frames", lambda _, indices, num_frames: frames[[max(i - 4, 0) for i in indices]])
    with pytest.raises(DecodeError, match="differs from the one in order"):
        prove_seeking(content, num_frames=num_frames_of(frames))


def num_frames_of(frames: NDArray[np.uint8]) -> int:
    return len(frames)


@pytest.mark.parametrize("content", [b"", b"version https://git-lfs.github.com/spec/v1", bytes(1000)])
def test_bytes_that_are_no_video_are_refused_in_one_line(content: bytes) -> None:
    with pytest.raises(DecodeError, match=r"x.mp4: not a readable video, \d+ bytes") as caught:
        list(FrameStream(content, name="x.mp4"))
    assert "\n" not in str(caught.value)


def test_real_clips_have_as_many_frames_as_can_be_decoded(real: Path) -> None:
    table = json.loads((real / "expected/decode_expected.json").read_text())
    checked = 0
    for name, expected in table.items():
        if name.startswith(("ucf101/K", "ucf101/Bo", "hmdb51/", "kinetics_like/")):
            count = sum(1 for _ in FrameStream((real / name).read_bytes(), name=name).pictures())
            assert count == expected["pyav18"]["frames"], name
            checked += 1
    assert checked >= 10


def test_every_decodable_codec_is_read_whole_and_upright(real: Path) -> None:
    table = json.loads((real / "expected/decode_expected.json").read_text())
    for path in sorted((real / "codecs").iterdir()):
        expected = table[f"codecs/{path.name}"]["pyav18"]["frames"]
        frames = list(FrameStream(path.read_bytes(), name=path.name))
        assert len(frames) == expected, path.name
    upright = next(iter(FrameStream((real / "codecs/video_90.mov").read_bytes())))
    assert upright.shape == (568, 320, 3)


def test_truncated_real_clips_are_never_taken_for_whole_ones(real: Path) -> None:
    for name in ("ucf101/Biking/v_Biking_g01_c04.avi", "kinetics_like/arm_wrestling/demo.mp4"):
        content = (real / name).read_bytes()
        for fraction in (0.3, 0.6, 0.9):
            with pytest.raises(DecodeError):
                list(FrameStream(content[: int(len(content) * fraction)], name=name).pictures())


@pytest.mark.parametrize("size", [16, 24, 48, 72])
def test_frames_of_any_even_size_are_fetched(size: int) -> None:
    content, frames = encoded(14, size=size)
    assert np.abs(fetch_frames(content, [13, 2], num_frames=14).astype(int) - frames[[13, 2]]).mean() < 1.5
