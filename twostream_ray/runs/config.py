"""The settings of every verb, composed from the parts' own, and how YAML recipes and dotted options become them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

from twostream_ray.data.catalog import CatalogConfig
from twostream_ray.data.flow import FlowContract
from twostream_ray.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class IngestConfig:
    """Labelled raw videos -> shards with optical flow."""

    catalog: CatalogConfig
    """Where the videos and their labels are."""

    out: str
    """Directory or s3:// prefix of the shard set."""

    flow: FlowContract = field(default_factory=FlowContract)
    """How optical flow is computed and coded."""

    max_bad_fraction: float = 0.05
    """Fail when more than this fraction of the videos had to be quarantined, in [0, 1]."""

    rows_per_shard: int = 128
    """Clips per shard file at most; small sets get smaller shards, so that every core has work."""

    def __post_init__(self) -> None:
        if not 0 <= self.max_bad_fraction <= 1:
            raise ConfigError(f"max_bad_fraction must lie in [0, 1], got {self.max_bad_fraction}")
        if self.rows_per_shard < 1:
            raise ConfigError(f"rows_per_shard must be at least 1, got {self.rows_per_shard}")
