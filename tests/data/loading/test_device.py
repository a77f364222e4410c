import threading
import time
from collections.abc import Iterator

import numpy as np
import pytest
import torch
from encoded_flow_batches import batch_of, decoded_by_cpu, noise

from twostream_ray.data.loading.device import normalise_flow, normalise_rgb, on_device, prefetch_one, to_device
from twostream_ray.data.snippets import Batch, EncodedFlow

CPU = torch.device("cpu")


def batch(samples: int, *, encoded: EncodedFlow | None = None) -> Batch:
    rng = np.random.default_rng(samples)
    return Batch(
        rgb=rng.integers(0, 256, (samples, 2, 3, 24, 24), np.uint8),
        flow=None if encoded else rng.integers(0, 256, (samples, 2, 8, 24, 24), np.uint8),
        labels=rng.integers(0, 5, samples),
        weights=np.ones(samples, np.float32),
        clips=np.arange(samples),
        total=float(samples),
        decoded=samples,
        encoded_flow=encoded,
    )


def test_a_batch_arrives_as_it_is() -> None:
    sent = batch(3)
    (arrived,) = on_device(iter([sent]), CPU)
    for name in ("rgb", "flow", "labels", "weights"):
        np.testing.assert_array_equal(getattr(arrived, name).numpy(), getattr(sent, name))
    assert (arrived.clips.tolist(), arrived.total, arrived.decoded) == ([0, 1, 2], 3.0, 3)


def test_encoded_flow_is_decoded_on_the_way() -> None:
    encoded = batch_of(noise(), noise(12, 50, 32), views=2)
    arrived = to_device(batch(4, encoded=encoded), CPU)
    assert arrived.flow is not None
    np.testing.assert_array_equal(arrived.flow.numpy(), decoded_by_cpu(encoded))
    assert [part.flow.shape[0] for part in arrived.parts(2) if part.flow is not None] == [2, 2]


def test_one_is_made_while_the_one_before_it_is_used_and_no_more() -> None:
    made: list[int] = []

    def make() -> int | None:
        made.append(len(made) + 1)
        return made[-1] if made[-1] < 5 else None

    for number in prefetch_one(make):
        time.sleep(0.05)
        assert made == list(range(1, number + 2))
    assert made == [1, 2, 3, 4, 5]


def test_an_error_ahead_is_raised_when_its_turn_comes() -> None:
    def make() -> Iterator[int]:
        yield 1
        raise ValueError("damaged")

    numbers = make()
    stream = prefetch_one(lambda: next(numbers, None))
    assert next(stream) == 1
    with pytest.raises(ValueError, match="damaged"):
        next(stream)


def test_a_pass_that_is_broken_off_leaves_no_thread_behind() -> None:
    before = threading.active_count()
    stream = prefetch_one(lambda: 1)
    next(stream)
    stream.close()  # type: ignore[attr-defined]
    assert threading.active_count() == before


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU here")
def test_a_gpu_gets_the_samples_that_the_cpu_gets() -> None:
    encoded = batch_of(noise(), noise(12, 50, 32), views=2)
    sent = [batch(4, encoded=encoded), batch(3), batch(2)]
    gpu = list(on_device(iter(sent), torch.device("cuda", 0)))
    cpu = list(on_device(iter(sent), CPU))
    for one, other in zip(gpu, cpu, strict=True):
        for name in ("rgb", "flow", "labels", "weights"):
            assert torch.equal(getattr(one, name).cpu(), getattr(other, name)), name


def test_no_motion_becomes_zero_and_mean_colour_nearly_so() -> None:
    assert normalise_flow(torch.full((1, 2, 4, 4), 128, dtype=torch.uint8)).abs().max() == 0
    grey = torch.tensor([124, 116, 104], dtype=torch.uint8)[:, None, None].expand(3, 4, 4)
    assert normalise_rgb(grey).abs().max() < 0.02
