"""Model summary: parts, parameters, FLOPs and memory per training sample, without data or Ray."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

from twostream_ray.models.settings import ModelConfig
from twostream_ray.settings.arguments import RECIPE_KEY
from twostream_ray.settings.bounds import require_within
from twostream_ray.training.settings import Optimiser, TrainingConfig


@dataclass(frozen=True, kw_only=True)
class DescribeConfig:
    """Shows parts, sizes and costs of a network for one training sample, in seconds and without allocating it."""

    model: ModelConfig = field(default_factory=ModelConfig)
    """The network."""

    num_classes: int = 101
    """K, if the model's settings do not set it."""

    flow_length: int = field(default=10, metadata={RECIPE_KEY: "data.sampling.flow_length"})
    """L: flow fields per snippet."""

    num_snippets: int = field(default=5, metadata={RECIPE_KEY: "data.sampling.num_snippets"})
    """T: snippets per sample."""

    size_px: int = field(default=224, metadata={RECIPE_KEY: "data.transforms.crop_px"})
    """Height and width of the network's input in px."""

    optimiser: Optimiser = field(default="sgd", metadata={RECIPE_KEY: "training.optimiser"})
    """Optimiser whose parameter groups are shown."""

    layer_decay: float | None = field(default=None, metadata={RECIPE_KEY: "training.layer_decay"})
    """Layer-wise learning rate decay of the parameter groups."""

    format: Literal["text", "json"] = "text"
    """text: tables; json: one JSON object, for programs (--json for short)."""

    def __post_init__(self) -> None:
        require_within(
            self,
            num_classes="[1, 1_000_000]",
            flow_length="[1, 1_000]",
            num_snippets="[1, 1_000]",
            size_px="[1, 8_192]",
            layer_decay="(0, 1]",
        )


def describe(config: DescribeConfig) -> dict[str, Any]:
    """Sizes and costs from `models.description.describe`, as JSON types.

    Raises:
        ConfigError: the settings contradict each other or the size of frames.
    """
    # Imported late: it imports torch, which --help and refused settings do not need.
    from twostream_ray.models import description

    return description.describe(
        config.model,
        num_classes=sum(config.model.head_classes) or config.model.num_classes or config.num_classes,
        flow_length=config.flow_length,
        num_snippets=config.num_snippets,
        size_px=config.size_px,
        bias_lr_factor=TrainingConfig(optimiser=config.optimiser).bias_lr_factor,
        layer_decay=config.layer_decay,
    )
