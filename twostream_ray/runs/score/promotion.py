"""Promotion and rollback of registered versions: which one is champion."""

from __future__ import annotations

import re
from dataclasses import dataclass, field

from twostream_ray import tracking
from twostream_ray.errors import ConfigError
from twostream_ray.redaction import brief
from twostream_ray.settings.bounds import require_within
from twostream_ray.tracking.settings import TrackingConfig


@dataclass(frozen=True, kw_only=True)
class PromoteConfig:
    """Make a registered version champion if it beats the present one: twostream promote 7."""

    version: str
    """Number of the version to promote."""

    split: str | None = None
    """Split to compare on; needed only where the version was measured on several."""

    manifest: str = ""
    """First digits of the data manifest's hash; needed only where the version was measured on several."""

    tracking: TrackingConfig = field(default_factory=TrackingConfig)
    """MLflow, whose registry holds the model; `tracking.model_name` is the model's."""

    def __post_init__(self) -> None:
        if not re.fullmatch(r"[1-9]\d{0,8}", self.version, flags=re.ASCII):
            raise ConfigError(f"a version is a number of the registry, such as 7, got {brief(self.version)}")


@dataclass(frozen=True, kw_only=True)
class RollbackConfig:
    """Put the champion of a registered model back to the version before, or to a named one."""

    to: int | None = None
    """Version to make champion; by default the one that was so before; doing it again goes further back."""

    because: str = ""
    """Why, for the record: a tag of the version that is taken back."""

    tracking: TrackingConfig = field(default_factory=TrackingConfig)
    """MLflow, whose registry holds the model; `tracking.model_name` is the model's."""

    def __post_init__(self) -> None:
        require_within(self, to="[1, 2_147_483_647]")


def promote(config: PromoteConfig) -> str:
    """Compare a version with the present champion as after training, and set the aliases; the verdict in a sentence.

    Raises:
        RegistryError: there is no such version, it has no measurement or several, or MLflow does not answer.
    """
    name, version = config.tracking.model_name, int(config.version)
    measured = tracking.comparable_measurement(
        name, version, config=config.tracking, split=config.split, manifest=config.manifest
    )
    verdict = tracking.promote(
        name, version, manifest_hash=measured.manifest_hash, split=measured.split, config=config.tracking
    )
    return verdict.reason
