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
from twostream_ray.training.recipe import (
    learning_rate_at,
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
    """Scalar: this worker's part of the mean loss over the global batch."""
    losses: Mapping[str, Tensor]
    """Summed losses by tower."""
    scores: Mapping[str, Tensor]
    """(N, K) class scores of the network and of each tower, as `scores_by_tower` says, within each sample's own data
    set."""
    skipped: bool
    """The update was left out, by every worker, since a loss or gradient was not finite."""


class TrainingStep:
    """A network with its optimiser, ready to take batches."""

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
    ) -> None:
        """`model` is a Network, or DistributedDataParallel around one.

        Args:
            model: what learns.
            optimiser: from `build_optimiser`.
            config: losses, schedule, precision.
            seed: fixes dropout, with epoch and step.
            device: where the network is.
            class_weights: (K,) weights of classes in the loss.
            average: is updated after each step.
            seconds: where given, the time of `forward`, `backward` and `update` is added up in it; on a GPU every
                phase is then waited for.
        """
        self.model, self.device, self.network = model, device, unwrapped(model)
        self._optimiser, self._config, self._seed = optimiser, resolved(config, device), seed
        self.precision: Precision = "bfloat16" if self._config.precision == "bfloat16" else "float32"
        self._class_weights = None if class_weights is None else class_weights.to(device)
        self._average, self._seconds = average, seconds

    def __call__(self, batch: DeviceBatch, *, epoch: int, step: int, num_steps: int) -> StepOutcome:
        """Learn from a batch, step number `step` of `num_steps` in the epoch.

        Gradients are those of the mean loss over the global batch, whatever part of it is on this worker.
        """
        config = self._config
        _seed_dropout(seed=self._seed, epoch=epoch, step=step)
        set_learning_rate(self._optimiser, learning_rate_at(epoch + step / num_steps, config=config))
        self._optimiser.zero_grad(set_to_none=True)
        parts = batch.parts(config.micro_batches) if config.micro_batches > 1 else [batch]
        done = [self._gradients(part, last=part is parts[-1]) for part in parts]
        with self._timed("update"):
            skipped = config.on_nonfinite == "skip" and not self._all_finite(sum(loss for loss, _, _ in done))
            if not skipped:
                if config.clip_gradient_norm is not None:
                    nn.utils.clip_grad_norm_(self.model.parameters(), config.clip_gradient_norm)
                self._optimiser.step()
                if self._average is not None:
                    self._average.update(epoch * num_steps + step)
        return StepOutcome(
            loss=torch.stack([loss for loss, _, _ in done]).sum(),
            losses={tower: torch.stack([losses[tower] for _, losses, _ in done]).sum() for tower in done[0][1]},
            scores={name: torch.cat([scores[name] for _, _, scores in done]) for name in done[0][2]},
            skipped=skipped,
        )

    def _gradients(self, batch: DeviceBatch, *, last: bool) -> tuple[Tensor, dict[str, Tensor], dict[str, Tensor]]:
        """Add a part's gradients; with the last part they become those of all workers."""
        model = self.model
        distributed = isinstance(model, DistributedDataParallel)
        with model.no_sync() if isinstance(model, DistributedDataParallel) and not last else nullcontext():
            with self._timed("forward"):
                rgb, flow = batch.streams()
                outputs = logits(self.model, rgb, flow, device=self.device, precision=self.precision)
                losses = tower_losses(
                    outputs,
                    batch.labels,
                    weights=batch.weights,
                    head_classes=self.network.head_classes,
                    label_smoothing=self._config.label_smoothing,
                    class_weights=self._class_weights,
                )
                # Workers average their gradients; sums over the global batch are wanted instead.
                loss = total_loss(losses, config=self._config) / batch.total
            with self._timed("backward"):
                (loss * (dist.get_world_size() if distributed else 1)).backward()
        scores = scores_by_tower(self.network, {tower: values.detach() for tower, values in outputs.items()})
        heads = self.network.head_classes
        return (
            loss.detach(),
            {tower: value.detach() for tower, value in losses.items()},
            {name: within_own_head(of_name, batch.labels, head_classes=heads) for name, of_name in scores.items()},
        )

    def _all_finite(self, loss: Tensor | int) -> bool:
        """Whether losses and gradients are finite, the same answer on every worker: gradients are already shared."""
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
    """Logits (N, K) by tower, in 32 bits whatever the layers were computed in."""
    with torch.autocast(device.type, dtype=torch.bfloat16, enabled=precision == "bfloat16"):
        outputs = model(rgb, flow)
    return {tower: values.float() for tower, values in outputs.items()}


def _seed_dropout(*, seed: int, epoch: int, step: int) -> None:
    rank = dist.get_rank() if dist.is_initialized() else 0
    digest = hashlib.blake2b(f"{seed}/{epoch}/{step}/{rank}".encode(), digest_size=7).digest()
    torch.manual_seed(int.from_bytes(digest, "little"))
