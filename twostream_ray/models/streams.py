"""Towers of the streams: modules for the layer tables of VGG-16, VGG-M-2048 and ResNet-50, with their first weights."""

from collections.abc import Mapping

from torch import nn

from twostream_ray.models.layers import CLASSIFIER, LayerSpec, layer_specs
from twostream_ray.models.pretrained import load_weights
from twostream_ray.models.settings import TowerConfig
from twostream_ray.models.towers import Bottleneck, FullyConnected, ReadBytes, Tower, batch_norm


def build_tower(
    config: TowerConfig,
    *,
    in_channels: int,
    num_classes: int,
    upto: str | None = None,
    stacked: Mapping[str, int] | None = None,
    read_bytes: ReadBytes | None = None,
) -> Tower:
    """Make a tower, initialised from torch's global random numbers or from the weights its settings name.

    Args:
        config: the tower's settings.
        in_channels: 3 for RGB, 2L for flow.
        num_classes: K, the outputs of fc8.
        upto: the last layer to make; None makes all.
        stacked: maps that a fusion stacks onto a layer's own, by layer; the next weight layer takes them too.
        read_bytes: reads the safetensors file that config.weights names.

    Raises:
        WeightsError: the weights cannot be had, or do not fit.
    """
    layers: dict[str, nn.Module] = {}
    channels: dict[str, int] = {}
    maps = in_channels
    specs = layer_specs(config.backbone, width=config.width, in_channels=in_channels, num_classes=num_classes)
    for spec in specs:
        layers[spec.name] = _layer(spec, maps=maps, dropout=config.dropout)
        channels[spec.name] = maps if spec.channels is None else spec.channels
        maps = channels[spec.name] + (stacked or {}).get(spec.name, 0)
        if spec.name == upto:
            break
    tower = Tower(layers, channels=channels)
    for module in tower.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
            if module.bias is not None:
                nn.init.zeros_(module.bias)
    if config.weights is not None:
        load_weights(tower, weights=config.weights, backbone=config.backbone, read_bytes=read_bytes)
    if config.frozen_through is not None:
        tower.freeze(config.frozen_through if config.frozen_through in layers else tower.names[-1])
    return tower


def _layer(spec: LayerSpec, *, maps: int, dropout: float) -> nn.Module:
    """The module of a layer into which `maps` feature maps come."""
    channels = maps if spec.channels is None else spec.channels
    match spec.kind:
        case "conv":
            return nn.Conv2d(maps, channels, spec.kernel, spec.stride, spec.padding, bias=spec.has_bias)
        case "relu":
            return nn.ReLU()
        case "batch_norm":
            return nn.BatchNorm2d(maps)
        case "slow_batch_norm":
            return batch_norm(maps)
        case "local_response_norm":
            # Krizhevsky's settings, k = 2, n = 5, alpha = 1e-4, beta = 0.75; torch divides alpha by n.
            return nn.LocalResponseNorm(size=5, alpha=5e-4, beta=0.75, k=2.0)
        case "max_pool":
            return nn.MaxPool2d(spec.kernel, spec.stride, spec.padding, ceil_mode=spec.rounds_up)
        case "mean_pool":
            return nn.AdaptiveAvgPool2d(1)
        case "dropout":
            return nn.Dropout(dropout)
        case "bottleneck":
            return Bottleneck(maps, channels // 4, stride=spec.stride)
        case "fully_connected":
            return FullyConnected(maps, channels, window=spec.kernel, classifies=spec.name == CLASSIFIER)
