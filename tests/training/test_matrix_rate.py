import time

import torch

from twostream_ray.training.matrix_rate import matrix_rate


def test_the_matrix_rate_is_found_in_a_fraction_of_a_second_and_is_that_of_this_machine() -> None:
    started = time.perf_counter()
    rate = matrix_rate(torch.device("cpu"), precision="float32")
    assert time.perf_counter() - started < 3
    assert 1e9 < rate < 1e14
