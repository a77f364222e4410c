"""Promotion and rollback of registered versions: which one is champion."""

from __future__ import annotations

from twostream_ray import tracking
from twostream_ray.runs.score.settings import PromoteConfig


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
