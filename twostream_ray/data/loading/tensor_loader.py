"""DataLoader for a plain PyTorch loop: an epoch of normalised tensors an iteration, without a Ray cluster.

The samples are those of `SnippetLoader`, which distributed training reads: a draw is a function of (seed, epoch, clip
id), so a loop of one's own and `train` see the same pictures.
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
    """Samples side by side on the loader's device, as networks take them."""

    rgb: Tensor | None
    """(B, T, 3, H, W) float32: levels less ImageNet's mean over its deviation; None where it is not wanted."""

    flow: Tensor | None
    """(B, T, 2L, H, W) float32, x1 y1 x2 y2 ...: 0 where nothing moves, 1 for 57.6 levels of the flow contract's
    256; None where it is not wanted."""

    labels: Tensor
    """(B,) int64: indices into the shard set's `classes`."""

    clip_ids: tuple[str, ...]
    """The clip that each sample shows, B of them."""


class TensorLoader:
    """Batches of a split; every iteration is an epoch, and the next one draws anew, as `set_epoch` says.

    In training a clip is one sample, its view drawn anew each epoch, in an order that is shuffled. Otherwise clips
    come in order, each with its `data.sampling.test_times` evenly spaced views, one after the other: their scores are
    to be averaged over `clip_ids`.
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
        """`batch` counts clips; of `config` the samples, lanes, decoding and caches are read.

        Where `config.lanes` does not divide the batch their greatest common divisor is taken for it.

        Raises:
            ConfigError: batch is less than 1, no stream is wanted, or CUDA is and there is none.
            ShardError: the set has no such split.
        """
        if batch < 1:
            raise ConfigError(f"batch must be at least 1 clip, got {batch}")
        if not (want_rgb or want_flow):
            raise ConfigError("a stream is wanted: leave want_rgb or want_flow out")
        if device.type == "cuda" and not torch.cuda.is_available():
            raise ConfigError(f"device {device} was wanted, torch sees no GPU here: use cpu")
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
        """Class names by label."""
        return self._shard_set.classes

    def set_epoch(self, epoch: int) -> None:
        """Make the next iteration that of this epoch, from 0: to resume, or to draw an epoch again."""
        if epoch < 0:
            raise ConfigError(f"an epoch must be at least 0, got {epoch}")
        self._epoch = epoch

    def __len__(self) -> int:
        """Batches of an epoch."""
        return self._num_batches

    def __iter__(self) -> Iterator[TensorBatch]:
        """The batches of the next epoch.

        Raises:
            ShardError: a shard is missing, damaged or another one.
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
        # An epoch that is left early ends its threads and processes at once.
        with closing(iter(loader)) as passes:
            for _, batches in passes:
                for batch in on_device(batches, self._device):
                    rgb, flow = batch.streams()
                    names = tuple(self._shard_set.clip_ids(batch.clips))
                    yield TensorBatch(rgb=rgb, flow=flow, labels=batch.labels, clip_ids=names)
