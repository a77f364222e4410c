"""Tower factory: builds the modules of a backbone's layer table, or a timm network, and loads its weights."""

from collections.abc import Mapping

from torch import nn

from twostream_ray.models.layers import (
    CLASSIFIER,
    DROPOUT,
    IMAGENET_MEAN,
    IMAGENET_STD,
    LAST_POOL,
    RGB_CHANNELS,
    LayerSpec,
    as_table,
    layer_specs,
)
from twostream_ray.models.pretrained import load_weights, widen_first_filters
from twostream_ray.models.settings import PUBLISHED_BY_TIMM, TowerConfig, layer_channels
from twostream_ray.models.timm_networks import cut
from twostream_ray.models.timm_registry import create_network
from twostream_ray.models.towers import Bottleneck, FullyConnected, ReadBytes, Renormalise, Tower, batch_norm


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
        upto: the last layer to build; None builds all.
        stacked: maps that a fusion stacks onto a layer's own, by layer; the next weight layer takes them too.
        read_bytes: reads the safetensors file that config.weights names.

    Raises:
        WeightsError: the weights are unavailable or do not fit.
    """
    if config.is_timm:
        tower = _timm_tower(config, in_channels=in_channels, num_classes=num_classes, upto=upto)
    else:
        tower = _papers_tower(
            config, in_channels=in_channels, num_classes=num_classes, upto=upto, stacked=stacked or {}
        )
    if config.weights not in (None, PUBLISHED_BY_TIMM):
        load_weights(tower, weights=str(config.weights), backbone=config.backbone, read_bytes=read_bytes)
    if config.frozen_through is not None:
        tower.freeze(config.frozen_through if config.frozen_through in tower.names else tower.names[-1])
    return tower


def _papers_tower(
    config: TowerConfig, *, in_channels: int, num_classes: int, upto: str | None, stacked: Mapping[str, int]
) -> Tower:
    layers: dict[str, nn.Module] = {}
    channels: dict[str, int] = {}
    maps = in_channels
    specs = layer_specs(as_table(config.backbone), width=config.width, in_channels=in_channels, num_classes=num_classes)
    for spec in specs:
        layers[spec.name] = _layer(spec, maps=maps, dropout=config.dropout)
        channels[spec.name] = maps if spec.channels is None else spec.channels
        maps = channels[spec.name] + stacked.get(spec.name, 0)
        if spec.name == upto:
            break
    tower = Tower(layers, channels=channels)
    for module in tower.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
            if module.bias is not None:
                nn.init.zeros_(module.bias)
    return tower


def _timm_tower(config: TowerConfig, *, in_channels: int, num_classes: int, upto: str | None) -> Tower:
    """A timm network with our classifier; with published weights, flow filters are the mean of the RGB filters."""
    is_published = config.weights == PUBLISHED_BY_TIMM
    network = create_network(
        config.backbone,
        in_channels=RGB_CHANNELS if is_published else in_channels,
        drop_path=config.drop_path,
        pretrained=is_published,
    )
    chain = cut(network, backbone=config.backbone)
    if is_published and in_channels != RGB_CHANNELS:
        widen_first_filters(next(iter(chain.layers.values())), in_channels=in_channels)
    layers: dict[str, nn.Module] = {
        **chain.layers,
        LAST_POOL: chain.pool,
        DROPOUT: nn.Dropout(config.dropout),
        CLASSIFIER: FullyConnected(chain.features, num_classes, classifies=True),
    }
    names = list(layers)
    kept = names if upto is None else names[: names.index(upto) + 1]
    is_own = (chain.mean, chain.deviation) != (IMAGENET_MEAN, IMAGENET_STD) and in_channels == RGB_CHANNELS
    return Tower(
        {name: layers[name] for name in kept},
        channels=layer_channels(config, num_classes=num_classes),
        normalise=Renormalise(mean=chain.mean, std=chain.deviation) if is_own else None,
        published={name: its for name, its in chain.published.items() if name.split(".")[0] in kept},
        undecayed=chain.undecayed,
    )


def _layer(spec: LayerSpec, *, maps: int, dropout: float) -> nn.Module:
    """The module of a layer with `maps` input maps."""
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
