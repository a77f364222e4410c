from pathlib import Path

import numpy as np
import pytest

from twostream_ray.data import transforms
from twostream_ray.data.encoded_clip import EncodedClip
from twostream_ray.data.flow import FlowContract, decode_field
from twostream_ray.data.loading.decoded_clip import DecodedClip
from twostream_ray.data.protocols import PROTOCOLS, Protocol
from twostream_ray.data.sampling import SamplingConfig
from twostream_ray.data.transforms import TransformConfig
from twostream_ray.data.video.prepare import prepare_clip
from twostream_ray.data.video.raw_video import FrameStream
from twostream_ray.data.views import evaluation_views, protocol_views, training_view, view_keys


def test_the_training_view_is_a_function_of_seed_epoch_and_clip() -> None:
    def drawn(**change: object) -> tuple[object, ...]:
        arguments = {"seed": 0, "epoch": 3, "clip_id": "a"} | change
        result = training_view(
            24, 64, 80, sampling_config=SamplingConfig(), transform_config=TransformConfig(crop_px=32), **arguments
        )
        return (*result.times.tolist(), result.crop)

    assert drawn() == drawn()
    assert len({drawn(), drawn(seed=1), drawn(epoch=4), drawn(clip_id="b")}) == 4


def test_test_views_share_the_centre_crop_and_differ_in_their_times() -> None:
    views = evaluation_views(
        24,
        64,
        80,
        sampling_config=SamplingConfig(num_snippets=2, max_stride_frames=5, test_times=3),
        transform_config=TransformConfig(crop_px=32),
    )
    assert {(view.crop.top, view.crop.left, view.crop.height, view.crop.width) for view in views} == {(16, 24, 32, 32)}
    assert np.array([view.times for view in views]).tolist() == [[3, 8], [9, 14], [15, 20]]


@pytest.mark.parametrize("name", PROTOCOLS)
def test_the_views_of_a_clip_are_those_that_the_keys_name(name: str) -> None:
    sampling = SamplingConfig(num_snippets=2, max_stride_frames=5, test_times=3)
    views = protocol_views(
        PROTOCOLS[name], 24, 64, 80, sampling_config=sampling, transform_config=TransformConfig(crop_px=32)
    )
    keys = view_keys(PROTOCOLS[name], sampling_config=sampling)
    assert len(views) == len(keys) == len(set(keys))
    starts = {"top_left": (0, 0), "top_right": (0, 48), "bottom_left": (32, 0), "bottom_right": (32, 48)}
    starts |= {"centre": (16, 24), "full": (0, 0)}
    for view, key in zip(views, keys, strict=True):
        assert (view.crop.top, view.crop.left) == starts[key.crop] and view.crop.mirrored is key.mirrored
        assert view.size == ((64, 80) if key.crop == "full" else (32, 32))
        (same_time,) = {tuple(v.times) for v, k in zip(views, keys, strict=True) if k.time == key.time}
        assert tuple(view.times) == same_time


# A clip of UCF101 as shards hold it: 94 frames, of 240 x 320 px made 256 x 342. Everything below is worked out by hand
# from the papers' protocols: evenly spaced frames are the midpoints of 25 equal parts, a fusion network's 20 samples of
# 5 frames, 15 apart (60 frames from first to last), begin at the midpoints of 20 equal parts of frames 0 to 33.
CRAWLING = "ucf101/BabyCrawling/v_BabyCrawling_g19_c01.avi"
MOMENTS = [1, 5, 9, 13, 16, 20, 24, 28, 31, 35, 39, 43, 47, 50, 54, 58, 62, 65, 69, 73, 77, 80, 84, 88, 92]
STARTS = [0, 2, 4, 5, 7, 9, 11, 12, 14, 16, 17, 19, 21, 22, 24, 26, 28, 29, 31, 33]
TEN_CROPS = [
    (0, 0, 224, 224, False),
    (0, 0, 224, 224, True),
    (0, 118, 224, 224, False),
    (0, 118, 224, 224, True),
    (32, 0, 224, 224, False),
    (32, 0, 224, 224, True),
    (32, 118, 224, 224, False),
    (32, 118, 224, 224, True),
    (16, 59, 224, 224, False),
    (16, 59, 224, 224, True),
]
CENTRE = [(16, 59, 224, 224, False)]
FULL = [(0, 0, 256, 342, False), (0, 0, 256, 342, True)]
SHOWN: dict[str, tuple[list[list[int]], list[tuple[int, int, int, int, bool]], tuple[int, int]]] = {
    "paper_2014": ([[moment] for moment in MOMENTS], TEN_CROPS, (224, 224)),
    "tsn": ([[moment] for moment in MOMENTS], TEN_CROPS, (224, 224)),
    "fusion_2016": ([[start, start + 15, start + 30, start + 45, start + 60] for start in STARTS], FULL, (256, 342)),
    "st_resnet_2016": ([MOMENTS], FULL, (256, 342)),
    "fast": ([[17, 32, 47, 62, 77]], CENTRE, (224, 224)),
    "validation": (
        [[4, 19, 34, 49, 64], [12, 27, 42, 57, 72], [21, 36, 51, 66, 81], [29, 44, 59, 74, 89]],
        CENTRE,
        (224, 224),
    ),
}
SHOWN["custom"] = SHOWN["validation"]


@pytest.fixture(scope="module")
def crawling(real: Path) -> EncodedClip:
    return prepare_clip((real / CRAWLING).read_bytes(), FlowContract(), name="crawling")


@pytest.mark.real
@pytest.mark.parametrize("name", PROTOCOLS)
def test_a_protocol_shows_the_frames_and_crops_of_its_paper(crawling: EncodedClip, name: str) -> None:
    assert (crawling.num_frames, crawling.height, crawling.width) == (94, 256, 342)
    views = protocol_views(
        PROTOCOLS[name], 94, 256, 342, sampling_config=SamplingConfig(), transform_config=TransformConfig()
    )
    times, crops, size = SHOWN[name]
    found = [
        (view.times.tolist(), (crop.top, crop.left, crop.height, crop.width, crop.mirrored), view.size)
        for view in views
        for crop in [view.crop]
    ]
    assert found == [(of_sample, crop, size) for of_sample in times for crop in crops]


def decoded_in_order(clip: EncodedClip) -> list[np.ndarray]:
    assert clip.video is not None
    return list(FrameStream(clip.video))


@pytest.mark.slow
@pytest.mark.real
@pytest.mark.parametrize("name", ["paper_2014", "fusion_2016", "st_resnet_2016", "validation"])
def test_samples_of_a_protocol_are_those_frames_and_fields(crawling: EncodedClip, name: str) -> None:
    config, contract = SamplingConfig(), FlowContract()
    views = protocol_views(PROTOCOLS[name], 94, 256, 342, sampling_config=config, transform_config=TransformConfig())
    times, crops, _ = SHOWN[name]
    frames = decoded_in_order(crawling)
    assert crawling.flow is not None
    fields = [decode_field(content) for content in crawling.flow]
    decoded = DecodedClip(crawling, views, config=config, contract=contract)
    wanted = [(of_sample, crop) for of_sample in times for crop in crops]
    for of_sample, (top, left, height, width, mirrored) in wanted:
        rgb, stacks = decoded.next_samples(1)
        assert rgb is not None and stacks is not None
        across = slice(None, None, -1) if mirrored else slice(None)
        for snippet, time in enumerate(of_sample):
            shown = frames[time][top : top + height, left : left + width][:, across]
            np.testing.assert_array_equal(rgb[0, snippet].transpose(1, 2, 0), shown)
            for number, offset in enumerate((-5, -4, -3, -2, -1, 0, 1, 2, 3, 4)):
                # Field k is between frames k and k + 1: there are 93, of which the first and last are repeated.
                x, y = fields[min(max(time + offset, 0), 92)][:, top : top + height, left : left + width][:, :, across]
                np.testing.assert_array_equal(stacks[0, snippet, 2 * number + 1], y)
                found = stacks[0, snippet, 2 * number].astype(int)
                # 128 is no motion: 256 - v is the opposite of v, and 255 the strongest there is.
                np.testing.assert_array_equal(found, np.minimum(256 - x.astype(int), 255) if mirrored else x)


def test_frames_that_are_too_small_for_the_full_frame_are_enlarged_to_the_crop() -> None:
    def shown(height: int, width: int, short_side_px: int | None = None) -> tuple[int, int]:
        (view, _) = protocol_views(
            PROTOCOLS["st_resnet_2016"],
            9,
            height,
            width,
            sampling_config=SamplingConfig(),
            transform_config=TransformConfig(short_side_px=short_side_px),
        )
        assert (view.crop.height, view.crop.width) == (height, width)
        return view.size

    assert shown(256, 342) == (256, 342)
    assert shown(342, 256) == (342, 256)
    assert shown(112, 160) == (224, 320)
    assert shown(160, 112) == (320, 224)
    assert shown(512, 640, short_side_px=256) == (256, 320)
    assert shown(128, 161, short_side_px=256) == (256, 322)


def test_ten_crops_of_a_mirrored_frame_are_the_ten_crops_mirrored() -> None:
    frame = np.random.default_rng(0).integers(0, 256, (64, 84, 3), np.uint8)
    config = TransformConfig(crop_px=32)
    views = protocol_views(PROTOCOLS["tsn"], 1, 64, 84, sampling_config=SamplingConfig(), transform_config=config)
    keys = view_keys(PROTOCOLS["tsn"], sampling_config=SamplingConfig())

    def shown(picture: np.ndarray) -> dict[tuple[str, bool], np.ndarray]:
        return {
            (key.crop, key.mirrored): transforms.apply_crop(picture, view.crop, size=view.size)
            for view, key in zip(views, keys, strict=True)
            if key.time == 0
        }

    plain, turned = shown(frame), shown(frame[:, ::-1].copy())
    assert len(plain) == 10
    opposite = {"left": "right", "right": "left"}
    for (crop, mirrored), picture in plain.items():
        vertical, _, horizontal = crop.partition("_")
        other = f"{vertical}_{opposite[horizontal]}" if horizontal else crop
        np.testing.assert_array_equal(turned[other, not mirrored], picture)


def test_spread_samples_have_every_nth_of_evenly_spaced_frames() -> None:
    views = protocol_views(
        Protocol(name="spread", times=2, snippets=3, spread=True),
        60,
        64,
        80,
        sampling_config=SamplingConfig(),
        transform_config=TransformConfig(crop_px=32),
    )
    # Midpoints of six parts of ten frames: 5, 15, 25, 35, 45, 55.
    assert [view.times.tolist() for view in views] == [[5, 25, 45], [15, 35, 55]]
