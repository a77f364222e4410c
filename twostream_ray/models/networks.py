"""The papers' networks, assembled from towers, fusion functions and fusion over time.

late: Simonyan and Zisserman 2014. fused: Feichtenhofer, Pinz and Zisserman 2016 (sec. 3.4).
"""

from dataclasses import dataclass, field, replace
from typing import Literal, NamedTuple, get_args

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from twostream_ray.errors import ConfigError
from twostream_ray.models.fusion import ConcatFusion, FusionConfig, build_fusion, mixing_matrix
from twostream_ray.models.streams import (
    CLASSIFIER,
    LAST_POOL,
    RGB_CHANNELS,
    FullyConnected,
    TowerConfig,
    build_tower,
    counterpart,
    layer_channels,
)
from twostream_ray.models.temporal import TimeConv, TimeMaxPool, mean_scores

Architecture = Literal["late", "fused"]
Streams = Literal["both", "spatial", "temporal"]


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """A network of the two-stream family."""

    architecture: Architecture = "fused"
    """late (scores are averaged), fused (feature maps are)."""
    streams: Streams = "both"
    """both towers, or one alone; one alone goes with architecture late."""
    spatial: TowerConfig = field(default_factory=TowerConfig)
    """The tower that sees RGB frames."""
    temporal: TowerConfig = field(default_factory=TowerConfig)
    """The tower that sees stacks of optical flow."""
    fusion: FusionConfig = field(default_factory=FusionConfig)
    """How a fused network joins its towers; a late one does not read it."""
    keep_temporal_tower: bool = True
    """Run the temporal tower to its own scores and loss besides the fused ones; False ends it at the last fusion."""
    num_classes: int | None = None
    """K; None takes it from the data."""

    def __post_init__(self) -> None:
        for key, value, valid in (
            ("architecture", self.architecture, get_args(Architecture)),
            ("streams", self.streams, get_args(Streams)),
        ):
            if value not in valid:
                raise ConfigError(f"model.{key} must be one of {', '.join(valid)}, got {value!r}")
        if self.num_classes is not None and self.num_classes < 1:
            raise ConfigError(f"model.num_classes must be at least 1, got {self.num_classes}")
        if self.architecture != "late" and self.streams != "both":
            raise ConfigError(
                f"model.streams={self.streams} goes with model.architecture=late, got {self.architecture}: "
                "choose architecture late for one stream alone, or streams both"
            )
        if self.architecture == "fused":
            _check_fusion_layers(self)


class Network(nn.Module):
    """Snippets in, class scores out.

    `forward(rgb, flow)` takes RGB (N, T, 3, H, W) and flow (N, T, 2L, H, W), or None for the one it does not need, and
    gives logits (N, K) for every tower that has a loss of its own.
    """

    needs_rgb: bool = True
    """Whether forward wants RGB frames."""
    needs_flow: bool = True
    """Whether forward wants stacks of flow."""

    def forward(self, rgb: Tensor | None, flow: Tensor | None) -> dict[str, Tensor]:
        """Logits (N, K) by tower."""
        raise NotImplementedError

    def scores(self, outputs: dict[str, Tensor]) -> Tensor:
        """Class scores (N, K) for the decision: the mean of the towers' last layers (Feichtenhofer et al. 2016)."""
        return torch.stack(list(outputs.values())).mean(dim=0)


class LateNetwork(Network):
    """Towers that meet only in their scores (Simonyan and Zisserman 2014, sec. 2); also one stream alone."""

    def __init__(self, config: ModelConfig, *, num_classes: int, flow_length: int) -> None:
        super().__init__()
        self.needs_rgb = config.streams != "temporal"
        self.needs_flow = config.streams != "spatial"
        if self.needs_rgb:
            self.spatial = build_tower(config.spatial, in_channels=RGB_CHANNELS, num_classes=num_classes)
        if self.needs_flow:
            self.temporal = build_tower(config.temporal, in_channels=2 * flow_length, num_classes=num_classes)

    def forward(self, rgb: Tensor | None, flow: Tensor | None) -> dict[str, Tensor]:
        """Logits (N, K) of each tower, averaged over snippets."""
        outputs = {}
        if self.needs_rgb:
            rgb = _wanted(rgb, "rgb")
            outputs["spatial"] = mean_scores(self.spatial(rgb.flatten(0, 1)), num_samples=rgb.shape[0])
        if self.needs_flow:
            flow = _wanted(flow, "flow")
            outputs["temporal"] = mean_scores(self.temporal(flow.flatten(0, 1)), num_samples=flow.shape[0])
        return outputs

    def scores(self, outputs: dict[str, Tensor]) -> Tensor:
        """The mean of the towers' softmax scores, (N, K)."""
        return super().scores({tower: F.softmax(logits, dim=1) for tower, logits in outputs.items()})


class _Stop(NamedTuple):
    """Where the towers halt: to be fused, or to be pooled over time."""

    spatial: str
    temporal: str | None
    """None: the temporal tower has ended before."""
    fuses: bool


class FusedNetwork(Network):
    """The temporal tower is fused into the spatial one, which goes on as the spatiotemporal stream."""

    def __init__(self, config: ModelConfig, *, num_classes: int, flow_length: int) -> None:
        super().__init__()
        fusion = config.fusion
        channels = layer_channels(config.spatial, num_classes=num_classes)
        is_bilinear = fusion.method == "bilinear"
        self.keeps_temporal = config.keep_temporal_tower
        self.stops = _stops(config)
        self.conv_layer = _time_conv_layer(config)
        self.spatial = build_tower(
            config.spatial,
            in_channels=RGB_CHANNELS,
            num_classes=num_classes,
            upto=fusion.layers[-1] if is_bilinear else None,
            stacked={layer: channels[layer] for layer in fusion.layers if fusion.method == "concat"},
        )
        self.temporal = build_tower(
            config.temporal,
            in_channels=2 * flow_length,
            num_classes=num_classes,
            upto=None if self.keeps_temporal else [stop.temporal for stop in self.stops if stop.fuses][-1],
        )
        self.fusions = nn.ModuleDict(
            {layer: self._fusion_at(layer, fusion, num_channels=channels[layer]) for layer in fusion.layers}
        )
        if self.conv_layer is not None:
            self.time_conv = _time_conv(fusion, num_channels=channels[self.conv_layer])
        if fusion.temporal != "pool2d":
            self.time_pool = TimeMaxPool(window=fusion.pool_snippets, stride=fusion.pool_stride)
        if is_bilinear:
            self.classifier = FullyConnected(channels[fusion.layers[0]] ** 2, num_classes, classifies=True)

    def _fusion_at(self, layer: str, fusion: FusionConfig, *, num_channels: int) -> nn.Module:
        if fusion.method == "conv" and layer == self.conv_layer:
            return ConcatFusion()
        if fusion.method == "conv" and layer == CLASSIFIER and len(fusion.layers) > 1:
            # Feichtenhofer et al. 2016, table 2: fusing the scores after an earlier fusion adds no weights.
            return build_fusion(replace(fusion, method="sum"), num_channels=num_channels)
        return build_fusion(fusion, num_channels=num_channels, rectifies=layer != CLASSIFIER)

    def forward(self, rgb: Tensor | None, flow: Tensor | None) -> dict[str, Tensor]:
        """Logits (N, K) of the spatiotemporal stream ("fused") and, where it is kept, of the temporal tower."""
        rgb, flow = _wanted(rgb, "rgb"), _wanted(flow, "flow")
        num_samples = rgb.shape[0]
        spatial, temporal = rgb.flatten(0, 1), flow.flatten(0, 1)
        spatial_layer, temporal_layer = None, None
        for stop in self.stops:
            spatial = self.spatial(spatial, after=spatial_layer, upto=stop.spatial)
            spatial_layer = stop.spatial
            if stop.temporal is not None:
                temporal = self.temporal(temporal, after=temporal_layer, upto=stop.temporal)
                temporal_layer = stop.temporal
            if stop.fuses:
                spatial = self.fusions[stop.spatial](spatial, temporal)
                if stop.spatial == self.conv_layer:
                    spatial = self.time_conv(spatial, num_samples=num_samples)
            else:
                spatial = self.time_pool(spatial, num_samples=num_samples)
                if stop.temporal is not None:
                    temporal = self.time_pool(temporal, num_samples=num_samples)
        spatial = self.spatial(spatial, after=spatial_layer)
        if hasattr(self, "classifier"):
            spatial = self.classifier(spatial)
        outputs = {"fused": mean_scores(spatial, num_samples=num_samples)}
        if self.keeps_temporal:
            temporal = self.temporal(temporal, after=temporal_layer)
            outputs["temporal"] = mean_scores(temporal, num_samples=num_samples)
        return outputs


def build_network(config: ModelConfig, *, num_classes: int, flow_length: int) -> Network:
    """The network that `config` describes, initialised from torch's global random numbers.

    Args:
        config: the model's settings.
        num_classes: K.
        flow_length: L, the flow fields of a snippet.

    Raises:
        ConfigError: config.num_classes is another number than num_classes.
    """
    if config.num_classes not in (None, num_classes):
        raise ConfigError(
            f"model.num_classes is {config.num_classes}, but the data has {num_classes} classes: "
            "leave model.num_classes out, or choose other data"
        )
    network = LateNetwork if config.architecture == "late" else FusedNetwork
    return network(config, num_classes=num_classes, flow_length=flow_length)


def _wanted(frames: Tensor | None, stream: str) -> Tensor:
    """The frames, which a network with this stream cannot do without."""
    if frames is None:
        raise ConfigError(f"this network wants {stream}, got None: load both streams, or choose model.streams")
    return frames


def _check_fusion_layers(config: ModelConfig) -> None:
    """Refuse fusion layers that a tower lacks, that do not fit each other, or that leave nothing to do."""
    fusion = config.fusion
    spatial, temporal = layer_channels(config.spatial), layer_channels(config.temporal)
    order = list(spatial)
    for layer in fusion.layers:
        if layer not in spatial:
            raise ConfigError(
                f"model.fusion.layers: {config.spatial.backbone} has no layer {layer!r}; its layers are "
                + ", ".join(order)
            )
        other = counterpart(layer, among=list(temporal))
        if spatial[layer] != temporal[other]:
            raise ConfigError(
                f"model.fusion.layers: fusion wants as many maps from both towers, got {spatial[layer]} at spatial "
                f"{layer} and {temporal[other]} at temporal {other}: choose another layer, or the same backbone twice"
            )
    if list(fusion.layers) != sorted(fusion.layers, key=order.index):
        raise ConfigError(f"model.fusion.layers must follow the tower's order, got {list(fusion.layers)}")
    before_pool = order[: order.index(LAST_POOL)]
    if fusion.temporal == "conv3d" and not set(fusion.layers) & set(before_pool):
        raise ConfigError(
            f"model.fusion.temporal=conv3d wants a fusion layer before {LAST_POOL}, got {list(fusion.layers)}: choose "
            f"one of {', '.join(before_pool)}, or temporal pool2d or pool3d"
        )
    if fusion.method == "bilinear" and fusion.layers[0] not in before_pool:
        raise ConfigError(
            f"model.fusion.method=bilinear wants a layer before {LAST_POOL}, got {fusion.layers[0]}: choose one of "
            + ", ".join(before_pool)
        )
    if fusion.method == "concat" and CLASSIFIER in fusion.layers:
        raise ConfigError(
            f"model.fusion.method=concat cannot join class scores at {CLASSIFIER}: choose sum, max or conv"
        )


def _stops(config: ModelConfig) -> tuple[_Stop, ...]:
    """Where the towers halt, in the order of the way through them."""
    order = list(layer_channels(config.spatial))
    temporal_order = list(layer_channels(config.temporal))
    stops = [_Stop(layer, counterpart(layer, among=temporal_order), fuses=True) for layer in config.fusion.layers]
    if config.fusion.temporal != "pool2d":
        below_pool = temporal_order[temporal_order.index(LAST_POOL) - 1]
        last_fused = counterpart(config.fusion.layers[-1], among=temporal_order)
        goes_on = config.keep_temporal_tower or temporal_order.index(last_fused) > temporal_order.index(below_pool)
        pool = _Stop(order[order.index(LAST_POOL) - 1], below_pool if goes_on else None, fuses=False)
        # Fusion at the pool's own layer comes first: False sorts before True.
        stops = sorted([*stops, pool], key=lambda stop: (order.index(stop.spatial), not stop.fuses))
    return tuple(stops)


def _time_conv_layer(config: ModelConfig) -> str | None:
    """The fusion layer that the 3D convolution follows: the last one that still has all snippets."""
    if config.fusion.temporal != "conv3d":
        return None
    order = list(layer_channels(config.spatial))
    return [layer for layer in config.fusion.layers if order.index(layer) < order.index(LAST_POOL)][-1]


def _time_conv(fusion: FusionConfig, *, num_channels: int) -> TimeConv:
    """The 3D convolution; for conv fusion it mixes both towers' maps itself, else it follows the fusion."""
    stacked = 2 if fusion.method in ("conv", "concat") else 1
    out_maps = stacked * num_channels if fusion.method == "concat" else num_channels
    mixing = None
    if fusion.initialisation != "gaussian":
        mixing = (
            torch.eye(out_maps)
            if fusion.method == "concat"
            else mixing_matrix(num_channels, stacked=stacked, initialisation=fusion.initialisation)
        )
    return TimeConv(stacked * num_channels, out_maps, mixing=mixing)
