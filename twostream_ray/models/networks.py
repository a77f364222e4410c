"""Network architectures of the papers: late fusion, towers fused at layers, ST-ResNet, STFN.

late: Simonyan and Zisserman 2014. fused: Feichtenhofer, Pinz and Zisserman 2016 (sec. 3.4). st_resnet: Feichtenhofer,
Pinz and Wildes 2016, after its official code. stfn: Cho and Foroosh 2018, of which only the abstract is public.
"""

from collections.abc import Callable, Set
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from twostream_ray.errors import ConfigError
from twostream_ray.models.fusion import build_fusion
from twostream_ray.models.layers import is_head
from twostream_ray.models.parameter_groups import parameter_groups
from twostream_ray.models.settings import ModelConfig, feature_layer, layer_channels
from twostream_ray.models.temporal import ResidualInception, TimeMaxPool, TimeResidualUnit, mean_scores
from twostream_ray.models.token_maps import grid
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
    """Whether forward needs RGB frames."""
    needs_flow: bool = True
    """Whether forward needs flow stacks."""
    undecayed: Set[str] = frozenset()
    """Names of parameters without weight decay, for networks without towers."""
    head_classes: tuple[int, ...]
    """Number of classes of each data set; they add up to K."""

    def forward(self, rgb: Tensor | None, flow: Tensor | None) -> dict[str, Tensor]:
        """Logits (N, K) by tower."""
        raise NotImplementedError

    def scores(self, outputs: dict[str, Tensor]) -> Tensor:
        """Scores to average over views and rank, (N, K): mean of the towers' logits (Feichtenhofer et al. 2016).

        Classes of all data sets are concatenated; scores of different data sets are not comparable.
        """
        return torch.stack(list(outputs.values())).mean(dim=0)

    def probabilities(self, outputs: dict[str, Tensor]) -> Tensor:
        """Class probabilities (N, K); those of each data set add up to 1."""
        return torch.cat([F.softmax(head, dim=1) for head in self.split_heads(self.scores(outputs))], dim=1)

    def split_heads(self, logits: Tensor) -> tuple[Tensor, ...]:
        """Logits (N, K) as one (N, K_i) for each data set of multi-task training."""
        return logits.split(self.head_classes, dim=1)

    def parameter_groups(
        self, *, lr: float, weight_decay: float, bias_lr_factor: float = 2.0, layer_decay: float | None = None
    ) -> list[dict[str, Any]]:
        """Optimiser parameter groups of all trainable parameters; see `models.parameter_groups`.

        Raises:
            ConfigError: layer_decay is set, but the network is not a chain of layers.
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
        """The layers of each stream from frames to scores, in order; a tower that ends early continues in another.

        Raises:
            ConfigError: there are no towers.
        """
        towers = [module for module in self.children() if isinstance(module, Tower)]
        if not towers:
            raise ConfigError("training.layer_decay needs a network of towers: leave it out")
        joint_classifier = getattr(self, "classifier", None)

        def joint(tower: Tower) -> list[nn.Module]:
            return [] if joint_classifier is None or is_head(tower.names[-1]) else [joint_classifier]

        return [[*tower.layers(), *joint(tower)] for tower in towers]

    def checkpoint_activations(self) -> "Network":
        """Activation checkpointing: towers keep only the maps at their pooling layers and recompute the others.

        Raises:
            ConfigError: a tower has trainable batch normalisation, whose moments would be updated twice per step.
        """
        towers = [module for module in self.modules() if isinstance(module, Tower)]
        for tower in towers:
            norms = (module for module in tower.modules() if isinstance(module, nn.BatchNorm2d))
            if any(next(norm.parameters()).requires_grad for norm in norms):
                raise ConfigError(
                    "activation checkpointing needs towers without batch normalisation (vgg16, vgg_m_2048), "
                    "or with frozen ones: set training.activation_checkpointing=false, or use training.micro_batches"
                )
        for tower in towers:
            tower.recomputes = True
        return self

    def to_channels_last(self) -> "Network":
        """Convert all convolutions to the memory format channels_last, the fastest on GPUs; activations follow."""
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                module.to(memory_format=torch.channels_last)
            elif isinstance(module, nn.Conv3d):
                module.to(memory_format=torch.channels_last_3d)
        return self


def require_stream(frames: Tensor | None, stream: str) -> Tensor:
    """The frames of a stream that this network needs.

    Raises:
        ConfigError: they are None.
    """
    if frames is None:
        raise ConfigError(f"this network needs {stream}, got None: load both streams, or set model.streams")
    return frames


class LateNetwork(Network):
    """Late fusion: towers are joined by their scores only (Simonyan and Zisserman 2014); also single streams."""

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
            rgb = require_stream(rgb, "rgb")
            outputs["spatial"] = mean_scores(grid(self.spatial(rgb.flatten(0, 1))), num_samples=rgb.shape[0])
        if self.needs_flow:
            flow = require_stream(flow, "flow")
            outputs["temporal"] = mean_scores(grid(self.temporal(flow.flatten(0, 1))), num_samples=flow.shape[0])
        return outputs

    def scores(self, outputs: dict[str, Tensor]) -> Tensor:
        """Scores to average and rank, (N, K): mean of the towers' softmax over the classes of each data set."""
        probabilities = [
            torch.cat([F.softmax(head, dim=1) for head in self.split_heads(logits)], dim=1)
            for logits in outputs.values()
        ]
        return torch.stack(probabilities).mean(dim=0)

    def probabilities(self, outputs: dict[str, Tensor]) -> Tensor:
        """Class probabilities (N, K): the scores themselves."""
        return self.scores(outputs)


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
        rgb, flow = require_stream(rgb, "rgb"), require_stream(flow, "flow")
        num_samples = rgb.shape[0]
        spatial, temporal = rgb.flatten(0, 1), flow.flatten(0, 1)
        above = None
        for stage in RESIDUAL_STAGES:
            fused, unit = f"res{stage}a", f"res{stage}b"
            unrectified = grid(self.spatial(spatial, after=above, upto=fused))
            temporal = grid(self.temporal(temporal, after=above, upto=f"{fused}_relu"))
            injected = unrectified * temporal if self.multiplies else unrectified + temporal
            spatial = grid(self.spatial(unrectified, after=fused, upto=f"{fused}_relu"))
            spatial = self.spatial.get_submodule(unit)(spatial, injected=injected, num_samples=num_samples)
            temporal = self.temporal.get_submodule(unit)(temporal, injected=temporal, num_samples=num_samples)
            above = unit
        outputs = {}
        for name, tower, maps in (("spatial", self.spatial, spatial), ("temporal", self.temporal, temporal)):
            last_maps = tower(maps, after=above, upto="res5c_relu")
            if self.pools_time:
                last_maps = self.time_pool(last_maps, num_samples=num_samples)
            outputs[name] = mean_scores(grid(tower(last_maps, after="res5c_relu")), num_samples=num_samples)
        return outputs


class Stfn(Network):
    """Two sets of residual inception blocks over the whole video, and a fusion connection (Cho and Foroosh 2018).

    From the abstract: blocks for the temporal dynamics of appearance and of motion, over the features of the whole
    video, a fusion connection between them, end to end, on any base network. The rest is our choice: one set on each
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
        rgb, flow = require_stream(rgb, "rgb"), require_stream(flow, "flow")
        appearance = self.appearance(
            _features_over_time(grid(self.spatial(rgb.flatten(0, 1))), num_samples=rgb.shape[0])
        )
        motion = self.motion(_features_over_time(grid(self.temporal(flow.flatten(0, 1))), num_samples=rgb.shape[0]))
        fused = self.fusion(appearance[..., None], motion[..., None])
        return {"fused": self.classifier(fused.mean(dim=(2, 3), keepdim=True)).flatten(1)}


def _inflate(tower: Tower, name: str) -> None:
    """Replace a residual unit by one that convolves over snippets, initialised from the unit's weights."""
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
