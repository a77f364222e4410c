"""Lookup of registered versions by name or alias, and of the measurement to compare one with the champion by."""

from __future__ import annotations

import contextlib
import json
import re

from twostream_ray.errors import RegistryError
from twostream_ray.tracking.connection import ANSWER_S, client_for, registry_errors, short_timeouts, with_deadline
from twostream_ray.tracking.measurement import Measurement, evaluate_command, measurement_from, measurements_in
from twostream_ray.tracking.record import DIGEST_LENGTH
from twostream_ray.tracking.registered_model import CHAMPION, read_registered_model, version_with
from twostream_ray.tracking.settings import TrackingConfig

_VERSION = re.compile(r"models:/(?P<name>[^/@]+)(/(?P<version>\d+)|@(?P<alias>[\w-]+))/?")


def names_version(model_uri: str) -> bool:
    """True for models:/NAME/VERSION and models:/NAME@ALIAS."""
    return _VERSION.fullmatch(model_uri) is not None


@with_deadline(ANSWER_S)
def find_version(model_uri: str, *, config: TrackingConfig) -> tuple[str, int]:
    """Resolve models:/NAME/VERSION or models:/NAME@ALIAS to name and version.

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
def version_card(name: str, version: int, *, config: TrackingConfig) -> str | None:
    """The model card of a version, Markdown; None if it has none.

    Raises:
        RegistryError: there is no such version, or MLflow does not answer.
    """
    uri = config.resolved_uri()
    way_out = "check tracking.uri and the model's name and version"
    with short_timeouts(), registry_errors(uri, wanted=f"reading {name} version {version}", way_out=way_out):
        return client_for(uri, reads_only=True).get_model_version(name, str(version)).description or None


@with_deadline(ANSWER_S)
def comparable_measurement(
    name: str, version: int, *, config: TrackingConfig, split: str | None = None, manifest: str = ""
) -> Measurement:
    """The measurement of a version to compare it with the champion by; of several, the one that both have.

    Args:
        name: name of the registered model.
        version: the version to be promoted.
        config: the registry.
        split: only measurements of this split.
        manifest: only measurements whose manifest's hash starts with this.

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
        command = evaluate_command(name, version, split=split or "test", shards=None, config=config)
        raise RegistryError(
            f"{name} version {version} has no measurement"
            + (f" on split {split}" if split else "")
            + (f" of manifest {manifest}" if manifest else "")
            + f": run `{command}` first, with the shards to compare on as SHARDS"
        )
    if len(own) > 1:
        ways = ", or ".join(f"--split {found.split} --manifest {found.manifest_hash[:12]}" for found in own)
        raise RegistryError(f"{name} version {version} was measured {len(own)} times: choose {ways}")
    return own[0]


@with_deadline(ANSWER_S)
def unmeasured_champion(name: str, *, config: TrackingConfig, manifest_hash: str, split: str) -> int | None:
    """The champion if it was never measured on this split of this manifest; None if it was, or there is none.

    Raises:
        RegistryError: there is no such model, or MLflow does not answer.
    """
    uri = config.resolved_uri()
    way_out = "check tracking.model_name and tracking.uri"
    with short_timeouts(), registry_errors(uri, wanted=f"reading the champion of {name}", way_out=way_out):
        client = client_for(uri, reads_only=True)
        champion = version_with(client, name, CHAMPION)
        if champion is None:
            return None
        tags = client.get_model_version(name, str(champion)).tags
    return None if measurement_from(tags, manifest_hash=manifest_hash, split=split) else champion


@with_deadline(ANSWER_S)
def newest_version(name: str, *, config: TrackingConfig) -> int:
    """The newest version of a registered model.

    Raises:
        RegistryError: there is no such model, it has no version, or MLflow does not answer.
    """
    uri = config.resolved_uri()
    way_out = "check tracking.model_name and tracking.uri"
    with short_timeouts(), registry_errors(uri, wanted=f"looking up {name}", way_out=way_out):
        versions = read_registered_model(client_for(uri, reads_only=True), name).tags
    if not versions:
        raise RegistryError(f"{name} has no version: `twostream train` registers one, or check tracking.model_name")
    return max(versions)


@with_deadline(ANSWER_S)
def logged_shards(name: str, version: int, *, config: TrackingConfig, manifest_hash: str) -> str | None:
    """URI of a manifest's shards, from the inputs of the run that made a version; None if it has no such input.

    Raises:
        RegistryError: there is no such version, or MLflow does not answer.
    """
    uri = config.resolved_uri()
    way_out = "check the version, tracking.model_name and tracking.uri"
    with short_timeouts(), registry_errors(uri, wanted=f"reading the run of {name} {version}", way_out=way_out):
        client = client_for(uri, reads_only=True)
        run_id = client.get_model_version(name, str(version)).run_id
        inputs = client.get_run(run_id).inputs if run_id else None
    for given in inputs.dataset_inputs if inputs else ():
        if given.dataset.digest == manifest_hash[:DIGEST_LENGTH]:
            with contextlib.suppress(ValueError, KeyError, TypeError):  # any user may log an input
                return str(json.loads(given.dataset.source)["uri"])
    return None


def _data(measurement: Measurement) -> tuple[str, str]:
    return measurement.split, measurement.manifest_hash
