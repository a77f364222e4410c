"""Fused network: a temporal tower joins a spatial one at layers (Feichtenhofer, Pinz and Zisserman 2016, sec. 3.4)."""

from dataclasses import replace
from typing import NamedTuple, cast

import torch
from torch import Tensor, nn

from twostream_ray.models.fusion import ConcatFusion, build_fusion, mixing_matrix
from twostream_ray.models.layers import CLASSIFIER, LAST_POOL
from twostream_ray.models.networks import MakeTower, Network, require_stream
from twostream_ray.models.settings import FusionConfig, ModelConfig, layer_channels, temporal_layer
from twostream_ray.models.temporal import TimeConv, TimeMaxPool, mean_scores
from twostream_ray.models.token_maps import Maps, TokenMaps, grid, with_grid
from twostream_ray.models.towers import FullyConnected


class _Segment(NamedTuple):
    """A segment of the forward pass: run the towers up to these layers, then fuse, or pool over time."""

    spatial: str
    temporal: str | None
    """None: the temporal tower ended before."""
    fuses: bool


class FusedNetwork(Network):
    """The temporal tower is fused into the spatial one, which continues as the spatiotemporal stream."""

    def __init__(
        self, config: ModelConfig, *, num_classes: int, spatial_tower: MakeTower, temporal_tower: MakeTower
    ) -> None:
        super().__init__()
        fusion = config.fusion
        channels = layer_channels(config.spatial, num_classes=num_classes)
        temporal_channels = layer_channels(config.temporal, num_classes=num_classes)
        # The maps of timm's networks have signs, and their layers cannot take more maps than they were made for.
        self.is_timm = config.spatial.is_timm
        is_bilinear = fusion.method == "bilinear"
        self.keeps_temporal = config.keep_temporal_tower
        self.segments = _segments(config)
        self.conv_layer = _time_conv_layer(config)
        temporal_layers = [temporal_layer(layer, config=config) for layer in fusion.layers]
        self.spatial = spatial_tower(
            upto=fusion.layers[-1] if is_bilinear else None,
            stacked={}
            if self.is_timm or fusion.method != "concat"
            else {name: channels[name] for name in fusion.layers},
        )
        self.temporal = temporal_tower(upto=None if self.keeps_temporal else temporal_layers[-1])
        if config.freeze_below_fusion:
            self.spatial.freeze(fusion.layers[0])
            self.temporal.freeze(temporal_layers[0])
        self.projections = nn.ModuleDict(
            {
                layer: _projection(temporal_channels[other], channels[layer])
                for layer, other in zip(fusion.layers, temporal_layers, strict=True)
                if temporal_channels[other] != channels[layer]
            }
        )
        self.fusions = nn.ModuleDict(
            {layer: self._fusion_at(layer, fusion, num_channels=channels[layer]) for layer in fusion.layers}
        )
        if self.conv_layer is not None:
            self.time_conv = _time_conv(fusion, num_channels=channels[self.conv_layer], is_timm=self.is_timm)
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
        if layer == self.conv_layer:
            return build_fusion(fusion, num_channels=num_channels)
        rectifies = layer != CLASSIFIER and not self.is_timm
        return build_fusion(fusion, num_channels=num_channels, rectifies=rectifies, stacks=not self.is_timm)

    def forward(self, rgb: Tensor | None, flow: Tensor | None) -> dict[str, Tensor]:
        """Logits (N, K) of the spatiotemporal stream ("fused") and, where it is kept, of the temporal tower."""
        rgb, flow = require_stream(rgb, "rgb"), require_stream(flow, "flow")
        num_samples = rgb.shape[0]
        spatial: Maps = rgb.flatten(0, 1)
        temporal: Maps = flow.flatten(0, 1)
        spatial_layer, temporal_layer = None, None
        for segment in self.segments:
            spatial = self.spatial(spatial, after=spatial_layer, upto=segment.spatial)
            spatial_layer = segment.spatial
            if segment.temporal is not None:
                temporal = self.temporal(temporal, after=temporal_layer, upto=segment.temporal)
                temporal_layer = segment.temporal
            if segment.fuses:
                fused = self._fused(segment.spatial, grid(spatial), grid(temporal), num_samples=num_samples)
                spatial = with_grid(spatial, fused)
            else:
                spatial = self._pooled(spatial, num_samples=num_samples)
                if segment.temporal is not None:
                    temporal = self._pooled(temporal, num_samples=num_samples)
        spatial = grid(self.spatial(spatial, after=spatial_layer))
        if hasattr(self, "classifier"):
            spatial = cast(Tensor, self.classifier(spatial))
        outputs = {"fused": mean_scores(spatial, num_samples=num_samples)}
        if self.keeps_temporal:
            temporal = grid(self.temporal(temporal, after=temporal_layer))
            outputs["temporal"] = mean_scores(temporal, num_samples=num_samples)
        return outputs

    def layer_chains(self) -> list[list[nn.Module]]:
        """The layers of each stream; a temporal tower that ends at the last fusion continues in the spatial tower."""
        spatial, temporal = super().layer_chains()
        if not self.keeps_temporal and not hasattr(self, "classifier"):
            last = [segment.spatial for segment in self.segments if segment.fuses][-1]
            temporal += self.spatial.layers(after=last)
        return [spatial, temporal]

    def _pooled(self, state: Maps, *, num_samples: int) -> Maps:
        """Maximum over snippets, also of a transformer's class token and registers."""
        maps = self.time_pool(grid(state), num_samples=num_samples)
        if isinstance(state, TokenMaps):
            return TokenMaps(maps, self.time_pool(state.prefix, num_samples=num_samples))
        return cast(Tensor, maps)

    def _fused(self, layer: str, spatial: Tensor, temporal: Tensor, *, num_samples: int) -> Tensor:
        """Fuse the maps of a layer, (N * T, D, H, W) twice -> (N * T, D', H, W)."""
        if layer in self.projections:
            temporal = self.projections[layer](temporal)
        fused: Tensor = self.fusions[layer](spatial, temporal)
        return self.time_conv(fused, num_samples=num_samples) if layer == self.conv_layer else fused


def _projection(in_maps: int, out_maps: int) -> nn.Conv2d:
    """1x1 convolution that matches the temporal tower's number of maps to the spatial tower's."""
    projection = nn.Conv2d(in_maps, out_maps, kernel_size=1)
    nn.init.kaiming_normal_(projection.weight, nonlinearity="linear")
    nn.init.zeros_(projection.bias)  # type: ignore[arg-type]
    return projection


def _segments(config: ModelConfig) -> tuple[_Segment, ...]:
    """The segments of the forward pass, in order."""
    order = list(layer_channels(config.spatial))
    temporal_order = list(layer_channels(config.temporal))
    segments = [_Segment(layer, temporal_layer(layer, config=config), fuses=True) for layer in config.fusion.layers]
    if config.fusion.temporal != "pool2d":
        below_pool = temporal_order[temporal_order.index(LAST_POOL) - 1]
        last_fused = temporal_layer(config.fusion.layers[-1], config=config)
        continues = config.keep_temporal_tower or temporal_order.index(last_fused) > temporal_order.index(below_pool)
        pool = _Segment(order[order.index(LAST_POOL) - 1], below_pool if continues else None, fuses=False)
        # Fusion at the pool's own layer comes first: False sorts before True.
        segments = sorted([*segments, pool], key=lambda segment: (order.index(segment.spatial), not segment.fuses))
    return tuple(segments)


def _time_conv_layer(config: ModelConfig) -> str | None:
    """The fusion layer that the 3D convolution follows: the last one that still has all snippets."""
    if config.fusion.temporal != "conv3d":
        return None
    order = list(layer_channels(config.spatial))
    return [layer for layer in config.fusion.layers if order.index(layer) < order.index(LAST_POOL)][-1]


def _time_conv(fusion: FusionConfig, *, num_channels: int, is_timm: bool) -> TimeConv:
    """The 3D convolution; for conv fusion it mixes both towers' maps itself, else it follows the fusion."""
    stacked = 2 if fusion.method in ("conv", "concat") else 1
    out_maps = stacked * num_channels if fusion.method == "concat" and not is_timm else num_channels
    mixing = None
    if fusion.initialisation != "gaussian":
        mixing = (
            torch.eye(out_maps)
            if out_maps == stacked * num_channels
            else mixing_matrix(num_channels, stacked=stacked, initialisation=fusion.initialisation)
        )
    return TimeConv(stacked * num_channels, out_maps, mixing=mixing, rectifies=not is_timm)
