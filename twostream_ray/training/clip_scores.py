"""Video-level scores: the mean of a clip's views' scores, and top-1 over clips (Simonyan and Zisserman 2014, sec. 5).

Each clip counts once, even if several workers scored its views.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from numpy.typing import NDArray
from torch import Tensor

from twostream_ray.evaluation.metrics import own_head_first, top_k_hits


@dataclass(kw_only=True, slots=True)
class _Views:
    """Accumulated scores of a clip's views."""

    label: int
    sums: NDArray[np.float64]
    """(S, K)."""
    count: int


@dataclass(frozen=True, kw_only=True, slots=True)
class ClipAccuracy:
    """Top-1 over the clips of a split, over all workers."""

    clips: int
    """Clips that were scored, each once."""
    hits: Mapping[str, int]
    """Tower or network -> clips whose class had the highest mean score within its own data set."""

    def top1(self, name: str) -> float:
        """Fraction of the clips, in [0, 1]."""
        return self.hits.get(name, 0) / max(self.clips, 1)


@dataclass(kw_only=True, slots=True)
class ClipScores:
    """Sums of views' scores by clip, of the network and of each of its towers."""

    head_classes: Sequence[int]
    """K_i of each data set; they add up to K."""
    names: tuple[str, ...] = ()
    """The S towers and the network, in the order of the first batch."""
    views: dict[int, _Views] = field(default_factory=dict)
    """By the clip's position in the index."""

    def add(self, scores: Mapping[str, Tensor], *, clips: Sequence[int], labels: Tensor, weights: Tensor) -> None:
        """Add a batch of views: scores (N, K) by name, labels (N,), weights (N,), 0 for padding."""
        self.names = tuple(scores)
        stacked = torch.stack(list(scores.values()), dim=1).cpu().numpy().astype(np.float64)
        for clip, label, weight, of_view in zip(clips, labels.tolist(), weights.tolist(), stacked, strict=True):
            if weight:
                of_clip = self.views.setdefault(
                    int(clip), _Views(label=int(label), sums=np.zeros_like(of_view), count=0)
                )
                of_clip.sums += of_view
                of_clip.count += 1

    def gather(self) -> None:
        """Merge clips whose views several workers scored on the first of them; collective, call on all workers."""
        if not (dist.is_initialized() and dist.get_world_size() > 1):
            return
        clips, workers = np.unique(np.concatenate(_from_all(np.array([*self.views], np.int64))), return_counts=True)
        shared = clips[workers > 1].tolist()
        if not shared:
            return
        parts = _from_all({clip: self.views.pop(clip) for clip in shared if clip in self.views})
        for clip in shared:
            first, *others = [rank for rank, part in enumerate(parts) if clip in part]
            if first == dist.get_rank():
                merged = parts[first][clip]
                for rank in others:
                    merged.sums += parts[rank][clip].sums
                    merged.count += parts[rank][clip].count
                self.views[clip] = merged

    def means(self, name: str) -> dict[int, NDArray[np.float32]]:
        """This worker's clips -> mean score (K,) of their views."""
        return {clip: self._mean(of_clip)[self.names.index(name)] for clip, of_clip in self.views.items()}

    @staticmethod
    def _mean(of_clip: _Views) -> NDArray[np.float32]:
        # Sums of 64 bits: rounded to 32 they do not depend on the order of the views.
        return (of_clip.sums / of_clip.count).astype(np.float32)

    def accuracy(self, device: torch.device) -> ClipAccuracy:
        """Top-1 over the clips of all workers; collective, call on all. Non-finite scores count as wrong."""
        counts = [len(self.views)] + [0] * len(self.names)
        if self.views:
            labels = np.array([of_clip.label for of_clip in self.views.values()])
            means = np.stack([self._mean(of_clip) for of_clip in self.views.values()])
            for position in range(len(self.names)):
                scores = means[:, position]
                finite = np.isfinite(scores).all(axis=1)
                if finite.any():
                    ranked = own_head_first(scores[finite], labels[finite], head_classes=self.head_classes)
                    counts[1 + position] = int(top_k_hits(ranked, labels[finite], k=1).sum())
        totals = torch.tensor(counts, dtype=torch.int64, device=device)
        if dist.is_initialized() and dist.get_world_size() > 1:
            dist.all_reduce(totals)
        clips, *hits = totals.tolist()
        return ClipAccuracy(clips=clips, hits=dict(zip(self.names, hits, strict=True)))


def _from_all(value: Any) -> list[Any]:
    """Every worker's value, in the order of ranks."""
    gathered: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(gathered, value)
    return gathered
