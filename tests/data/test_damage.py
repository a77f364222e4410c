"""Damaged copies of real clips, as uploads, disks and networks make them."""

import json
from pathlib import Path
from typing import Literal

import cv2
import numpy as np
import pytest

from twostream_ray.data.flow import FlowContract
from twostream_ray.data.video import clips
from twostream_ray.data.video.isolation import prepare_in_subprocess
from twostream_ray.data.video.raw_video import FrameStream
from twostream_ray.errors import VideoError

Damage = Literal["truncation", "hole", "flips"]

SMALL = [
    "ucf101/JavelinThrow/v_JavelinThrow_g22_c01.avi",
    "codecs/carphone_distorted.mp4",
    "codecs/h265_video.mp4",
    "codecs/test_non_zero_start.mp4",
    "codecs/unordered.mov",
    "codecs/testsrc2_odd_height_and_width_mpeg2.mp4",
    "codecs/h264_10bits.mp4",
    "codecs/animated.gif",
    "codecs/video_90.mov",
    "codecs/nasa_13013_rotated.mp4",
    "codecs/av1_video.mkv",
]
COPIES = 200
CONTRACT = FlowContract(short_side_px=32)


def damaged(content: bytes, kind: Damage, rng: np.random.Generator) -> bytes:
    """Cut off somewhere, zeroed in a stretch of up to a tenth, or with some bits flipped."""
    if kind == "truncation":
        return content[: int(rng.integers(1, len(content) - 1))]
    copy = np.frombuffer(content, np.uint8).copy()
    if kind == "hole":
        length = int(rng.integers(16, max(17, len(content) // 10)))
        start = int(rng.integers(0, len(content) - length))
        copy[start : start + length] = 0
    else:
        positions = rng.integers(0, len(content), int(rng.integers(1, 20)))
        copy[positions] ^= (1 << rng.integers(0, 8, len(positions))).astype(np.uint8)
    return copy.tobytes()


@pytest.mark.slow
@pytest.mark.real
@pytest.mark.timeout(300)
@pytest.mark.parametrize("seed", [7, 14])
def test_no_mutated_copy_crashes_or_hangs_and_what_lacks_frames_is_never_taken_for_whole(real: Path, seed: int) -> None:
    whole = {name: (real / name).read_bytes() for name in SMALL}
    frames = {name: prepare_in_subprocess(content, CONTRACT, name=name).num_frames for name, content in whole.items()}
    kinds: tuple[Damage, ...] = ("truncation", "hole", "flips")
    passed = refused = 0
    for number in range(COPIES):
        name, kind = SMALL[number % len(SMALL)], kinds[number // len(SMALL) % 3]
        content = damaged(whole[name], kind, np.random.default_rng([seed, number]))
        try:
            clip = prepare_in_subprocess(content, CONTRACT, name=name, max_frames=1000, prove=True)
        except VideoError as error:
            refused += 1
            assert "\n" not in str(error) and "crashed" not in str(error) and "hung" not in str(error), str(error)
        else:
            passed += 1
            assert kind == "flips" or clip.num_frames == frames[name], f"{name} {number}: {kind}, {clip.num_frames}"
    assert passed + refused == COPIES
    assert refused > COPIES / 2


# -- every frame the right one


def sheet(frame: np.ndarray) -> np.ndarray:
    """A grey thumbnail of 8x6 px, each the mean of what it covers."""
    grey = cv2.cvtColor(frame, cv2.COLOR_RGB2GRAY)
    return cv2.resize(grey.astype(np.float32), (8, 6), interpolation=cv2.INTER_AREA)


@pytest.mark.slow
@pytest.mark.real
@pytest.mark.parametrize("group", ["hmdb51", "kinetics_like", "codecs"])
def test_frames_fetched_in_random_order_are_those_decoded_in_order(real: Path, group: str) -> None:
    checked = 0
    for path in sorted((real / group).rglob("*.*")):
        name = path.relative_to(real).as_posix()
        try:
            clip = prepare_in_subprocess(path.read_bytes(), FlowContract(short_side_px=64), name=name)
        except VideoError as error:
            assert path.name == "testsrc2_mpeg4.mp4", str(error)  # one frame
            continue
        order = np.random.default_rng(3).permutation(clip.num_frames).tolist()
        fetched = clips.fetch_frames(clip.video or b"", order, num_frames=clip.num_frames)
        source = [sheet(frame) for frame in FrameStream(path.read_bytes(), name=name)]
        assert len(source) == clip.num_frames, name
        thumbs = np.stack([sheet(frame) for frame in fetched])
        wanted = np.stack([source[index] for index in order])
        own = np.abs(thumbs - wanted).max(axis=(1, 2))
        # Another frame that fits as well is one that looks the same.
        best = np.stack([np.abs(np.stack(source) - thumb).max(axis=(1, 2)).min() for thumb in thumbs])
        assert (own - best).max() < 2, f"{name}: {own.max():.1f}"
        checked += clip.num_frames
    table = json.loads((real / "expected/decode_expected.json").read_text())
    expected = [entry["pyav18"]["frames"] for name, entry in table.items() if name.startswith(f"{group}/")]
    assert checked == sum(count for count in expected if count > 1) > 500
