"""What every network of the family does: two streams in, scores by tower out, and how its parameters learn."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from twostream_ray.errors import ConfigError


class Network(nn.Module):
    """Snippets in, class scores out.

    `forward(rgb, flow)` takes RGB (N, T, 3, H, W) and flow (N, T, 2L, H, W), or None for the one it does not need, and
    gives logits (N, K) for every tower that has a loss of its own.
    """

    needs_rgb: bool = True
    """Whether forward wants RGB frames."""
    needs_flow: bool = True
    """Whether forward wants stacks of flow."""
    head_classes: tuple[int, ...]
    """Classes of each data set; they add up to K."""

    def forward(self, rgb: Tensor | None, flow: Tensor | None) -> dict[str, Tensor]:
        """Logits (N, K) by tower."""
        raise NotImplementedError

    def scores(self, outputs: dict[str, Tensor], *, head: int = 0) -> Tensor:
        """Class scores (N, K) for the decision: the mean of the towers' last layers (Feichtenhofer et al. 2016).

        With several data sets, the scores of the classes of data set number `head`.
        """
        return torch.stack([self.split_heads(logits)[head] for logits in outputs.values()]).mean(dim=0)

    def probabilities(self, scores: Tensor) -> Tensor:
        """Scores (N, K), averaged over views or not, as probabilities that add up to 1."""
        return F.softmax(scores, dim=1)

    def split_heads(self, logits: Tensor) -> tuple[Tensor, ...]:
        """Logits (N, K) as one (N, K_i) for each data set of multi-task training."""
        return logits.split(self.head_classes, dim=1)

    def parameter_groups(self, *, lr: float, weight_decay: float, bias_lr_factor: float = 2.0) -> list[dict[str, Any]]:
        """What learns, as an optimiser's groups (the official codes of both 2016 papers).

        Weights learn at lr with decay, biases at bias_lr_factor times lr without; batch norm has no decay, and its
        scales learn as fast as biases do, its shifts at lr. Frozen parameters are in no group.
        """
        weights, biases, shifts = [], [], []
        for module in self.modules():
            is_norm = isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d)
            for name, parameter in module.named_parameters(recurse=False):
                if not parameter.requires_grad:
                    continue
                if is_norm and name == "bias":
                    shifts.append(parameter)
                elif is_norm or name == "bias":
                    biases.append(parameter)
                else:
                    weights.append(parameter)
        groups = [
            {"name": "weights", "params": weights, "lr": lr, "weight_decay": weight_decay},
            {"name": "biases", "params": biases, "lr": bias_lr_factor * lr, "weight_decay": 0.0},
            {"name": "norm shifts", "params": shifts, "lr": lr, "weight_decay": 0.0},
        ]
        return [group for group in groups if group["params"]]

    def to_channels_last(self) -> "Network":
        """Lay convolutions out as GPUs read them best, maps innermost; the maps follow by themselves."""
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                module.to(memory_format=torch.channels_last)
            elif isinstance(module, nn.Conv3d):
                module.to(memory_format=torch.channels_last_3d)
        return self


def wanted(frames: Tensor | None, stream: str) -> Tensor:
    """The frames, which a network with this stream cannot do without."""
    if frames is None:
        raise ConfigError(f"this network wants {stream}, got None: load both streams, or choose model.streams")
    return frames
