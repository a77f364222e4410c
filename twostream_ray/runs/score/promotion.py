"""Promotion of a registered model version to champion (MLflow alias)."""

from __future__ import annotations

from twostream_ray import tracking
from twostream_ray.runs.score.settings import PromoteConfig
from twostream_ray.runs.score.significance import with_significance


def promote(config: PromoteConfig) -> str:
    """Compare a version with the champion as after training, and set the aliases; returns the verdict in a sentence.

    Raises:
        RegistryError: there is no such version, it has no measurement or several, or MLflow does not answer.
    """
    name = config.tracking.registered_name()
    version = int(config.version) if config.version else tracking.newest_version(name, config=config.tracking)
    measured = tracking.comparable_measurement(
        name, version, config=config.tracking, split=config.split, manifest=config.manifest
    )
    manifest = measured.manifest_hash
    shards = tracking.logged_shards(name, version, manifest_hash=manifest, config=config.tracking)
    verdict = tracking.promote(
        name, version, manifest_hash=manifest, split=measured.split, shards=shards, config=config.tracking
    )
    return with_significance(verdict).reason
