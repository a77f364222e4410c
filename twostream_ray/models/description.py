"""Model summary: layers, parameters, FLOPs and activation memory, from a forward pass on torch's meta device."""

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks
from torch.utils.flop_counter import FlopCounterMode

from twostream_ray.errors import ConfigError
from twostream_ray.models.build import Network, build_network
from twostream_ray.models.settings import ModelConfig
from twostream_ray.models.token_maps import Maps, grid
from twostream_ray.models.towers import Tower

BYTES_PER_FLOAT = 4


def describe(
    config: ModelConfig,
    *,
    num_classes: int,
    flow_length: int,
    num_snippets: int,
    size_px: int,
    bias_lr_factor: float = 2.0,
    layer_decay: float | None = None,
) -> dict[str, Any]:
    """Sizes and costs of a network, for one sample of T snippets in 32-bit floats.

    Keys, all JSON: parameters; weight_layers (convolutions and fully connected layers); gflops_forward (a multiply and
    an add are two); activation_bytes (what a training step keeps for its backward pass); gradient_bytes (learnt);
    parts, each with parameters, weight_layers and layers, from a layer's name to its output shape, T first;
    parameter_groups, each with name, parameters, rate (over the learning rate) and whether it decays, as
    `Network.parameter_groups` makes them with bias_lr_factor and layer_decay.

    Raises:
        ConfigError: the settings contradict each other, or do not fit frames of this size.
    """
    with torch.device("meta"):
        network = build_network(config, num_classes=num_classes, flow_length=flow_length, pretrained=False)
        rgb = torch.empty(1, num_snippets, 3, size_px, size_px)
        flow = torch.empty(1, num_snippets, 2 * flow_length, size_px, size_px)
    shapes: dict[str, dict[str, list[int]]] = {}
    hooks = [
        layer.register_forward_hook(_record(shapes.setdefault(part, {}), name))
        for part, name, layer in _layers(network)
    ]
    kept = _SavedTensors(network)
    counter = FlopCounterMode(display=False)
    try:
        with counter, saved_tensors_hooks(kept.pack, lambda tensor: tensor):
            network(rgb if network.needs_rgb else None, flow if network.needs_flow else None)
    except (RuntimeError, AssertionError) as error:  # timm asserts the size of frames
        raise ConfigError(
            f"this network cannot process frames of {size_px} px ({error}): use larger ones, or multiples of patches"
        ) from error
    for hook in hooks:
        hook.remove()
    return {
        "parameters": count_parameters(network),
        "weight_layers": count_weight_layers(network),
        "gflops_forward": counter.get_total_flops() / 1e9,
        "activation_bytes": kept.num_bytes,
        "gradient_bytes": BYTES_PER_FLOAT * sum(p.numel() for p in network.parameters() if p.requires_grad),
        "parts": {
            part: {
                "parameters": count_parameters(network.get_submodule(part)),
                "weight_layers": count_weight_layers(network.get_submodule(part)),
                "layers": layers,
            }
            for part, layers in shapes.items()
        },
        "parameter_groups": _sizes_of_groups(network, bias_lr_factor=bias_lr_factor, layer_decay=layer_decay),
    }


def training_flops(network: Network, *, flow_length: int, num_snippets: int, size_px: int) -> float:
    """Floating-point operations of forward and backward for one sample, a multiply and an add counted as two.

    `network` is on torch's meta device. Layers that do not learn have no backward pass where nothing below them learns;
    what activation checkpointing computes again does not count.

    Raises:
        ConfigError: the network cannot process frames of this size.
    """
    rgb = torch.empty(1, num_snippets, 3, size_px, size_px, device="meta")
    flow = torch.empty(1, num_snippets, 2 * flow_length, size_px, size_px, device="meta")
    counter = FlopCounterMode(
        display=False, custom_mapping={torch.ops.aten.convolution_backward: _convolution_backward_flops}
    )
    try:
        with counter:
            outputs = network(rgb if network.needs_rgb else None, flow if network.needs_flow else None)
            torch.stack([scores.sum() for scores in outputs.values()]).sum().backward()
    except (RuntimeError, AssertionError) as error:  # timm asserts the size of frames
        raise ConfigError(
            f"this network cannot process frames of {size_px} px ({error}): use larger ones, or multiples of patches"
        ) from error
    network.zero_grad()
    return float(counter.get_total_flops())


def _convolution_backward_flops(
    grad_shape: Sequence[int], _maps_shape: Sequence[int], weight_shape: Sequence[int], *others: Any, **_: Any
) -> int:
    """FLOPs of forward for each gradient; torch's own formula overcounts depthwise convolutions."""
    wanted = others[7]  # for the maps, the weights and the bias, as aten's convolution_backward has it
    forward = 2 * math.prod(grad_shape) * math.prod(weight_shape[1:])
    return forward * sum(wanted[:2])


def count_parameters(module: nn.Module) -> int:
    """Number of a module's parameters."""
    return sum(parameter.numel() for parameter in module.parameters())


def count_weight_layers(module: nn.Module) -> int:
    """Convolutions and fully connected layers of a module, the papers' count of layers."""
    return sum(isinstance(layer, nn.Conv1d | nn.Conv2d | nn.Conv3d | nn.Linear) for layer in module.modules())


def _sizes_of_groups(
    network: Network, *, bias_lr_factor: float, layer_decay: float | None
) -> list[dict[str, str | int | float | bool]]:
    """The parameter groups, their rates as shares of the learning rate."""
    groups = network.parameter_groups(lr=1.0, weight_decay=1.0, bias_lr_factor=bias_lr_factor, layer_decay=layer_decay)
    return [
        {
            "name": group["name"],
            "parameters": sum(parameter.numel() for parameter in group["params"]),
            "rate": group["lr"],
            "decays": group["weight_decay"] > 0,
        }
        for group in groups
    ]


class _SavedTensors:
    """Total size of the tensors that autograd saves for backward; each storage counts once, parameters not at all."""

    def __init__(self, network: Network) -> None:
        self.num_bytes = 0
        self._seen: dict[int, Tensor] = {p.untyped_storage()._cdata: p for p in network.parameters()}

    def pack(self, tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage._cdata not in self._seen:
            # A reference keeps the storage alive, so that its address is not reused.
            self._seen[storage._cdata] = tensor
            self.num_bytes += storage.nbytes()
        return tensor


def _layers(network: Network) -> list[tuple[str, str, nn.Module]]:
    """(part, layer's name, layer) of every named layer; a part without children counts as one layer."""
    return [
        (part, name, layer)
        for part, module in network.named_children()
        for name, layer in (
            module.named_children() if isinstance(module, Tower | nn.ModuleDict | nn.Sequential) else [(part, module)]
        )
    ]


def _record(shapes: dict[str, list[int]], name: str) -> Callable[[nn.Module, Any, Maps], None]:
    def hook(_module: nn.Module, _inputs: Any, output: Maps) -> None:
        maps = grid(output)
        # Where time is an axis of its own, (N, D, T, H, W), it is shown first too.
        shapes[name] = list(maps.shape if maps.dim() < 5 else maps.transpose(1, 2).flatten(0, 1).shape)

    return hook
