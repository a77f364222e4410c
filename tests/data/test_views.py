import numpy as np

from twostream_ray.data.sampling import SamplingConfig
from twostream_ray.data.transforms import TransformConfig
from twostream_ray.data.views import evaluation_views, training_view


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
