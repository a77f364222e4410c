"""Parameter groups of an optimiser: which parameters decay, and layer-wise learning rate decay.

Biases at twice the rate are of both 2016 papers' official codes. Layer-wise decay is of ELECTRA (Clark et al. 2020);
BEiT and ConvNeXt are fine-tuned with it (Bao et al. 2022, Liu et al. 2022).
"""

from collections.abc import Sequence
from typing import Any

from torch import nn

_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.LayerNorm, nn.GroupNorm)


def parameter_groups(
    network: nn.Module,
    *,
    lr: float,
    weight_decay: float,
    bias_lr_factor: float,
    layer_decay: float = 1.0,
    layer_chains: Sequence[Sequence[nn.Module]] = (),
) -> list[dict[str, Any]]:
    """Groups of what learns, each with a name, its params, lr and weight_decay; frozen parameters are in none.

    Weights learn at lr with decay; biases and the scales of norms at bias_lr_factor times lr without. At lr without
    decay learn the shifts of norms, all else of fewer than two dimensions, and what a tower, or the network, names as
    `undecayed`.

    Args:
        network: whose parameters.
        lr: the learning rate of the last layers.
        weight_decay: of weights.
        bias_lr_factor: the rate of biases over that of weights; 1 leaves two kinds of groups.
        layer_decay: a layer of a chain with n layers of weights above it learns at layer_decay to the power n of its
            rate, in (0, 1]. What is in no chain, as fusions and layers over time are, learns at the full one.
        layer_chains: the layers from frames to scores, in order, of each stream.
    """
    above = _weight_layers_above(layer_chains) if layer_decay < 1 else {}
    undecayed = _undecayed(network)
    members: dict[tuple[str, int], list[nn.Parameter]] = {}
    for module in network.modules():
        is_norm = isinstance(module, _NORMS)
        for name, parameter in module.named_parameters(recurse=False):
            if not parameter.requires_grad:
                continue
            if (name == "bias") != is_norm:
                kind = "biases" if bias_lr_factor != 1 else "without decay"
            elif is_norm or parameter.dim() < 2 or id(parameter) in undecayed:
                kind = "without decay"
            else:
                kind = "weights"
            members.setdefault((kind, above.get(id(parameter), 0)), []).append(parameter)
    kinds = {"weights": (1.0, weight_decay), "biases": (bias_lr_factor, 0.0), "without decay": (1.0, 0.0)}
    return [
        {
            "name": f"{kind} under {depth} layers" if above else kind,
            "params": members[kind, depth],
            "lr": factor * lr * layer_decay**depth,
            "weight_decay": decay,
        }
        for kind, (factor, decay) in kinds.items()
        for depth in sorted(depth for other, depth in members if other == kind)
    ]


def _weight_layers_above(layer_chains: Sequence[Sequence[nn.Module]]) -> dict[int, int]:
    """By the id of a chain's parameters, how many layers above theirs learn weights of two dimensions and more.

    A norm, which has none, so belongs to the layer below it.
    """
    above: dict[int, int] = {}
    for chain in layer_chains:
        count = 0
        for layer in reversed(chain):
            parameters = list(layer.parameters())
            for parameter in parameters:
                above[id(parameter)] = count
            count += any(parameter.requires_grad and parameter.dim() > 1 for parameter in parameters)
    return above


def _undecayed(network: nn.Module) -> set[int]:
    """Ids of the parameters that towers, or the network, name as undecayed: position embeddings, class tokens."""
    return {
        id(parameter)
        for part in network.modules()
        if (names := getattr(part, "undecayed", None))
        for name, parameter in part.named_parameters()
        if name in names
    }
