"""What a network is made of and what a training sample costs; needs neither data nor Ray."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

from twostream_ray.models.settings import ModelConfig
from twostream_ray.settings.arguments import RECIPE_KEY
from twostream_ray.settings.bounds import require_within
from twostream_ray.training.settings import Optimiser, TrainingConfig


@dataclass(frozen=True, kw_only=True)
class DescribeConfig:
    """Parts, sizes and costs of a network for one training sample; builds nothing and takes seconds."""

    model: ModelConfig = field(default_factory=ModelConfig)
    """The network."""

    num_classes: int = 101
    """K, where the model's own settings leave it to the data."""

    flow_length: int = field(default=10, metadata={RECIPE_KEY: "data.sampling.flow_length"})
    """L: flow fields per snippet."""

    num_snippets: int = field(default=5, metadata={RECIPE_KEY: "data.sampling.num_snippets"})
    """T: snippets per sample."""

    size_px: int = field(default=224, metadata={RECIPE_KEY: "data.transforms.crop_px"})
    """Height and width of the network's input in px."""

    optimiser: Optimiser = field(default="sgd", metadata={RECIPE_KEY: "training.optimiser"})
    """Whose parameter groups are said."""

    layer_decay: float | None = field(default=None, metadata={RECIPE_KEY: "training.layer_decay"})
    """Layer-wise learning rate decay of these groups."""

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
    """Sizes and costs as `models.description.describe` gives them, in JSON's types.

    Raises:
        ConfigError: the settings fit neither each other nor frames of this size.
    """
    # It loads torch, which refused settings and --help do without.
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
