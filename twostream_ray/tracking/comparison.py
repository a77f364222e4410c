"""Registered versions by name or alias, and the measurement by which one is compared with the champion."""

from __future__ import annotations

import re

from twostream_ray.errors import RegistryError
from twostream_ray.tracking.champion import CHAMPION
from twostream_ray.tracking.connection import ANSWER_S, client_for, registry_errors, short_timeouts, with_deadline
from twostream_ray.tracking.measurement import Measurement, evaluate_command, measurements_in
from twostream_ray.tracking.settings import TrackingConfig

_VERSION = re.compile(r"models:/(?P<name>[^/@]+)(/(?P<version>\d+)|@(?P<alias>[\w-]+))/?")


def names_version(model_uri: str) -> bool:
    """True for models:/NAME/VERSION and models:/NAME@ALIAS."""
    return _VERSION.fullmatch(model_uri) is not None


@with_deadline(ANSWER_S)
def find_version(model_uri: str, *, config: TrackingConfig) -> tuple[str, int]:
    """Name and version of models:/NAME/VERSION or models:/NAME@ALIAS, as the registry has it now.

    Raises:
        RegistryError: the URI is of another form, there is no such version, or MLflow does not answer.
    """
    match = _VERSION.fullmatch(model_uri)
    if match is None:
        raise RegistryError(f"a registered version is models:/NAME/VERSION or models:/NAME@ALIAS, got {model_uri!r}")
    uri, name = config.resolved_uri(), match["name"]
    way_out = "check tracking.uri and the model's name, version or alias"
    with short_timeouts(), registry_errors(uri, wanted=f"looking up {model_uri}", way_out=way_out):
        client = client_for(uri, reads_only=True)
        if match["alias"]:
            return name, int(client.get_model_version_by_alias(name, match["alias"]).version)
        return name, int(client.get_model_version(name, match["version"]).version)


@with_deadline(ANSWER_S)
def comparable_measurement(
    name: str, version: int, *, config: TrackingConfig, split: str | None = None, manifest: str = ""
) -> Measurement:
    """The one measurement of a version to compare it with the champion by; of several, the one that both have.

    Args:
        name: of the registered model.
        version: the one that is to be promoted.
        config: the registry.
        split: only measurements of this split.
        manifest: only measurements whose manifest's hash begins so.

    Raises:
        RegistryError: there is no such version, it has no such measurement or several, or MLflow does not answer.
    """
    uri = config.resolved_uri()
    way_out = "check the version, tracking.model_name and tracking.uri"
    with short_timeouts(), registry_errors(uri, wanted=f"reading {name} version {version}", way_out=way_out):
        client = client_for(uri, reads_only=True)
        own = [
            found
            for found in measurements_in(client.get_model_version(name, str(version)).tags)
            if split in (None, found.split) and found.manifest_hash.startswith(manifest)
        ]
        champion = client.get_registered_model(name).aliases.get(CHAMPION)
        if len(own) > 1 and champion is not None:
            theirs = {_data(found) for found in measurements_in(client.get_model_version(name, champion).tags)}
            own = [found for found in own if _data(found) in theirs] or own
    if not own:
        raise RegistryError(
            f"{name} version {version} has no measurement"
            + (f" on split {split}" if split else "")
            + (f" of manifest {manifest}" if manifest else "")
            + f": `{evaluate_command(name, version, split=split or 'test')}` with the --shards to compare on first"
        )
    if len(own) > 1:
        ways = ", or ".join(f"--split {found.split} --manifest {found.manifest_hash[:12]}" for found in own)
        raise RegistryError(f"{name} version {version} was measured {len(own)} times: choose {ways}")
    return own[0]


def _data(measurement: Measurement) -> tuple[str, str]:
    return measurement.split, measurement.manifest_hash
