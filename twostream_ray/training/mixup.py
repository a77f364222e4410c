"""Mixup: training on convex combinations of two samples and of their labels (Zhang et al. 2018, eq. 1).

A sample x with label y becomes share x + (1 - share) x', its loss share loss(y) + (1 - share) loss(y'), with another
sample x' of label y' and share drawn from Beta(alpha, alpha). RGB and flow of a sample have the same partner and share:
one draw for both streams. Pixels are combined in levels, which is the same as combining what networks take, as
normalising is affine.

A sample's partner is one of the clips that its own lane has in the same step. A worker serves whole lanes, and what a
lane has in a step does not depend on the number of workers (`data.loading.lanes`): so neither do partners, although no
worker ever sees another's samples. Partner and share are drawn from (seed, epoch, clip id).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from twostream_ray.data.loading.device import DeviceBatch
from twostream_ray.data.sampling import clip_rng

ClipIds = Callable[[NDArray[np.int64]], list[str]]
"""Positions in a shard set's index -> clip ids."""


def positions_as_ids(positions: NDArray[np.int64]) -> list[str]:
    """The positions themselves as ids, for batches that do not come from a shard set."""
    return [str(position) for position in positions.tolist()]


@dataclass(frozen=True, kw_only=True, slots=True)
class WeightedLabels:
    """One label per sample, and its weight in the loss."""

    labels: Tensor
    """(N,), class indices."""
    weights: Tensor
    """(N,), at least 0; the weights of a sample's labels add up to the sample's weight."""


def own_labels(batch: DeviceBatch, cut: slice) -> tuple[DeviceBatch, tuple[WeightedLabels, ...]]:
    """A slice of the samples, unmixed, each with its own label at full weight."""
    part = batch.cut(cut)
    return part, (WeightedLabels(labels=part.labels, weights=part.weights),)


@dataclass(frozen=True, kw_only=True, slots=True)
class Mixture:
    """A batch with mixup partners and shares."""

    batch: DeviceBatch
    """The unmixed samples."""
    partners: Tensor
    """(N,), index of each sample's partner in the batch."""
    shares: Tensor
    """(N,), each sample's own share in [0, 1], float32; its partner has the rest."""

    def part(self, cut: slice) -> tuple[DeviceBatch, tuple[WeightedLabels, ...]]:
        """A slice of the samples, mixed (float32 levels), with both labels of each."""
        part, partners, shares = self.batch.cut(cut), self.partners[cut], self.shares[cut]
        mixed = replace(
            part,
            rgb=_combined(self.batch.rgb, cut, partners=partners, shares=shares),
            flow=_combined(self.batch.flow, cut, partners=partners, shares=shares),
        )
        return mixed, (
            WeightedLabels(labels=part.labels, weights=part.weights * shares),
            WeightedLabels(labels=self.batch.labels[partners], weights=part.weights * (1 - shares)),
        )


def draw_mixture(
    batch: DeviceBatch, *, alpha: float, seed: int, epoch: int, clip_ids: ClipIds = positions_as_ids
) -> Mixture:
    """Draw a mixup partner and share for every sample of a batch; padding is never a partner.

    Args:
        batch: without `lanes` it counts as one lane.
        alpha: of Beta(alpha, alpha), above 0: small values draw shares near 0 and 1, 1 draws them uniformly.
        seed: fixes the draws, with epoch and clip.
        epoch: from 0.
        clip_ids: the clips at positions of the index, by what their draws are made.
    """
    lanes = np.zeros(len(batch.clips), np.int64) if batch.lanes is None else batch.lanes
    drawn_partners, drawn_shares = partners_in_lanes(
        clip_ids(batch.clips), lanes=lanes, alpha=alpha, seed=seed, epoch=epoch
    )
    # A blocking copy would wait for the previous step to finish.
    device = batch.labels.device
    partners = torch.from_numpy(drawn_partners).to(device, non_blocking=True)
    shares = torch.from_numpy(drawn_shares).to(device, non_blocking=True)
    return Mixture(
        batch=batch, partners=partners, shares=torch.where(batch.weights[partners] > 0, shares, torch.ones_like(shares))
    )


def partners_in_lanes(
    clip_ids: list[str], *, lanes: NDArray[np.int64], alpha: float, seed: int, epoch: int
) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """Draw each sample's partner and own share; the only clip of its lane in a step stays unmixed.

    Args:
        clip_ids: of N samples, those of a lane in the lane's order.
        lanes: (N,), the lane that each is from.
        alpha: of Beta(alpha, alpha), above 0.
        seed: fixes the draws, with epoch and clip.
        epoch: from 0.

    Returns:
        Indices (N,) in [0, N), never a sample's own where it has a choice, and shares (N,) in [0, 1].
    """
    partners, shares = np.arange(len(clip_ids)), np.ones(len(clip_ids), np.float32)
    for lane in np.unique(lanes):
        members = np.flatnonzero(lanes == lane)
        if len(members) == 1:
            continue
        for position, sample in enumerate(members.tolist()):
            # Apart from the draws of its view, which would otherwise decide the share.
            rng = clip_rng(seed=seed, epoch=epoch, clip_id=f"mixup/{clip_ids[sample]}")
            shares[sample] = rng.beta(alpha, alpha)
            partners[sample] = members[(position + 1 + rng.integers(len(members) - 1)) % len(members)]
    return partners, shares


def _combined(levels: Tensor | None, cut: slice, *, partners: Tensor, shares: Tensor) -> Tensor | None:
    """One stream of the samples in `cut` with their partners': (n, T, C, H, W) float32."""
    if levels is None:
        return None
    others = levels[partners].float()
    return levels[cut].float().lerp_(others, (1 - shares)[:, None, None, None, None])
