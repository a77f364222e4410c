"""Settings of a network of the two-stream family, and which of them go together."""

from dataclasses import dataclass, field
from typing import Literal, get_args

from twostream_ray.errors import ConfigError
from twostream_ray.models.fusion import FusionConfig
from twostream_ray.models.streams import TowerConfig, counterpart, layer_channels
from twostream_ray.models.temporal import StfnConfig, StResNetConfig
from twostream_ray.models.towers import CLASSIFIER, LAST_POOL
from twostream_ray.settings.bounds import require_within

Architecture = Literal["late", "fused", "st_resnet", "stfn"]
Streams = Literal["both", "spatial", "temporal"]


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """A network of the two-stream family."""

    architecture: Architecture = "fused"
    """late (scores are averaged), fused (feature maps are), st_resnet (motion enters residual units), stfn."""
    streams: Streams = "both"
    """both towers, or one alone; one alone goes with architecture late."""
    spatial: TowerConfig = field(default_factory=TowerConfig)
    """The tower that sees RGB frames."""
    temporal: TowerConfig = field(default_factory=TowerConfig)
    """The tower that sees stacks of optical flow."""
    fusion: FusionConfig = field(default_factory=FusionConfig)
    """How a fused network joins its towers; stfn reads the method only, st_resnet the pooling, late nothing."""
    st_resnet: StResNetConfig = field(default_factory=StResNetConfig)
    """Read by architecture st_resnet alone."""
    stfn: StfnConfig = field(default_factory=StfnConfig)
    """Read by architecture stfn alone."""
    keep_temporal_tower: bool = True
    """Run a fused network's temporal tower to its own scores and loss; False ends it at the last fusion layer."""
    freeze_below_fusion: bool = False
    """Both towers learn only above the first fusion layer (the official code of 2016); wants pretrained towers."""
    num_classes: int | None = None
    """K; None takes it from the data."""
    head_classes: tuple[int, ...] = ()
    """Classes of each data set in multi-task training, which add up to K (Simonyan and Zisserman 2014); () is one."""

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


def feature_layer(config: TowerConfig) -> str:
    """The last layer below the classifier."""
    return list(layer_channels(config))[-2]


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


def _check_equal_towers(config: ModelConfig) -> None:
    """Refuse towers that cannot be joined unit by unit (st_resnet) or feature by feature (stfn)."""
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
