"""DataLoader for a plain PyTorch training loop: each iteration is an epoch of normalised tensors; needs no Ray cluster.

Samples equal those of `SnippetLoader` in distributed training: random draws are a function of (seed, epoch, clip id),
so a custom loop and `train` see the same crops.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from twostream_ray.data.loading.decode_choice import choose_decode_at
from twostream_ray.data.loading.device import on_device
from twostream_ray.data.loading.lanes import Pass
from twostream_ray.data.loading.pipeline import SnippetLoader
from twostream_ray.data.loading.settings import DataConfig
from twostream_ray.data.shards.shards import ShardSet
from twostream_ray.errors import ConfigError


@dataclass(frozen=True, kw_only=True, slots=True)
class TensorBatch:
    """A batch of normalised network inputs on the loader's device."""

    rgb: Tensor | None
    """(B, T, 3, H, W) float32, normalised by ImageNet's mean and standard deviation; None if not requested."""

    flow: Tensor | None
    """(B, T, 2L, H, W) float32, x1 y1 x2 y2 ...: 0 for no motion, 1 for 57.6 of the flow contract's 256 levels; None if
    not requested."""

    labels: Tensor
    """(B,) int64: indices into the shard set's `classes`."""

    clip_ids: tuple[str, ...]
    """The clip id of each sample, B of them."""


class TensorLoader:
    """Batches of a split; every iteration is one epoch with new random draws (see `set_epoch`).

    In training, clips are shuffled and each is one sample with a random view. Otherwise clips come in index order, each
    as `data.sampling.test_times` consecutive samples of evenly spaced views, whose scores are to be averaged by
    `clip_ids`.
    """

    def __init__(
        self,
        shard_set: ShardSet,
        *,
        config: DataConfig,
        split: str,
        batch: int,
        device: torch.device,
        seed: int = 0,
        training: bool,
        want_rgb: bool = True,
        want_flow: bool = True,
    ) -> None:
        """Prepare the loader; reading starts with iteration.

        Args:
            shard_set: the shards to read.
            config: data settings; if its lanes do not divide the batch, their greatest common divisor is used instead.
            split: name of the split.
            batch: clips per batch, at least 1.
            device: where the tensors are created.
            seed: of order and views.
            training: whether to shuffle and draw random views.
            want_rgb: whether to return RGB frames.
            want_flow: whether to return flow.

        Raises:
            ConfigError: batch is less than 1, no stream is requested, or CUDA is not available.
            ShardError: the set has no such split.
        """
        if batch < 1:
            raise ConfigError(f"batch must be at least 1 clip, got {batch}")
        if not (want_rgb or want_flow):
            raise ConfigError("at least one of want_rgb and want_flow must be True")
        if device.type == "cuda" and not torch.cuda.is_available():
            raise ConfigError(f"device {device} requested, but torch sees no GPU: use cpu")
        num_clips = len(shard_set.split(split))
        choice = choose_decode_at(config, device, want_flow=want_flow)
        self._config = replace(config, decode_at=choice.at, lanes=math.gcd(config.lanes, batch))
        longest_lane = -(-num_clips // self._config.lanes)
        self._num_batches = -(-longest_lane // (batch // self._config.lanes))
        self._shard_set, self._split, self._batch, self._device = shard_set, split, batch, device
        self._seed, self._training, self._epoch = seed, training, 0
        self._want = {"want_rgb": want_rgb, "want_flow": want_flow}

    @property
    def classes(self) -> tuple[str, ...]:
        """The K class names; labels are indices into them."""
        return self._shard_set.classes

    def set_epoch(self, epoch: int) -> None:
        """Set the epoch, from 0, of the next iteration: to resume, or to repeat an epoch.

        Raises:
            ConfigError: the epoch is negative.
        """
        if epoch < 0:
            raise ConfigError(f"an epoch must be at least 0, got {epoch}")
        self._epoch = epoch

    def __len__(self) -> int:
        """Number of batches per epoch."""
        return self._num_batches

    def __iter__(self) -> Iterator[TensorBatch]:
        """The batches of the next epoch.

        Raises:
            ShardError: a shard is missing, damaged or not the one in the manifest.
            DecodeError: a clip is damaged; names it with shard and row.
        """
        epoch, self._epoch = self._epoch, self._epoch + 1
        return self._batches(Pass(split=self._split, epoch=epoch, training=self._training))

    def _batches(self, a_pass: Pass) -> Iterator[TensorBatch]:
        loader = SnippetLoader(
            self._shard_set,
            config=self._config,
            passes=[a_pass],
            global_batch=self._batch,
            seed=self._seed,
            through_ray=False,
            **self._want,
        )
        # Leaving an epoch early stops its threads and processes at once.
        with closing(iter(loader)) as passes:
            for _, batches in passes:
                for batch in on_device(batches, self._device):
                    rgb, flow = batch.streams()
                    names = tuple(self._shard_set.clip_ids(batch.clips))
                    yield TensorBatch(rgb=rgb, flow=flow, labels=batch.labels, clip_ids=names)
