import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from twostream_ray.data.sampling import (
    SamplingConfig,
    chunk_centres,
    clip_rng,
    evaluation_times,
    field_indices,
    training_times,
)
from twostream_ray.errors import ConfigError, EmptyClipError


def test_chunks_are_a_stride_apart_and_a_short_clip_repeats_its_last_frame() -> None:
    assert chunk_centres(100, num_chunks=4, stride_frames=7, start=3).tolist() == [3, 10, 17, 24]
    assert chunk_centres(10, num_chunks=4, stride_frames=7).tolist() == [0, 7, 9, 9]


def test_a_clip_without_frames_is_refused() -> None:
    with pytest.raises(EmptyClipError, match="at least 1 frame, got 0"):
        chunk_centres(0, num_chunks=1, stride_frames=1)


@given(num_frames=st.integers(1, 400), seed=st.integers(0, 5), snippets=st.integers(1, 8))
def test_training_times_lie_in_the_clip_and_fit_where_they_can(num_frames: int, seed: int, snippets: int) -> None:
    config = SamplingConfig(num_snippets=snippets)
    times = training_times(num_frames, config=config, rng=np.random.default_rng(seed))
    assert times.shape == (snippets,)
    assert times.min() >= 0 and times.max() < num_frames
    if num_frames > config.max_stride_frames * snippets:
        strides = set(np.diff(times).tolist())
        assert len(strides) <= 1 and strides <= set(range(5, 16))


@given(num_frames=st.integers(1, 400), views=st.integers(1, 25))
def test_evaluation_times_are_spread_evenly_over_the_clip(num_frames: int, views: int) -> None:
    config = SamplingConfig(num_snippets=2, test_times=views)
    times = evaluation_times(num_frames, config=config)
    assert times.shape == (views, 2)
    assert times.min() >= 0 and times.max() < num_frames
    gaps = np.diff(times[:, 0])
    assert len(gaps) == 0 or gaps.max() - gaps.min() <= 1


def test_midpoints_that_fall_on_a_frame_are_exact() -> None:
    config = SamplingConfig(num_snippets=2, test_times=23)
    assert evaluation_times(107, config=config)[:, 0].tolist() == list(range(2, 92, 4))


def test_one_test_view_looks_at_the_middle() -> None:
    config = SamplingConfig(num_snippets=1, test_times=1)
    assert evaluation_times(17, config=config).tolist() == [[8]]


def fields(time: int, *, length: int, num_frames: int, stack: str = "centred") -> list[int]:
    config = SamplingConfig(flow_length=length, flow_stack=stack)
    return field_indices(time, config=config, num_frames=num_frames).tolist()


def test_the_stack_is_centred_on_the_frame_and_repeats_the_clips_ends() -> None:
    assert fields(20, length=10, num_frames=100) == list(range(15, 25))
    assert fields(0, length=4, num_frames=100) == [0, 0, 0, 1]
    assert fields(5, length=4, num_frames=6) == [3, 4, 4, 4]


@pytest.mark.parametrize("stack", ["forward", "trajectory"])
def test_forward_stacks_begin_at_the_frame(stack: str) -> None:
    assert fields(20, length=5, num_frames=100, stack=stack) == [20, 21, 22, 23, 24]
    assert fields(97, length=5, num_frames=100, stack=stack) == [97, 98, 98, 98, 98]
    assert fields(3, length=1, num_frames=100, stack=stack) == [3]


def test_a_bidirectional_stack_walks_forward_then_backward_from_the_frame() -> None:
    assert fields(20, length=6, num_frames=100, stack="bidirectional") == [20, 21, 22, 19, 18, 17]
    assert fields(0, length=4, num_frames=100, stack="bidirectional") == [0, 1, 0, 0]


def test_draws_depend_on_seed_epoch_and_clip_and_on_nothing_else() -> None:
    def draw(seed: int, epoch: int, clip_id: str) -> float:
        return float(clip_rng(seed=seed, epoch=epoch, clip_id=clip_id).random())

    assert draw(0, 1, "a") == draw(0, 1, "a")
    assert len({draw(0, 1, "a"), draw(1, 1, "a"), draw(0, 2, "a"), draw(0, 1, "b")}) == 4


def test_impossible_settings_are_refused_by_name() -> None:
    with pytest.raises(ConfigError, match="min_stride_frames must be at most max_stride_frames, got 9 and 3"):
        SamplingConfig(min_stride_frames=9, max_stride_frames=3)
    for stack in ("centred", "bidirectional"):
        with pytest.raises(ConfigError, match=f"flow_length must be even for flow_stack {stack}"):
            SamplingConfig(flow_length=5, flow_stack=stack)
    with pytest.raises(ConfigError, match="flow_length must be at least 1, got 0"):
        SamplingConfig(flow_length=0, flow_stack="forward")
    with pytest.raises(ConfigError, match="one of centred, forward, bidirectional, trajectory, got 'backward'"):
        SamplingConfig(flow_stack="backward")
