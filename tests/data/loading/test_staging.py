from dataclasses import dataclass, field

import numpy as np
import pytest
import torch

from twostream_ray.data.loading.staging import StagingBuffers

CPU = torch.device("cpu")


@dataclass
class Copies:
    """A device whose copies end when they are waited for."""

    log: list[str] = field(default_factory=list)
    events: int = 0

    def event(self) -> "Copies._Event":
        self.events += 1
        return Copies._Event(self, self.events)

    @dataclass
    class _Event:
        copies: "Copies"
        number: int

        def record(self) -> None:
            self.copies.log.append(f"copied {self.number}")

        def synchronize(self) -> None:
            self.copies.log.append(f"waited for {self.number}")


def staging(copies: Copies | None = None) -> StagingBuffers:
    copies = copies or Copies()
    return StagingBuffers(allocate=lambda size: torch.empty(size, dtype=torch.uint8), event=copies.event)


def test_steps_without_end_need_two_buffers_an_array() -> None:
    buffers = staging()
    for step in range(50):
        samples = 3 if step % 10 == 9 else 8
        levels = np.full((samples, 5, 4, 4), step, np.uint8)
        labels = np.arange(samples) + step
        assert torch.equal(buffers.to(CPU, name="rgb", array=levels), torch.from_numpy(levels))
        assert torch.equal(buffers.to(CPU, name="labels", array=labels), torch.from_numpy(labels))
        if step == 1:
            assert buffers.allocations == 4
    assert buffers.allocations == 4


def test_a_larger_batch_replaces_its_buffers_once() -> None:
    buffers = staging()
    for samples in (4, 4, 4, 16, 16, 16, 4, 16, 1, 16):
        buffers.to(CPU, name="rgb", array=np.zeros((samples, 10), np.uint8))
    assert buffers.allocations == 4


def test_a_buffer_is_filled_again_only_after_the_copy_out_of_it() -> None:
    copies = Copies()
    buffers = staging(copies)
    for _ in range(4):
        buffers.to(CPU, name="rgb", array=np.zeros(10, np.uint8))
    assert copies.log == ["copied 1", "copied 2", "waited for 1", "copied 1", "waited for 2", "copied 2"]


@pytest.mark.parametrize(
    "array",
    [
        np.arange(6, dtype=np.int64),
        np.linspace(0, 1, 5, dtype=np.float32),
        np.zeros((0, 3), np.uint8),
        np.arange(24, dtype=np.uint8).reshape(2, 3, 4)[:, ::2],
    ],
)
def test_every_kind_of_array_arrives_whole(array: np.ndarray) -> None:
    arrived = staging().to(CPU, name="x", array=array)
    np.testing.assert_array_equal(arrived.numpy(), array)
    assert arrived.numpy().dtype == array.dtype


def test_what_has_arrived_is_not_the_buffer() -> None:
    buffers = staging()
    first = buffers.to(CPU, name="rgb", array=np.full(4, 1, np.uint8))
    for _ in range(3):
        buffers.to(CPU, name="rgb", array=np.full(4, 9, np.uint8))
    assert first.tolist() == [1] * 4
