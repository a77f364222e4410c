"""Network architectures of the papers: late fusion, towers fused at layers, ST-ResNet, STFN.

late: Simonyan and Zisserman 2014. fused: Feichtenhofer, Pinz and Zisserman 2016 (sec. 3.4). st_resnet: Feichtenhofer,
Pinz and Wildes 2016, after its official code. stfn: Cho and Foroosh 2018, of which only the abstract is public.
"""

from collections.abc import Callable, Set
from dataclasses import replace
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from twostream_ray.errors import ConfigError
from twostream_ray.models.fusion import ConcatFusion, build_fusion, mixing_matrix
from twostream_ray.models.layers import CLASSIFIER, LAST_POOL, counterpart, is_head
from twostream_ray.models.parameter_groups import parameter_groups
from twostream_ray.models.settings import FusionConfig, ModelConfig, feature_layer, layer_channels
from twostream_ray.models.temporal import ResidualInception, TimeConv, TimeMaxPool, TimeResidualUnit, mean_scores
from twostream_ray.models.towers import Bottleneck, FullyConnected, Tower

MakeTower = Callable[..., Tower]
"""`build_tower` with all but `upto` and `stacked` filled in."""

RESIDUAL_STAGES = (2, 3, 4, 5)


class Network(nn.Module):
    """A two-stream network: snippets in, class scores out.

    `forward(rgb, flow)` takes RGB (N, T, 3, H, W) and flow (N, T, 2L, H, W), or None for the one it does not need, and
    returns logits (N, K) for every tower that has a loss of its own.
    """

    needs_rgb: bool = True
    """Whether forward wants RGB frames."""
    needs_flow: bool = True
    """Whether forward wants stacks of flow."""
    undecayed: Set[str] = frozenset()
    """As a tower's, where there are none."""
    head_classes: tuple[int, ...]
    """Classes of each data set; they add up to K."""

    def forward(self, rgb: Tensor | None, flow: Tensor | None) -> dict[str, Tensor]:
        """Logits (N, K) by tower."""
        raise NotImplementedError

    def scores(self, outputs: dict[str, Tensor]) -> Tensor:
        """What decides and is averaged over views, (N, K): the mean of the towers' logits (Feichtenhofer et al. 2016).

        The classes of all data sets side by side; those of different data sets do not compare.
        """
        return torch.stack(list(outputs.values())).mean(dim=0)

    def probabilities(self, outputs: dict[str, Tensor]) -> Tensor:
        """What a sample's classes get, (N, K) in [0, 1]; those of each data set add up to 1."""
        return torch.cat([F.softmax(head, dim=1) for head in self.split_heads(self.scores(outputs))], dim=1)

    def split_heads(self, logits: Tensor) -> tuple[Tensor, ...]:
        """Logits (N, K) as one (N, K_i) for each data set of multi-task training."""
        return logits.split(self.head_classes, dim=1)

    def parameter_groups(
        self, *, lr: float, weight_decay: float, bias_lr_factor: float = 2.0, layer_decay: float | None = None
    ) -> list[dict[str, Any]]:
        """Parameter groups of an optimiser, of what learns: `models.parameter_groups` says which.

        Raises:
            ConfigError: layer_decay was wanted of a network that is no chain of layers.
        """
        chains = [] if layer_decay is None else self.layer_chains()
        return parameter_groups(
            self,
            lr=lr,
            weight_decay=weight_decay,
            bias_lr_factor=bias_lr_factor,
            layer_decay=layer_decay or 1.0,
            layer_chains=chains,
        )

    def layer_chains(self) -> list[list[nn.Module]]:
        """The layers from frames to scores, in order, of each stream; those of a tower that ends early go on in others.

        Raises:
            ConfigError: there are no towers.
        """
        towers = [module for module in self.children() if isinstance(module, Tower)]
        if not towers:
            raise ConfigError("training.layer_decay wants a network of towers: leave it out")
        over_both = getattr(self, "classifier", None)
        return [
            [*tower.layers(), *([over_both] if over_both is not None and not is_head(tower.names[-1]) else [])]
            for tower in towers
        ]

    def checkpoint_activations(self) -> "Network":
        """Activation checkpointing: towers keep only the maps at their poolings, and compute the others again.

        Raises:
            ConfigError: a tower has batch normalisation that learns: its moments would move twice a step.
        """
        towers = [module for module in self.modules() if isinstance(module, Tower)]
        for tower in towers:
            norms = (module for module in tower.modules() if isinstance(module, nn.BatchNorm2d))
            if any(next(norm.parameters()).requires_grad for norm in norms):
                raise ConfigError(
                    "activation checkpointing goes with towers without batch normalisation (vgg16, vgg_m_2048), "
                    "or with frozen ones: set training.activation_checkpointing=false, or use training.micro_batches"
                )
        for tower in towers:
            tower.recomputes = True
        return self

    def to_channels_last(self) -> "Network":
        """Memory format channels_last of all convolutions, the fastest on GPUs; the maps follow by themselves."""
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                module.to(memory_format=torch.channels_last)
            elif isinstance(module, nn.Conv3d):
                module.to(memory_format=torch.channels_last_3d)
        return self


def _require(frames: Tensor | None, stream: str) -> Tensor:
    """The frames of a stream that this network needs.

    Raises:
        ConfigError: they are None.
    """
    if frames is None:
        raise ConfigError(f"this network wants {stream}, got None: load both streams, or choose model.streams")
    return frames


class LateNetwork(Network):
    """Towers that meet only in their scores (Simonyan and Zisserman 2014, sec. 2); also one stream alone."""

    def __init__(self, config: ModelConfig, *, spatial_tower: MakeTower, temporal_tower: MakeTower) -> None:
        super().__init__()
        self.needs_rgb = config.streams != "temporal"
        self.needs_flow = config.streams != "spatial"
        if self.needs_rgb:
            self.spatial = spatial_tower()
        if self.needs_flow:
            self.temporal = temporal_tower()

    def forward(self, rgb: Tensor | None, flow: Tensor | None) -> dict[str, Tensor]:
        """Logits (N, K) of each tower, averaged over snippets."""
        outputs = {}
        if self.needs_rgb:
            rgb = _require(rgb, "rgb")
            outputs["spatial"] = mean_scores(self.spatial(rgb.flatten(0, 1)), num_samples=rgb.shape[0])
        if self.needs_flow:
            flow = _require(flow, "flow")
            outputs["temporal"] = mean_scores(self.temporal(flow.flatten(0, 1)), num_samples=flow.shape[0])
        return outputs

    def scores(self, outputs: dict[str, Tensor]) -> Tensor:
        """What decides and is averaged, (N, K): the mean of the towers' softmax over the classes of each data set."""
        probabilities = [
            torch.cat([F.softmax(head, dim=1) for head in self.split_heads(logits)], dim=1)
            for logits in outputs.values()
        ]
        return torch.stack(probabilities).mean(dim=0)

    def probabilities(self, outputs: dict[str, Tensor]) -> Tensor:
        """What a sample's classes get, (N, K) in [0, 1]: the scores are probabilities already."""
        return self.scores(outputs)


class _Segment(NamedTuple):
    """A part of the towers' forward pass: up to these layers, then fuse there, or pool over time."""

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
        is_bilinear = fusion.method == "bilinear"
        self.keeps_temporal = config.keep_temporal_tower
        self.segments = _segments(config)
        self.conv_layer = _time_conv_layer(config)
        temporal_layers = [counterpart(layer, among=list(layer_channels(config.temporal))) for layer in fusion.layers]
        self.spatial = spatial_tower(
            upto=fusion.layers[-1] if is_bilinear else None,
            stacked={layer: channels[layer] for layer in fusion.layers if fusion.method == "concat"},
        )
        self.temporal = temporal_tower(upto=None if self.keeps_temporal else temporal_layers[-1])
        if config.freeze_below_fusion:
            self.spatial.freeze(fusion.layers[0])
            self.temporal.freeze(temporal_layers[0])
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
        rgb, flow = _require(rgb, "rgb"), _require(flow, "flow")
        num_samples = rgb.shape[0]
        spatial, temporal = rgb.flatten(0, 1), flow.flatten(0, 1)
        spatial_layer, temporal_layer = None, None
        for segment in self.segments:
            spatial = self.spatial(spatial, after=spatial_layer, upto=segment.spatial)
            spatial_layer = segment.spatial
            if segment.temporal is not None:
                temporal = self.temporal(temporal, after=temporal_layer, upto=segment.temporal)
                temporal_layer = segment.temporal
            if segment.fuses:
                spatial = self.fusions[segment.spatial](spatial, temporal)
                if segment.spatial == self.conv_layer:
                    spatial = self.time_conv(spatial, num_samples=num_samples)
            else:
                spatial = self.time_pool(spatial, num_samples=num_samples)
                if segment.temporal is not None:
                    temporal = self.time_pool(temporal, num_samples=num_samples)
        spatial = self.spatial(spatial, after=spatial_layer)
        if hasattr(self, "classifier"):
            spatial = self.classifier(spatial)
        outputs = {"fused": mean_scores(spatial, num_samples=num_samples)}
        if self.keeps_temporal:
            temporal = self.temporal(temporal, after=temporal_layer)
            outputs["temporal"] = mean_scores(temporal, num_samples=num_samples)
        return outputs

    def layer_chains(self) -> list[list[nn.Module]]:
        """A temporal tower that ends at the last fusion goes on in the spatial one."""
        spatial, temporal = super().layer_chains()
        if not self.keeps_temporal and not hasattr(self, "classifier"):
            last = [segment.spatial for segment in self.segments if segment.fuses][-1]
            temporal += self.spatial.layers(after=last)
        return [spatial, temporal]


class StResNet(Network):
    """Residual motion connections into appearance, and temporal filters in both (Feichtenhofer et al. 2016b, code).

    In every stage K, resKb of either tower convolves over snippets, and the branch of the appearance tower's resKb
    reads its own resKa before the ReLU joined by the motion tower's resKa after the ReLU; the identity stays unfused.
    """

    def __init__(self, config: ModelConfig, *, spatial_tower: MakeTower, temporal_tower: MakeTower) -> None:
        super().__init__()
        self.multiplies = config.st_resnet.injection == "multiply"
        self.pools_time = config.st_resnet.pools_time
        self.spatial, self.temporal = spatial_tower(), temporal_tower()
        for tower in (self.spatial, self.temporal):
            for stage in RESIDUAL_STAGES:
                _inflate(tower, f"res{stage}b")
        if self.pools_time:
            self.time_pool = TimeMaxPool(window=config.fusion.pool_snippets, stride=config.fusion.pool_stride)

    def forward(self, rgb: Tensor | None, flow: Tensor | None) -> dict[str, Tensor]:
        """Logits (N, K) of both towers, each with a loss of its own."""
        rgb, flow = _require(rgb, "rgb"), _require(flow, "flow")
        num_samples = rgb.shape[0]
        spatial, temporal = rgb.flatten(0, 1), flow.flatten(0, 1)
        above = None
        for stage in RESIDUAL_STAGES:
            fused, unit = f"res{stage}a", f"res{stage}b"
            unrectified = self.spatial(spatial, after=above, upto=fused)
            temporal = self.temporal(temporal, after=above, upto=f"{fused}_relu")
            injected = unrectified * temporal if self.multiplies else unrectified + temporal
            spatial = self.spatial(unrectified, after=fused, upto=f"{fused}_relu")
            spatial = self.spatial.get_submodule(unit)(spatial, injected=injected, num_samples=num_samples)
            temporal = self.temporal.get_submodule(unit)(temporal, injected=temporal, num_samples=num_samples)
            above = unit
        outputs = {}
        for name, tower, maps in (("spatial", self.spatial, spatial), ("temporal", self.temporal, temporal)):
            last_maps = tower(maps, after=above, upto="res5c_relu")
            if self.pools_time:
                last_maps = self.time_pool(last_maps, num_samples=num_samples)
            outputs[name] = mean_scores(tower(last_maps, after="res5c_relu"), num_samples=num_samples)
        return outputs


class Stfn(Network):
    """Two sets of residual inception blocks over the whole video, and a fusion connection (Cho and Foroosh 2018).

    The abstract says: blocks for the temporal dynamics of appearance and of motion, over the features of the whole
    video, a fusion connection between them, end to end, on any base network. Ours is the rest: one set on each
    tower's features (below fc8, averaged over space), fusion.method as the connection, the mean over time as the
    video's representation, one classifier; block sizes in `StfnConfig`.
    """

    def __init__(
        self, config: ModelConfig, *, num_classes: int, spatial_tower: MakeTower, temporal_tower: MakeTower
    ) -> None:
        super().__init__()
        channels = layer_channels(config.spatial)[feature_layer(config.spatial)]
        self.spatial = spatial_tower(upto=feature_layer(config.spatial))
        self.temporal = temporal_tower(upto=feature_layer(config.temporal))
        self.appearance, self.motion = (
            nn.Sequential(
                *(
                    ResidualInception(
                        channels,
                        branch_maps=config.stfn.branch_maps,
                        residual_scale=config.stfn.residual_scale,
                    )
                    for _ in range(config.stfn.num_blocks)
                )
            )
            for _ in range(2)
        )
        self.fusion = build_fusion(config.fusion, num_channels=channels)
        in_maps = 2 * channels if config.fusion.method == "concat" else channels
        self.classifier = FullyConnected(in_maps, num_classes, classifies=True)

    def forward(self, rgb: Tensor | None, flow: Tensor | None) -> dict[str, Tensor]:
        """Logits (N, K) of the whole video."""
        rgb, flow = _require(rgb, "rgb"), _require(flow, "flow")
        appearance = self.appearance(_features_over_time(self.spatial(rgb.flatten(0, 1)), num_samples=rgb.shape[0]))
        motion = self.motion(_features_over_time(self.temporal(flow.flatten(0, 1)), num_samples=rgb.shape[0]))
        fused = self.fusion(appearance[..., None], motion[..., None])
        return {"fused": self.classifier(fused.mean(dim=(2, 3), keepdim=True)).flatten(1)}


def _segments(config: ModelConfig) -> tuple[_Segment, ...]:
    """The forward pass of the towers, in order."""
    order = list(layer_channels(config.spatial))
    temporal_order = list(layer_channels(config.temporal))
    segments = [_Segment(layer, counterpart(layer, among=temporal_order), fuses=True) for layer in config.fusion.layers]
    if config.fusion.temporal != "pool2d":
        below_pool = temporal_order[temporal_order.index(LAST_POOL) - 1]
        last_fused = counterpart(config.fusion.layers[-1], among=temporal_order)
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


def _inflate(tower: Tower, name: str) -> None:
    """Replace a residual unit by one that convolves over snippets, starting from the unit's own weights."""
    unit = cast(Bottleneck, tower.get_submodule(name))
    tower.add_module(
        name,
        TimeResidualUnit(
            convolutions=(unit.branch2a, unit.branch2b, unit.branch2c), norms=(unit.bn2a, unit.bn2b, unit.bn2c)
        ),
    )
    if name in tower.frozen:
        tower.freeze(name)


def _features_over_time(maps: Tensor, *, num_samples: int) -> Tensor:
    """Snippet features, (N * T, D, H, W) -> (N, D, T): the mean over space."""
    return maps.mean(dim=(2, 3)).unflatten(0, (num_samples, -1)).transpose(1, 2)
