import mmap
import os

import numpy as np
import pytest

from twostream_ray.data.loading.shared_memory import SharedMemory, SharedMemoryView


def test_what_one_side_writes_the_other_reads() -> None:
    memory = SharedMemory()
    first, second = memory.allocate(1000), memory.allocate(5_000_000)
    part = second[4096:4100].reshape(2, 2)
    part[...] = [[1, 2], [3, 4]]
    theirs = SharedMemoryView(memory.fd)
    np.testing.assert_array_equal(theirs.array(memory.locate(part)), [[1, 2], [3, 4]])
    theirs.array(memory.locate(first)).fill(7)
    assert (first == 7).all()
    assert not second[:4096].any(), "pieces do not overlap"


def test_an_array_that_is_elsewhere_or_in_pieces_is_refused() -> None:
    memory = SharedMemory()
    piece = memory.allocate(64)
    with pytest.raises(ValueError, match="in shared memory"):
        memory.locate(np.zeros(4, np.uint8))
    with pytest.raises(ValueError, match="contiguous"):
        memory.locate(piece[::2])


@pytest.mark.skipif(not hasattr(mmap, "MADV_REMOVE"), reason="the system has no MADV_REMOVE")
def test_freed_pieces_take_no_memory() -> None:
    memory = SharedMemory()

    def taken() -> int:
        return os.fstat(memory.fd).st_blocks * 512

    for _ in range(3):
        piece = memory.allocate(5_000_000)
        piece.fill(1)
        assert taken() >= 5_000_000
        memory.free(piece)
        del piece
        assert taken() == 0
