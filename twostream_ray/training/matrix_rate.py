"""Matrix multiplication benchmark: a device's FLOP/s on large matrix products, an upper bound for training steps."""

from __future__ import annotations

import time

import torch

from twostream_ray.training.settings import Precision

_SIZE = {"cuda": 8192, "cpu": 512}
_SECONDS = 0.1
_AT_LEAST = 4


def matrix_rate(device: torch.device, *, precision: Precision) -> float:
    """FLOP/s of large matrix products, a multiply and an add counted as two, with torch's present number of threads.

    The fastest product within about 0.1 s, as the device may be shared.
    """
    size = _SIZE.get(device.type, _SIZE["cpu"])
    dtype = torch.bfloat16 if precision == "bfloat16" else torch.float32
    left, right = (torch.randn(size, size, device=device, dtype=dtype) for _ in range(2))
    made = left @ right  # kernels are loaded
    fastest, ends, products = float("inf"), time.perf_counter() + _SECONDS, 0
    while products < _AT_LEAST or time.perf_counter() < ends:
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        started = time.perf_counter()
        torch.matmul(left, right, out=made)
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        fastest = min(fastest, time.perf_counter() - started)
        products += 1
    return 2 * size**3 / fastest
