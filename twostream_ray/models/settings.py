"""Model settings of the two-stream family, with validation of their combinations.

Free of torch, which takes seconds to import, so that the command line can import them cheaply.
"""

from dataclasses import dataclass, field
from typing import Literal, get_args

from twostream_ray.errors import ConfigError
from twostream_ray.models.layers import (
    CLASSIFIER,
    DROPOUT,
    LAST_POOL,
    RGB_CHANNELS,
    TIMM,
    as_table,
    counterpart,
    layer_specs,
    reductions,
)
from twostream_ray.settings.bounds import require_within

Architecture = Literal["late", "fused", "st_resnet", "stfn", "clip3d"]
Streams = Literal["both", "spatial", "temporal"]
Method = Literal["sum", "max", "concat", "conv", "bilinear"]
TemporalFusion = Literal["pool2d", "pool3d", "conv3d"]
Initialisation = Literal["identity", "official", "gaussian"]
Injection = Literal["add", "multiply"]
VideoNetwork = Literal["r2plus1d_18", "r3d_18", "mc3_18", "mvit_v2_s"]

PUBLISHED_BY_TIMM = "timm"
"""Value of `weights` for timm's published weights."""
PUBLISHED_WEIGHTS = ("imagenet", "kinetics400", PUBLISHED_BY_TIMM)
"""Values of `weights` that are not a path or URI."""


@dataclass(frozen=True, kw_only=True)
class TowerConfig:
    """One stream's network."""

    backbone: str = "vgg16"
    """vgg16, vgg_m_2048 and resnet50 are the papers'; vgg_small is for small frames and few cores; timm:NAME is any
    network of timm (timm:convnext_tiny), its layers under timm's names, "_" for "." (stages_2, layer3, blocks_5)."""
    weights: str | None = None
    """Initial weights: None is random, "imagenet" torchvision's weights, "timm" those that timm publishes under
    the backbone's name, else the path or URI of a state dict (.safetensors, or .pth read without running code)."""
    dropout: float = 0.85
    """Dropout probability before each fully connected layer but the first, in [0, 1)."""
    width: int | None = None
    """Feature maps of the first layer, all others in proportion; None is the paper's width (vgg_small: 32)."""
    frozen_through: str | None = None
    """Last frozen layer (drop7: only the classifier is trained); None trains all layers."""
    drop_path: float = 0.0
    """Stochastic depth of a timm network (Huang et al. 2016): probability that a sample skips the last residual block;
    it increases linearly from 0 at the first block; in [0, 1)."""

    @property
    def is_timm(self) -> bool:
        """Whether the tower is a network of timm."""
        return self.backbone.startswith(TIMM)

    def __post_init__(self) -> None:
        require_within(self, dropout="[0, 1)", width="[1, 4_096]", drop_path="[0, 1)")
        if self.is_timm:
            if self.width is not None:
                raise ConfigError(f"backbone {self.backbone} has a fixed width, got width={self.width}: leave it out")
        else:
            as_table(self.backbone)
            if self.drop_path or self.weights == PUBLISHED_BY_TIMM:
                raise ConfigError(
                    f"drop_path and weights={PUBLISHED_BY_TIMM} need a backbone {TIMM}NAME, got {self.backbone}: "
                    "leave them out, or choose such a backbone"
                )
        if self.weights == "kinetics400":
            raise ConfigError(
                f"weights=kinetics400 exists for networks over video (model.clip3d.weights), not for {self.backbone}: "
                f"give the path or URI of a file{', or weights=' + PUBLISHED_BY_TIMM if self.is_timm else ''}"
            )
        if self.weights == "imagenet" and self.backbone not in ("vgg16", "resnet50"):
            raise ConfigError(
                f"weights=imagenet exists for vgg16 and resnet50, not for {self.backbone}: give the path or URI of a "
                ".safetensors or .pth file" + (f", or weights={PUBLISHED_BY_TIMM}" if self.is_timm else "")
            )
        if self.weights == "imagenet" and self.width is not None:
            raise ConfigError(f"weights=imagenet needs the full width, got width={self.width}: leave width out")
        if self.frozen_through is not None and self.frozen_through not in layer_channels(self):
            raise ConfigError(
                f"frozen_through names no layer of {self.backbone}: {self.frozen_through!r}; its layers are "
                + ", ".join(layer_channels(self))
            )


@dataclass(frozen=True, kw_only=True)
class FusionConfig:
    """Where and how the temporal tower is fused into the spatial one (Feichtenhofer et al. 2016, sec. 3)."""

    method: Method = "conv"
    """sum, max, concat (the next layer takes twice the maps), conv (learned), bilinear (no FC layers but the last)."""
    layers: tuple[str, ...] = ("relu5_3",)
    """Layers of the spatial tower after which the temporal tower's maps are fused in, in order of depth."""
    temporal: TemporalFusion = "conv3d"
    """pool2d averages the snippets' scores; pool3d takes maxima over them at pool5; conv3d convolves 3x3x3 before."""
    initialisation: Initialisation = "official"
    """A learned fusion starts as identity (sum), official (0.25 spatial + 0.75 temporal) or gaussian (0.01 randn)."""
    pool_snippets: int = 5
    """Temporal window of the 3D pooling in snippets; a sample with fewer is pooled as one window."""
    pool_stride: int = 2
    """Temporal stride of the 3D pooling in snippets; the windows' scores are averaged."""

    def __post_init__(self) -> None:
        for key, value, valid in (
            ("method", self.method, get_args(Method)),
            ("temporal", self.temporal, get_args(TemporalFusion)),
            ("initialisation", self.initialisation, get_args(Initialisation)),
        ):
            if value not in valid:
                raise ConfigError(f"fusion.{key} must be one of {', '.join(valid)}, got {value!r}")
        if not self.layers or len(set(self.layers)) != len(self.layers):
            raise ConfigError(f"fusion.layers must name one layer or several different ones, got {list(self.layers)}")
        require_within(self, "fusion.", pool_snippets="[1, 1_000]", pool_stride="[1, 1_000]")
        if self.method == "bilinear" and (len(self.layers) > 1 or self.temporal != "pool2d"):
            raise ConfigError(
                "fusion.method=bilinear leaves no maps to fuse or pool again: it wants one entry in fusion.layers and "
                f"fusion.temporal=pool2d, got {list(self.layers)} and {self.temporal}"
            )


@dataclass(frozen=True, kw_only=True)
class StResNetConfig:
    """Settings of ST-ResNet only (Feichtenhofer, Pinz and Wildes 2016)."""

    injection: Injection = "add"
    """How motion enters the appearance units: add, or multiply (the authors' variant of 2017)."""
    pools_time: bool = False
    """Max-pool over snippets before pool5, by fusion.pool_snippets and pool_stride (the second training stage)."""

    def __post_init__(self) -> None:
        if self.injection not in get_args(Injection):
            raise ConfigError(f"st_resnet.injection must be one of add, multiply, got {self.injection!r}")


@dataclass(frozen=True, kw_only=True)
class StfnConfig:
    """Sizes of the two sets of residual inception blocks: our reading, as only the paper's abstract is public."""

    num_blocks: int = 2
    """Residual inception blocks in either set."""
    branch_maps: int = 128
    """Feature maps of each of a block's three branches."""
    residual_scale: float = 0.2
    """Scale of a block's residual, in (0, 1]; 0.1 to 0.3 stabilises wide networks (Szegedy et al. 2016)."""

    def __post_init__(self) -> None:
        require_within(self, "stfn.", num_blocks="[1, 100]", branch_maps="[1, 16_384]", residual_scale="(0, 1]")


@dataclass(frozen=True, kw_only=True)
class Clip3dConfig:
    """A baseline network of torchvision on the RGB frames of a sample, without flow."""

    network: VideoNetwork = "r2plus1d_18"
    """r2plus1d_18, r3d_18 and mc3_18 (Tran et al. 2018) take any number and size of frames; mvit_v2_s (Li et al. 2022)
    16 snippets of 224 px."""
    weights: str | None = None
    """Initial weights: None is random, "kinetics400" torchvision's weights, else the path or URI of a state dict
    (.safetensors, or .pth read without running code)."""
    width: int | None = None
    """Feature maps of the first stage, all others in proportion; None is the paper's width, 64. Not of mvit_v2_s."""

    def __post_init__(self) -> None:
        if self.network not in get_args(VideoNetwork):
            raise ConfigError(
                f"clip3d.network must be one of {', '.join(get_args(VideoNetwork))}, got {self.network!r}"
            )
        require_within(self, "clip3d.", width="[1, 4_096]")
        if self.width is not None and self.network == "mvit_v2_s":
            raise ConfigError(f"clip3d.width is of the residual networks, got {self.width} for mvit_v2_s: leave it out")
        if self.weights in PUBLISHED_WEIGHTS and self.weights != "kinetics400":
            raise ConfigError(
                f"clip3d.weights={self.weights} exists for networks over images, not for {self.network}: give the path "
                "or URI of a file, or kinetics400"
            )
        if self.width is not None and self.weights == "kinetics400":
            raise ConfigError(
                f"clip3d.weights=kinetics400 needs the full width, got clip3d.width={self.width}: leave width out"
            )


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """A network of the two-stream family, or one over RGB frames alone to compare it with."""

    architecture: Architecture = "fused"
    """late (scores are averaged), fused (feature maps are), st_resnet (motion enters residual units), stfn; clip3d (a
    network over the RGB frames alone)."""
    streams: Streams = "both"
    """both towers, or a single one, which needs architecture late; not used by clip3d."""
    spatial: TowerConfig = field(default_factory=TowerConfig)
    """The tower of RGB frames."""
    temporal: TowerConfig = field(default_factory=TowerConfig)
    """The tower of optical flow stacks."""
    fusion: FusionConfig = field(default_factory=FusionConfig)
    """How a fused network joins its towers; stfn uses the method only, st_resnet the pooling, late nothing."""
    st_resnet: StResNetConfig = field(default_factory=StResNetConfig)
    """Used by architecture st_resnet only."""
    stfn: StfnConfig = field(default_factory=StfnConfig)
    """Used by architecture stfn only."""
    clip3d: Clip3dConfig = field(default_factory=Clip3dConfig)
    """Used by architecture clip3d only, which uses neither towers nor fusion."""
    keep_temporal_tower: bool = True
    """Run a fused network's temporal tower to its own scores and loss; False ends it at the last fusion layer."""
    freeze_below_fusion: bool = False
    """Train both towers only above the first fusion layer (official code of 2016); needs pretrained towers."""
    num_classes: int | None = None
    """K; None takes it from the data."""
    head_classes: tuple[int, ...] = ()
    """Classes per data set in multi-task training, adding up to K (Simonyan and Zisserman 2014); () is a single one."""

    @property
    def averages(self) -> Literal["logits", "probabilities"]:
        """What is averaged over towers and views: softmax scores in late fusion (S&Z 2014), otherwise logits."""
        return "probabilities" if self.architecture == "late" else "logits"

    @property
    def backbones(self) -> tuple[str, ...]:
        """The backbones: one per stream, or the video network of clip3d."""
        if self.architecture == "clip3d":
            return (self.clip3d.network,)
        towers = {"spatial": self.spatial, "temporal": self.temporal}
        return tuple(tower.backbone for stream, tower in towers.items() if self.streams in ("both", stream))

    @property
    def reads_flow(self) -> bool:
        """Whether the network takes optical flow."""
        return self.architecture != "clip3d" and self.streams != "spatial"

    @property
    def libraries(self) -> tuple[str, ...]:
        """Python distributions, besides torch, that inference with the network needs."""
        if self.architecture == "clip3d":
            return ("torchvision",)
        return ("timm",) if any(backbone.startswith(TIMM) for backbone in self.backbones) else ()

    def __post_init__(self) -> None:
        for key, value, valid in (
            ("architecture", self.architecture, get_args(Architecture)),
            ("streams", self.streams, get_args(Streams)),
        ):
            if value not in valid:
                raise ConfigError(f"model.{key} must be one of {', '.join(valid)}, got {value!r}")
        require_within(self, "model.", num_classes="[1, 1_000_000]", head_classes="[1, 1_000_000]")
        if self.head_classes and self.num_classes not in (None, sum(self.head_classes)):
            raise ConfigError(
                "model.head_classes must add up to model.num_classes, got "
                f"{list(self.head_classes)} and {self.num_classes}"
            )
        if self.architecture != "late" and self.streams != "both":
            raise ConfigError(
                f"model.streams={self.streams} goes with model.architecture=late, got {self.architecture}: "
                "choose architecture late for one stream alone, or streams both"
            )
        if self.freeze_below_fusion and self.architecture != "fused":
            raise ConfigError(
                f"model.freeze_below_fusion goes with model.architecture=fused, got {self.architecture}: "
                "name each tower's frozen_through instead"
            )
        if self.architecture == "fused":
            _check_fusion_layers(self)
        elif self.architecture in ("st_resnet", "stfn"):
            _check_equal_towers(self)


def layer_channels(config: TowerConfig, *, num_classes: int = 1) -> dict[str, int]:
    """Layer -> D of its output, in order, of the spatial tower that `config` describes; builds no module.

    Raises:
        ConfigError: the backbone is one of timm's that is not known, or cannot be cut into layers.
    """
    if config.is_timm:
        from twostream_ray.models.timm_networks import layer_table  # only here: it imports torch

        table = layer_table(config.backbone)
        features = table[-1].channels
        return {row.name: row.channels for row in table} | {
            LAST_POOL: features,
            DROPOUT: features,
            CLASSIFIER: num_classes,
        }
    channels: dict[str, int] = {}
    maps = RGB_CHANNELS
    for spec in layer_specs(
        as_table(config.backbone), width=config.width, in_channels=RGB_CHANNELS, num_classes=num_classes
    ):
        maps = maps if spec.channels is None else spec.channels
        channels[spec.name] = maps
    return channels


def temporal_layer(layer: str, *, config: ModelConfig) -> str:
    """The layer of the temporal tower that is fused into `layer` of the spatial one.

    Of the same name, else of the same kind and stage (relu5 for relu5_3), else, where a network of timm is in it, the
    last one of the same scale.

    Raises:
        ConfigError: there is none.
    """
    among = list(layer_channels(config.temporal))
    if layer in among or not (config.spatial.is_timm or config.temporal.is_timm):
        return counterpart(layer, among=among)
    reduction, theirs = layer_reductions(config.spatial)[layer], layer_reductions(config.temporal)
    matches = [name for name, its in theirs.items() if its == reduction]
    if not matches:
        raise ConfigError(
            f"model.fusion.layers: no layer of {config.temporal.backbone} has maps at 1/{reduction} of the frame as "
            f"{layer} of {config.spatial.backbone} has: "
            + ", ".join(f"{name} 1/{its}" for name, its in theirs.items() if its)
        )
    return matches[-1]


def layer_reductions(config: TowerConfig) -> dict[str, int]:
    """Layer -> total stride, the frame's height over the maps' height; 0 from global pooling on."""
    if config.is_timm:
        from twostream_ray.models.timm_networks import layer_table  # only here: it imports torch

        return {row.name: row.reduction for row in layer_table(config.backbone)} | {
            LAST_POOL: 0,
            DROPOUT: 0,
            CLASSIFIER: 0,
        }
    return reductions(
        layer_specs(as_table(config.backbone), width=config.width, in_channels=RGB_CHANNELS, num_classes=1)
    )


def feature_layer(config: TowerConfig) -> str:
    """The last layer below the classifier."""
    return list(layer_channels(config))[-2]


def _check_fusion_layers(config: ModelConfig) -> None:
    """Raise ConfigError for fusion layers that do not exist, do not match, or contradict the other fusion settings."""
    fusion = config.fusion
    spatial, temporal = layer_channels(config.spatial), layer_channels(config.temporal)
    order = list(spatial)
    for layer in fusion.layers:
        if layer not in spatial:
            raise ConfigError(
                f"model.fusion.layers: {config.spatial.backbone} has no layer {layer!r}; its layers are "
                + ", ".join(order)
            )
        other = temporal_layer(layer, config=config)
        if spatial[layer] != temporal[other] and not (config.spatial.is_timm or config.temporal.is_timm):
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


def _check_equal_towers(config: ModelConfig) -> None:
    """Raise ConfigError for towers that cannot be joined unit by unit (st_resnet) or feature by feature (stfn)."""
    for stream, tower in (("spatial", config.spatial), ("temporal", config.temporal)):
        if config.architecture == "st_resnet" and tower.backbone != "resnet50":
            raise ConfigError(
                f"model.architecture=st_resnet wants model.{stream}.backbone=resnet50, got {tower.backbone}"
            )
    spatial, temporal = (layer_channels(tower)[feature_layer(tower)] for tower in (config.spatial, config.temporal))
    if spatial != temporal:
        raise ConfigError(
            f"model.architecture={config.architecture} wants as many features from both towers, got {spatial} from "
            f"{config.spatial.backbone} and {temporal} from {config.temporal.backbone}: choose one backbone and width"
        )
    if config.architecture == "stfn" and config.fusion.method == "bilinear":
        raise ConfigError("model.architecture=stfn wants model.fusion.method sum, max, concat or conv, got bilinear")
