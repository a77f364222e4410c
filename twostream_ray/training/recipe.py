"""Training recipe: tower losses, learning rate schedule, optimiser (Feichtenhofer et al. 2016, sec. 4; AdamW)."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from twostream_ray.models.build import Network
from twostream_ray.training.settings import TrainingConfig

ADAM_BETAS = (0.9, 0.999)
"""AdamW's betas (Loshchilov and Hutter 2019; as used to fine-tune ConvNeXt and ViT)."""


def learning_rate_at(progress_epochs: float, *, config: TrainingConfig) -> float:
    """Learning rate of weights after a (fractional) number of epochs."""
    rate = config.learning_rate
    if config.schedule == "steps":
        rate *= 0.1 ** sum(progress_epochs >= epoch for epoch in config.step_epochs)
    elif config.schedule == "cosine":
        rate *= 0.5 * (1 + math.cos(math.pi * min(progress_epochs / config.epochs, 1.0)))
    if progress_epochs < config.warmup_epochs:
        rate *= progress_epochs / config.warmup_epochs
    return rate


def continued_schedule(done: int, *, config: TrainingConfig) -> str:
    """A sentence on the learning rate when a run of `done` epochs is extended, as if it had been planned that long.

    Only of `cosine` is that another rate than the run ended with: it falls over all epochs, and rises again where these
    become more.
    """
    now = f"the learning rate continues at {learning_rate_at(done, config=config):.3g}"
    if config.schedule == "cosine":
        return f"{now}, on a cosine over all {config.epochs} epochs, after it had reached 0"
    return f"{now}, by training.schedule={config.schedule} for a run of {config.epochs} epochs"


def lost_patience(history: Sequence[Mapping[str, float]], *, config: TrainingConfig) -> bool:
    """Early stopping: whether val_top1 has not improved for training.patience_epochs epochs."""
    if config.patience_epochs is None or not history:
        return False
    scores = [metrics["val_top1"] for metrics in history]
    return len(scores) - 1 - scores.index(max(scores)) >= config.patience_epochs


def optimiser_groups(network: Network, *, config: TrainingConfig) -> list[dict[str, Any]]:
    """The parameter groups of an optimiser, each with its share of the schedule's learning rate as lr_factor.

    Raises:
        ConfigError: training.layer_decay is set, but the network is not a chain of layers.
    """
    groups = network.parameter_groups(
        lr=config.learning_rate,
        weight_decay=config.weight_decay,
        bias_lr_factor=config.bias_lr_factor,
        layer_decay=config.layer_decay,
    )
    for group in groups:
        group["lr_factor"] = group["lr"] / config.learning_rate
    return groups


def build_optimiser(network: Network, *, config: TrainingConfig) -> torch.optim.Optimizer:
    """SGD or AdamW over the trainable parameters, in `optimiser_groups`.

    Raises:
        ConfigError: as from `optimiser_groups`.
    """
    groups = optimiser_groups(network, config=config)
    if config.optimiser == "adamw":
        return torch.optim.AdamW(groups, lr=config.learning_rate, betas=ADAM_BETAS, fused=True)
    return torch.optim.SGD(groups, lr=config.learning_rate, momentum=config.momentum, fused=True)


def set_learning_rate(optimiser: torch.optim.Optimizer, rate: float) -> None:
    """Give every group its share of the schedule's learning rate."""
    for group in optimiser.param_groups:
        group["lr"] = rate * group["lr_factor"]


def within_own_head(scores: Tensor, labels: Tensor, *, head_classes: Sequence[int]) -> Tensor:
    """Mask scores (N, K): classes of other data sets than the sample's own become -inf.

    The label determines the data set, as K concatenates the classes of all data sets.
    """
    if len(head_classes) == 1:
        return scores
    head_of_class = torch.arange(len(head_classes)).repeat_interleave(torch.tensor(head_classes)).to(scores.device)
    return scores.masked_fill(head_of_class != head_of_class[labels][:, None], -torch.inf)


NETWORK = "network"
"""Key of the network's scores, next to those of its towers."""


def scores_by_tower(network: Network, outputs: dict[str, Tensor]) -> dict[str, Tensor]:
    """Class scores (N, K) of the network and, if it has several towers, of each tower."""
    towers = outputs if len(outputs) > 1 else {}
    own = {tower: network.scores({tower: logits}) for tower, logits in towers.items()}
    return {NETWORK: network.scores(outputs)} | own


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
    """Sum of weighted cross-entropies per tower, scalars; samples of weight 0 do not count.

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


def right_answers(scores: Tensor, labels: Tensor, *, weights: Tensor) -> Tensor:
    """Scalar float64: the weights of samples whose highest score (N, K) is that of their label."""
    return ((scores.argmax(dim=1) == labels) * weights).sum(dtype=torch.float64)


def total_loss(losses: Mapping[str, Tensor], *, config: TrainingConfig) -> Tensor:
    """The towers' losses added up, the temporal one by its weight (Feichtenhofer et al. 2016, sec. 3.4)."""
    weighted = [
        loss * config.temporal_loss_weight if tower == "temporal" and len(losses) > 1 else loss
        for tower, loss in losses.items()
    ]
    return torch.stack(weighted).sum()
