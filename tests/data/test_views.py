import numpy as np
import pytest

from twostream_ray.data.protocols import PROTOCOLS
from twostream_ray.data.sampling import SamplingConfig
from twostream_ray.data.transforms import TransformConfig
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
