"""Training step: forward, backward, gradient reduction over workers, optimiser update."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from twostream_ray.data.loading.device import DeviceBatch
from twostream_ray.training.distributed import resolved, unwrapped
from twostream_ray.training.ema import WeightEma
from twostream_ray.training.mixup import ClipIds, WeightedLabels, draw_mixture, own_labels, positions_as_ids
from twostream_ray.training.recipe import (
    learning_rate_at,
    right_answers,
    scores_by_tower,
    set_learning_rate,
    total_loss,
    tower_losses,
    within_own_head,
)
from twostream_ray.training.settings import Precision, TrainingConfig


@dataclass(frozen=True, kw_only=True, slots=True)
class StepOutcome:
    """The result of a step on this worker."""

    loss: Tensor
    """Scalar: this worker's contribution to the mean loss over the global batch."""
    losses: Mapping[str, Tensor]
    """Summed losses by tower."""
    scores: Mapping[str, Tensor]
    """(N, K) class scores of the network and of each tower, as `scores_by_tower` says, within each sample's own data
    set."""
    hits: Mapping[str, Tensor]
    """Correct predictions by the same names, scalars: each label of a sample counts with its weight."""
    skipped: bool
    """Whether all workers skipped the update because a loss or gradient was not finite."""


class TrainingStep:
    """A training step of a network with its optimiser; call it with a batch."""

    def __init__(
        self,
        model: nn.Module,
        optimiser: torch.optim.Optimizer,
        *,
        config: TrainingConfig,
        seed: int,
        device: torch.device,
        class_weights: Tensor | None = None,
        average: WeightEma | None = None,
        seconds: dict[str, float] | None = None,
        clip_ids: ClipIds = positions_as_ids,
    ) -> None:
        """`model` is a Network, or DistributedDataParallel around one.

        Args:
            model: the network to train.
            optimiser: from `build_optimiser`.
            config: losses, schedule, precision.
            seed: fixes dropout, with epoch and step.
            device: where the network is.
            class_weights: (K,) weights of classes in the loss.
            average: moving average to update after each step.
            seconds: where given, the time of `forward`, `backward` and `update` is added up in it; on a GPU every
                phase is then waited for.
            clip_ids: the clips at positions of the index, by which what is drawn for them here is drawn.
        """
        self.model, self.device, self.network = model, device, unwrapped(model)
        self._optimiser, self._config, self._seed = optimiser, resolved(config, device), seed
        self.precision: Precision = "bfloat16" if self._config.precision == "bfloat16" else "float32"
        self._class_weights = None if class_weights is None else class_weights.to(device)
        self._average, self._seconds, self._clip_ids = average, seconds, clip_ids

    def __call__(self, batch: DeviceBatch, *, epoch: int, step: int, num_steps: int) -> StepOutcome:
        """Make step number `step` of `num_steps` in the epoch with a batch.

        Gradients are those of the mean loss over the global batch, whatever part of it is on this worker.
        """
        config = self._config
        _seed_dropout(seed=self._seed, epoch=epoch, step=step)
        set_learning_rate(self._optimiser, learning_rate_at(epoch + step / num_steps, config=config))
        self._optimiser.zero_grad(set_to_none=True)
        done = [self._gradients(part, targets, last=last) for part, targets, last in self._parts(batch, epoch=epoch)]
        with self._timed("update"):
            skipped = config.on_nonfinite == "skip" and not self._all_finite(sum(part.loss for part in done))
            if not skipped:
                if config.clip_gradient_norm is not None:
                    nn.utils.clip_grad_norm_(self.model.parameters(), config.clip_gradient_norm)
                self._optimiser.step()
                if self._average is not None:
                    self._average.update(epoch * num_steps + step)
        return StepOutcome(
            loss=torch.stack([part.loss for part in done]).sum(),
            losses={tower: torch.stack([part.losses[tower] for part in done]).sum() for tower in done[0].losses},
            scores={name: torch.cat([part.scores[name] for part in done]) for name in done[0].scores},
            hits={name: torch.stack([part.hits[name] for part in done]).sum() for name in done[0].hits},
            skipped=skipped,
        )

    def _parts(
        self, batch: DeviceBatch, *, epoch: int
    ) -> Iterator[tuple[DeviceBatch, tuple[WeightedLabels, ...], bool]]:
        """The micro-batches, with mixup if set, their labels, and whether each is the last."""
        alpha, cuts = self._config.mixup_alpha, batch.cuts(self._config.micro_batches)
        mixture = None
        if alpha is not None:
            mixture = draw_mixture(batch, alpha=alpha, seed=self._seed, epoch=epoch, clip_ids=self._clip_ids)
        for cut in cuts:
            part, targets = own_labels(batch, cut) if mixture is None else mixture.part(cut)
            yield part, targets, cut is cuts[-1]

    def _gradients(self, batch: DeviceBatch, targets: tuple[WeightedLabels, ...], *, last: bool) -> StepOutcome:
        """Accumulate a micro-batch's gradients; the last one triggers the reduction over workers."""
        model = self.model
        distributed = isinstance(model, DistributedDataParallel)
        with model.no_sync() if isinstance(model, DistributedDataParallel) and not last else nullcontext():
            with self._timed("forward"):
                rgb, flow = batch.streams()
                outputs = logits(self.model, rgb, flow, device=self.device, precision=self.precision)
                losses = self._losses(outputs, targets)
                # DistributedDataParallel averages gradients over workers; the global batch needs their sum.
                loss = total_loss(losses, config=self._config) / batch.total
            with self._timed("backward"):
                (loss * (dist.get_world_size() if distributed else 1)).backward()
        scores = scores_by_tower(self.network, {tower: values.detach() for tower, values in outputs.items()})
        by_target = [self._within_own_head(scores, target.labels) for target in targets]
        hits = {
            name: torch.stack(
                [
                    right_answers(of_target[name], target.labels, weights=target.weights)
                    for of_target, target in zip(by_target, targets, strict=True)
                ]
            ).sum()
            for name in scores
        }
        return StepOutcome(
            loss=loss.detach(),
            losses={tower: value.detach() for tower, value in losses.items()},
            scores=by_target[0],
            hits=hits,
            skipped=False,
        )

    def _losses(self, outputs: Mapping[str, Tensor], targets: tuple[WeightedLabels, ...]) -> dict[str, Tensor]:
        """Summed losses by tower, of every label by its weight."""
        parts = [
            tower_losses(
                outputs,
                target.labels,
                weights=target.weights,
                head_classes=self.network.head_classes,
                label_smoothing=self._config.label_smoothing,
                class_weights=self._class_weights,
            )
            for target in targets
        ]
        return {tower: torch.stack([losses[tower] for losses in parts]).sum() for tower in parts[0]}

    def _within_own_head(self, scores: Mapping[str, Tensor], labels: Tensor) -> dict[str, Tensor]:
        heads = self.network.head_classes
        return {name: within_own_head(of_name, labels, head_classes=heads) for name, of_name in scores.items()}

    def _all_finite(self, loss: Tensor | int) -> bool:
        """Whether losses and gradients are finite, the same on every worker, as gradients are already reduced."""
        gradients = [parameter.grad for parameter in self.network.parameters() if parameter.grad is not None]
        worst = torch.stack([nn.utils.get_total_norm(gradients), torch.as_tensor(loss)]).abs().max().reshape(1)
        if dist.is_initialized() and dist.get_world_size() > 1:
            flag = (~torch.isfinite(worst)).float()
            dist.all_reduce(flag)
            return not flag.item()
        return bool(torch.isfinite(worst))

    @contextmanager
    def _timed(self, phase: str) -> Iterator[None]:
        if self._seconds is None:
            yield
            return
        started = time.perf_counter()
        yield
        if self.device.type == "cuda":
            torch.cuda.synchronize()
        self._seconds[phase] = self._seconds.get(phase, 0.0) + time.perf_counter() - started


def logits(
    model: nn.Module, rgb: Tensor | None, flow: Tensor | None, *, device: torch.device, precision: Precision
) -> dict[str, Tensor]:
    """Logits (N, K) by tower, in float32 whatever the precision of the layers."""
    with torch.autocast(device.type, dtype=torch.bfloat16, enabled=precision == "bfloat16"):
        outputs = model(rgb, flow)
    return {tower: values.float() for tower, values in outputs.items()}


def _seed_dropout(*, seed: int, epoch: int, step: int) -> None:
    rank = dist.get_rank() if dist.is_initialized() else 0
    digest = hashlib.blake2b(f"{seed}/{epoch}/{step}/{rank}".encode(), digest_size=7).digest()
    torch.manual_seed(int.from_bytes(digest, "little"))
