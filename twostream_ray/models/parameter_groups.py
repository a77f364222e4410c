"""Parameter groups of an optimiser: which parameters decay, and layer-wise learning rate decay.

Biases at twice the learning rate: official code of both 2016 papers. Layer-wise decay: ELECTRA (Clark et al. 2020);
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
    """Optimiser groups of trainable parameters, each with name, params, lr and weight_decay.

    Weights have lr with decay; biases and scales of norms have bias_lr_factor times lr without decay. The shifts of
    norms, other parameters of fewer than two dimensions, and those that a tower or the network lists as `undecayed`
    have lr without decay.

    Args:
        network: the network.
        lr: learning rate of the last layers.
        weight_decay: of weights.
        bias_lr_factor: learning rate of biases relative to weights; with 1 biases need no group of their own.
        layer_decay: a layer of a chain with n layers of weights above it learns at layer_decay to the power n of its
            rate, in (0, 1]. Parameters in no chain, such as fusions and temporal layers, have the full rate.
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
    """Id of each parameter in a chain -> number of trainable layers with weights of two or more dimensions above it.

    A norm has no such weights, so it counts as part of the layer below it.
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
