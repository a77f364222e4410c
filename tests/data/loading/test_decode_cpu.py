from dataclasses import replace

import numpy as np
import pytest
from moving_square import moving_square

from twostream_ray.data import snippets
from twostream_ray.data.encoded_clip import EncodedClip
from twostream_ray.data.flow import FlowContract
from twostream_ray.data.loading.decode_cpu import decode_flow, decode_rgb, decode_sample
from twostream_ray.data.sampling import SamplingConfig
from twostream_ray.data.transforms import Crop
from twostream_ray.data.video.clips import fetch_frames
from twostream_ray.data.video.prepare import prepare_clip
from twostream_ray.data.views import View
from twostream_ray.errors import DecodeError

CONTRACT = FlowContract(short_side_px=64)
STACK = SamplingConfig(flow_length=2)
VIEW = View(times=np.array([9, 4, 9]), crop=Crop(top=0, left=0, height=64, width=64, mirrored=False), size=(64, 64))


@pytest.fixture(scope="module")
def clip() -> EncodedClip:
    return prepare_clip(moving_square(12), CONTRACT, name="square")


def test_a_sample_is_both_streams_of_one_view(clip: EncodedClip) -> None:
    rgb, flow = decode_sample(clip, VIEW, config=STACK, contract=CONTRACT)
    assert clip.video is not None and rgb is not None
    frames = fetch_frames(clip.video, [9, 4, 9], num_frames=12)
    np.testing.assert_array_equal(rgb, frames[:, :, :64].transpose(0, 3, 1, 2))
    expected = snippets.flow_snippets(clip, VIEW, config=STACK, contract=CONTRACT)
    np.testing.assert_array_equal(flow, expected)


@pytest.mark.parametrize("want", ["rgb", "flow"])
def test_a_stream_that_is_not_wanted_is_not_decoded(clip: EncodedClip, want: str) -> None:
    rgb, flow = decode_sample(
        replace(clip, **{"flow" if want == "rgb" else "video": None}),
        replace(VIEW, size=(32, 32)),
        config=STACK,
        contract=CONTRACT,
        want_rgb=want == "rgb",
        want_flow=want == "flow",
    )
    assert (rgb is None, flow is None) == (want == "flow", want == "rgb")


def test_a_stream_that_was_not_read_is_named(clip: EncodedClip) -> None:
    with pytest.raises(DecodeError, match="without its video column"):
        decode_rgb(replace(clip, video=None), VIEW)
    with pytest.raises(DecodeError, match="without its flow column"):
        decode_flow(replace(clip, flow=None), VIEW, config=STACK, contract=CONTRACT)
