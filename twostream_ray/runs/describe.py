"""What a network is made of and what a training sample costs; needs neither data nor Ray."""

from __future__ import annotations

from typing import Any

from twostream_ray.models import description
from twostream_ray.runs.config import DescribeConfig


def describe(config: DescribeConfig) -> dict[str, Any]:
    """Sizes and costs as `models.description.describe` gives them, in JSON's types.

    Raises:
        ConfigError: the settings fit neither each other nor frames of this size.
    """
    return description.describe(
        config.model,
        num_classes=sum(config.model.head_classes) or config.model.num_classes or config.num_classes,
        flow_length=config.flow_length,
        num_snippets=config.num_snippets,
        size_px=config.size_px,
    )
