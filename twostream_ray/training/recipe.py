"""Training recipe: tower losses, learning rate schedule, optimiser (Feichtenhofer et al. 2016, sec. 4)."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from twostream_ray.errors import ConfigError
from twostream_ray.models.build import Network
from twostream_ray.settings.bounds import require_within

Precision = Literal["float32", "bfloat16"]


@dataclass(frozen=True, kw_only=True)
class TrainingConfig:
    """Stochastic gradient descent with momentum over the sum of the towers' losses."""

    epochs: int = 30
    """Passes over the training split."""

    global_batch: int = 96
    """Clips per step over all workers together: more workers share it, the learning rate stays right."""

    learning_rate: float = 1e-3
    """Highest learning rate of weights; that of biases is twice as high (official code)."""

    momentum: float = 0.9
    """SGD momentum."""

    weight_decay: float = 5e-4
    """L2 penalty of weights; biases and batch norm have none."""

    schedule: Literal["steps", "cosine", "constant"] = "steps"
    """steps: divided by 10 at each of step_epochs; cosine: to zero over the epochs; constant."""

    step_epochs: tuple[int, ...] = (20, 26)
    """Epochs (from 0) at which the schedule `steps` divides the learning rate by 10."""

    warmup_epochs: float = 0.0
    """Epochs over which the learning rate rises linearly from 0."""

    clip_gradient_norm: float | None = None
    """Largest norm of the whole gradient; none by default."""

    temporal_loss_weight: float = 1.0
    """Weight of the temporal tower's loss in the sum; the other tower's is 1."""

    precision: Precision = "float32"
    """bfloat16 computes layers in 16 bits and keeps weights, losses and momentum in 32: for GPUs that have it."""

    channels_last: bool = False
    """Memory format of maps: channels innermost (torch.channels_last), as GPUs' tensor cores read them."""

    compile: bool = False
    """Compile the network with torch.compile: minutes before the first step, faster steps after; wants a C++ compiler
    on every node."""

    label_smoothing: float = 0.0
    """Share of a label's weight that is spread evenly over the classes of its data set, in [0, 1)."""

    class_weights: Literal["none", "balanced"] = "none"
    """balanced: a clip's loss counts by how rare its class is in the training split, 1 on average."""

    average_decay: float | None = None
    """Decay per step of the exponential moving average of the weights, in (0, 1): validated, kept and registered
    instead of the weights. None by default."""

    patience_epochs: int | None = None
    """End training after so many epochs in which val_top1 did not rise; wants data.validation_split. None: never."""

    on_nonfinite: Literal["stop", "skip"] = "stop"
    """What to do when a step's loss is NaN or infinite. stop: fail, naming its clips; skip: leave the step out, count
    it in skipped_steps and continue; looking before each update costs GPUs a little time."""

    micro_batches: int = 1
    """Parts that a worker computes its share of a step in, one after the other: less memory, the same gradients."""

    activation_checkpointing: bool = False
    """Keep only the towers' maps at poolings and compute the others again in the backward pass: less memory, about a
    third more computing."""

    compress_gradients: bool = False
    """Send gradients between workers in bfloat16: half the bytes, 8 bits of precision."""

    def __post_init__(self) -> None:
        if self.precision not in get_args(Precision):
            raise ConfigError(
                f"training.precision must be one of {', '.join(get_args(Precision))}, got {self.precision!r}"
            )
        require_within(
            self,
            "training.",
            epochs="[1, 1_000_000]",
            global_batch="[1, 1_000_000]",
            learning_rate="(0, 1_000]",
            momentum="[0, 1)",
            weight_decay="[0, 1_000]",
            step_epochs="[0, 1_000_000]",
            warmup_epochs="[0, 1_000_000]",
            clip_gradient_norm="(0, 1e9]",
            temporal_loss_weight="[0, 1e6]",
            label_smoothing="[0, 1)",
            average_decay="(0, 1)",
            patience_epochs="[1, 1_000_000]",
            micro_batches="[1, 1_000_000]",
        )


def learning_rate_at(progress_epochs: float, *, config: TrainingConfig) -> float:
    """The learning rate of weights after so many epochs, fractions counted."""
    rate = config.learning_rate
    if config.schedule == "steps":
        rate *= 0.1 ** sum(progress_epochs >= epoch for epoch in config.step_epochs)
    elif config.schedule == "cosine":
        rate *= 0.5 * (1 + math.cos(math.pi * min(progress_epochs / config.epochs, 1.0)))
    if progress_epochs < config.warmup_epochs:
        rate *= progress_epochs / config.warmup_epochs
    return rate


def lost_patience(history: Sequence[Mapping[str, float]], *, config: TrainingConfig) -> bool:
    """Whether val_top1 has not risen above its best for training.patience_epochs epochs."""
    if config.patience_epochs is None or not history:
        return False
    scores = [metrics["val_top1"] for metrics in history]
    return len(scores) - 1 - scores.index(max(scores)) >= config.patience_epochs


def build_optimiser(network: Network, *, config: TrainingConfig) -> torch.optim.SGD:
    """SGD over the parameters that learn; each group keeps its share of the schedule's learning rate."""
    groups = network.parameter_groups(lr=config.learning_rate, weight_decay=config.weight_decay)
    for group in groups:
        group["lr_factor"] = group["lr"] / config.learning_rate
    return torch.optim.SGD(groups, lr=config.learning_rate, momentum=config.momentum, fused=True)


def set_learning_rate(optimiser: torch.optim.Optimizer, rate: float) -> None:
    """Give every group its share of the schedule's learning rate."""
    for group in optimiser.param_groups:
        group["lr"] = rate * group["lr_factor"]


def within_own_head(scores: Tensor, labels: Tensor, *, head_classes: Sequence[int]) -> Tensor:
    """Scores (N, K) in which only the classes of each sample's own data set are left; the others become -inf.

    A label says which data set its sample is from: K holds the data sets' classes one after the other.
    """
    if len(head_classes) == 1:
        return scores
    head_of_class = torch.arange(len(head_classes)).repeat_interleave(torch.tensor(head_classes)).to(scores.device)
    return scores.masked_fill(head_of_class != head_of_class[labels][:, None], -torch.inf)


def balanced_class_weights(labels: NDArray[np.int64], *, head_classes: Sequence[int]) -> Tensor:
    """(K,) weights of classes that make every class of a data set count the same, 1 on average over its clips.

    Args:
        labels: (n,) classes of the training split.
        head_classes: K_i of each data set; they add up to K.
    """
    counts = torch.bincount(torch.from_numpy(labels), minlength=sum(head_classes)).double()
    weights = [
        torch.where(head > 0, head.sum() / (head > 0).sum().clamp(min=1) / head.clamp(min=1), 0.0)
        for head in counts.split(list(head_classes))
    ]
    return torch.cat(weights).float()


def tower_losses(
    outputs: Mapping[str, Tensor],
    labels: Tensor,
    *,
    weights: Tensor,
    head_classes: Sequence[int],
    label_smoothing: float = 0.0,
    class_weights: Tensor | None = None,
) -> dict[str, Tensor]:
    """Sum of weighted cross-entropies per tower, scalars; samples of weight 0 count nothing.

    With several data sets it is the sum of their losses, each over its own samples and its own classes (multi-task
    learning, Simonyan and Zisserman 2014, sec. 4). A data set without a sample in the batch adds 0, and its head gets
    gradients of 0: workers that average gradients find the same parameters everywhere.
    """
    if class_weights is not None:
        weights = weights * class_weights[labels]
    losses = {}
    for tower, logits in outputs.items():
        own = within_own_head(logits, labels, head_classes=head_classes)
        loss = F.cross_entropy(own, labels, reduction="none")
        if label_smoothing:
            # Spread over the classes of the sample's own data set; the others' logarithms are minus infinity.
            known = torch.isfinite(own) if len(head_classes) > 1 else torch.ones_like(own, dtype=torch.bool)
            spread = F.log_softmax(own, dim=1).masked_fill(~known, 0.0).sum(dim=1) / known.sum(dim=1)
            loss = (1 - label_smoothing) * loss - label_smoothing * spread
        losses[tower] = (loss * weights).sum()
    return losses


def total_loss(losses: Mapping[str, Tensor], *, config: TrainingConfig) -> Tensor:
    """The towers' losses added up, the temporal one by its weight (Feichtenhofer et al. 2016, sec. 3.4)."""
    weighted = [
        loss * config.temporal_loss_weight if tower == "temporal" and len(losses) > 1 else loss
        for tower, loss in losses.items()
    ]
    return torch.stack(weighted).sum()
