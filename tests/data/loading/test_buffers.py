import pickle

import numpy as np
import pytest
import torch

from twostream_ray.data.loading.buffers import Buffers, SampleBuffers
from twostream_ray.data.loading.settings import DataConfig
from twostream_ray.data.sampling import SamplingConfig
from twostream_ray.data.transforms import TransformConfig


def address(array: np.ndarray) -> int:
    return int(array.__array_interface__["data"][0])


def test_memory_that_nobody_holds_is_used_again() -> None:
    buffers = Buffers()
    first = buffers.allocate((8, 3, 16, 16))
    assert first.shape == (8, 3, 16, 16) and first.dtype == np.uint8 and first.flags.writeable
    where = address(first)
    del first
    assert address(buffers.allocate((8, 3, 16, 16))) == where
    assert address(buffers.allocate((5, 3, 16, 16))) == where, "also for somewhat less"


@pytest.mark.parametrize(
    "hold",
    [lambda array: array[2:3], lambda array: array[4, :, ::2], torch.from_numpy, memoryview, lambda array: [array]],
)
def test_memory_that_somebody_holds_in_any_form_stays_theirs(hold: object) -> None:
    buffers = Buffers()
    array = buffers.allocate((8, 3, 16, 16))
    array.fill(7)
    held = hold(array)  # type: ignore[operator]
    del array
    for _ in range(3):
        buffers.allocate((8, 3, 16, 16)).fill(9)
    assert (np.asarray(held) == 7).all()


def test_pieces_of_another_kind_of_pass_are_given_back() -> None:
    buffers = Buffers()
    for samples in (4, 64, 4):
        del_me = [buffers.allocate((samples, 100)) for _ in range(3)]
        del del_me
    buffers.allocate((4, 100))
    assert [piece.nbytes for piece in buffers._free] == [400] * 3


def test_buffers_travel_empty() -> None:
    buffers = Buffers()
    buffers.allocate((1 << 20,))
    assert len(pickle.dumps(buffers)) < 100


def test_room_for_nothing_is_empty() -> None:
    assert Buffers().allocate((0, 5)).shape == (0, 5)


def test_a_stream_that_is_not_wanted_gets_no_memory() -> None:
    config = DataConfig(shards="x", sampling=SamplingConfig(num_snippets=2), transforms=TransformConfig(crop_px=16))
    rgb, flow = SampleBuffers(config, want_rgb=True, want_flow=False).streams(3)
    assert rgb is not None and rgb.shape == (3, 2, 3, 16, 16) and flow is None
    rgb, flow = SampleBuffers(config, want_rgb=False, want_flow=True).streams(3)
    assert rgb is None and flow is not None and flow.shape == (3, 2, 20, 16, 16)
