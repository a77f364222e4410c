"""Exponential moving average (EMA) of a network's weights (Polyak and Juditsky 1992), for evaluation in their place.

Not `torch.optim.swa_utils.AveragedModel`: its first update copies the weights where ours averages with the initial
ones, `get_ema_multi_avg_fn` has one decay for all steps where ours is smaller at first, so a resumed run would get
other numbers; and it holds a second copy of the whole network, frozen towers included.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor

from twostream_ray.models.build import Network


class WeightEma:
    """Averages of the trainable weights, on the network's device; batch norm's moments are averages already."""

    def __init__(self, network: Network, *, decay: float) -> None:
        """`decay` per step, in (0, 1)."""
        self._decay = decay
        self._weights = {name: weight for name, weight in network.named_parameters() if weight.requires_grad}
        self._average = {name: weight.detach().clone() for name, weight in self._weights.items()}

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Update the average after a step; the decay is smaller in early steps, to forget the initial weights."""
        decay = min(self._decay, (1 + step) / (10 + step))
        torch._foreach_lerp_(list(self._average.values()), list(self._weights.values()), 1 - decay)

    @torch.no_grad()
    def load(self, stored: Mapping[str, Tensor]) -> None:
        """Load averaged weights by name."""
        for name, average in self._average.items():
            average.copy_(stored[name])

    @contextmanager
    def in_place(self) -> Iterator[None]:
        """Swap the averaged weights into the network for the duration of the block."""
        self._swap()
        try:
            yield
        finally:
            self._swap()

    @torch.no_grad()
    def _swap(self) -> None:
        for name, weight in self._weights.items():
            kept = weight.detach().clone()
            weight.copy_(self._average[name])
            self._average[name].copy_(kept)
