"""Download of a registered model into a plain folder: only the model's files, checked by name and size."""

from __future__ import annotations

import hashlib
import re
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from twostream_ray import storage
from twostream_ray.errors import RegistryError, StorageError
from twostream_ray.redaction import redact
from twostream_ray.storage import json_files
from twostream_ray.storage.temporary_folders import temporary_folder
from twostream_ray.tracking.connection import (
    ANSWER_S,
    client_for,
    loading_mlflow,
    registry_errors,
    short_timeouts,
    with_deadline,
)
from twostream_ray.tracking.registered_model import read_registered_model
from twostream_ray.tracking.registry import PACKAGE_FILES
from twostream_ray.tracking.settings import TrackingConfig

if TYPE_CHECKING:
    from mlflow import MlflowClient

RECORD = "pulled.json"
"""File beside a downloaded model with the hashes of its files, so that no other file is overwritten."""

_FOLDER = "artifacts"
"""Folder of a logged model's files in MLflow."""
_LIMITS_BYTES = dict(zip(PACKAGE_FILES, (64 << 30, 64 << 20), strict=True))
_LOOK_S = 10.0
"""How long a training waits at its start for the registry to return a model's classes."""
_CLASSES_SCHEMA = json_files.record({"classes": json_files.list_of(json_files.WORD)}, others=True)
_RECORD_SCHEMA = json_files.record(
    {
        "model": json_files.WORD,
        "files": json_files.record(dict.fromkeys(PACKAGE_FILES, json_files.list_of(json_files.SHA256, at_most=10_000))),
    }
)


def pull(
    model_uri: str, destination: Path, *, config: TrackingConfig, check: Callable[[Path], object] = lambda _: None
) -> Path:
    """Download a model's safetensors + JSON into a folder, to be used without MLflow; returns the folder.

    Args:
        model_uri: models:/NAME@ALIAS, models:/NAME/VERSION, models:/m-ID or runs:/RUN_ID.
        destination: created if missing; files of an earlier `pull` are replaced once all new ones are downloaded and
            checked, other files are kept.
        config: the registry.
        check: called with a folder of the new files; raises if they are not a model.

    Raises:
        RegistryError: there is no such model, it is not of this package, or MLflow does not answer.
        StorageError: the registry is a SQLite file that is missing or cannot be read; or the destination has files of
            these names that were not pulled, or cannot be written.
    """
    uri = config.resolved_uri()
    wanted = f"downloading {model_uri}"
    known = _pulled_before(destination)
    with (
        short_timeouts(),
        registry_errors(uri, wanted=wanted, way_out="check tracking.uri and the model's name, version or alias"),
    ):
        repository = _repository_of(model_uri, config=config)
        destination.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=destination, prefix=".pull-") as scratch:
            new = Path(scratch, "model")
            new.mkdir()
            for name in PACKAGE_FILES:
                fetched = Path(repository.download_artifacts(f"{_FOLDER}/{name}", dst_path=scratch))
                _require_file(fetched, name=name, where=model_uri)
                fetched.replace(new / name)
            check(new)
            hashes = {name: _sha256(new / name) for name in PACKAGE_FILES}
            for name, sha256 in hashes.items():
                _require_own(destination / name, {*known.get(name, []), sha256})
            # Written before the files, so that those left by a kill are known.
            storage.write_json(
                str(destination / RECORD),
                {
                    "model": redact(model_uri),
                    "files": {name: sorted({*known.get(name, []), sha256}) for name, sha256 in hashes.items()},
                },
            )
            for name in PACKAGE_FILES:
                (new / name).replace(destination / name)
    return destination


@with_deadline(_LOOK_S)
def registered_classes(name: str, *, config: TrackingConfig) -> tuple[str, ...] | None:
    """The classes of a registered model's champion, or else of its newest version; None without either.

    Raises:
        RegistryError: MLflow does not answer at once, or the version's files are missing or not of this package.
        StorageError: the registry is a SQLite file that is missing or cannot be read.
    """
    uri = config.resolved_uri()
    way_out = "check tracking.uri and tracking.model_name"
    with (
        short_timeouts(repeat=False, request_s=int(_LOOK_S)),
        registry_errors(uri, wanted=f"reading the classes of {name}", way_out=way_out),
    ):
        client = client_for(uri, reads_only=True)
        if not client.search_registered_models(f"name = '{name}'"):
            return None
        found = read_registered_model(client, name)
        version = found.champion or max(found.tags, default=None)
        if version is None:
            return None
        model_uri = f"models:/{name}/{version}"
        repository = _repository_of(model_uri, config=config)
        with temporary_folder() as scratch:
            file = Path(repository.download_artifacts(f"{_FOLDER}/{PACKAGE_FILES[1]}", dst_path=scratch))
            _require_file(file, name=PACKAGE_FILES[1], where=model_uri)
            stored = json_files.read_json(
                str(file),
                _CLASSES_SCHEMA,
                limit_bytes=_LIMITS_BYTES[PACKAGE_FILES[1]],
                what=f"the settings of {model_uri}",
                way_out="choose another --tracking.model_name",
                error=RegistryError,
            )
    return tuple(stored["classes"])


@with_deadline(ANSWER_S)
def _repository_of(model_uri: str, *, config: TrackingConfig) -> Any:
    """MLflow's artifact repository of a model, after checking its files."""
    uri = config.resolved_uri()
    location = _location(client_for(uri, reads_only=True), model_uri)
    with loading_mlflow():
        from mlflow.artifacts import get_artifact_repository

    repository = get_artifact_repository(location, tracking_uri=uri)
    _require_files(repository, location, model_uri=model_uri)
    return repository


def _pulled_before(destination: Path) -> dict[str, list[str]]:
    """Files that earlier pulls wrote into a folder: name -> sha256 of each.

    Raises:
        StorageError: the destination is not a folder, or has a model's file that was not pulled.
    """
    if destination.exists() and not destination.is_dir():
        raise StorageError(
            f"a directory for {' and '.join(PACKAGE_FILES)} was wanted, {destination} is a file: name another"
        )
    record = destination / RECORD
    known: dict[str, list[str]] = {}
    if record.exists() or record.is_symlink():
        known = json_files.read_json(
            str(record),
            _RECORD_SCHEMA,
            what="the record of a model that was pulled",
            way_out="name another directory, or remove it",
            error=StorageError,
        )["files"]
    for name in PACKAGE_FILES:
        if known.get(name) or (destination / name).is_symlink() or (destination / name).is_dir():
            _require_own(destination / name, set(known.get(name, [])))
    return known


def _require_own(path: Path, known: set[str]) -> None:
    """Refuse to overwrite a file that was not pulled, or was changed since."""
    if not (path.exists() or path.is_symlink()):
        return
    if path.is_symlink() or not path.is_file() or _sha256(path) not in known:
        raise StorageError(
            f"{path} was not written by `twostream pull`, or was changed since: name another directory, or move it away"
        )


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _require_files(repository: Any, location: str, *, model_uri: str) -> None:
    """Refuse a model whose files are missing, too large or not regular files, before the download.

    Raises:
        RegistryError: names what is missing or too large.
    """
    found = {entry.path: entry for entry in repository.list_artifacts(_FOLDER)}
    for name, limit in _LIMITS_BYTES.items():
        entry = found.get(f"{_FOLDER}/{name}")
        if entry is None or entry.is_dir:
            raise RegistryError(
                f"{model_uri} is not a model of twostream_ray, it lacks {name}: name one that `twostream train` "
                "registered"
            )
        if entry.file_size is not None and int(entry.file_size) > limit:
            raise RegistryError(
                f"{model_uri} is not a model of twostream_ray, its {name} has {entry.file_size} bytes where at most "
                f"{limit} were wanted: name one that `twostream train` registered"
            )
        if root := getattr(repository, "artifact_dir", None):  # a folder of this machine
            file = Path(root, _FOLDER, name)
            if not file.resolve().is_relative_to(Path(root).resolve()):
                raise RegistryError(
                    f"{model_uri} is not a model of twostream_ray, its {name} leads out of {location}: name one that "
                    "`twostream train` registered"
                )
            _require_file(file, name=name, where=model_uri)


def _require_file(path: Path, *, name: str, where: str) -> None:
    if path.is_symlink() or not path.is_file() or path.stat().st_size > _LIMITS_BYTES[name]:
        raise RegistryError(
            f"{name} of {where} must be a file of at most {_LIMITS_BYTES[name]} bytes, but is not: name a model that "
            "`twostream train` registered"
        )


def _location(client: MlflowClient, model_uri: str) -> str:
    """URI of a model's files; MLflow's own resolution uses its global tracking URI."""
    if match := re.fullmatch(r"models:/(?P<model_id>m-[0-9a-f]{32})/?", model_uri):
        return str(client.get_logged_model(match["model_id"]).artifact_location)
    if match := re.fullmatch(r"models:/(?P<name>[^/@]+)@(?P<alias>[\w-]+)/?", model_uri):
        version = client.get_model_version_by_alias(match["name"], match["alias"]).version
        return str(client.get_model_version_download_uri(match["name"], version))
    if match := re.fullmatch(r"models:/(?P<name>[^/@]+)/(?P<version>\d+)/?", model_uri):
        return str(client.get_model_version_download_uri(match["name"], match["version"]))
    if match := re.fullmatch(r"runs:/(?P<run>\w+)(/.*)?", model_uri):
        run = client.get_run(match["run"])
        models = [output.model_id for output in run.outputs.model_outputs] if run.outputs else []
        if not models:
            raise RegistryError(f"run {match['run']} logged no model: name one that registered a version")
        return str(client.get_logged_model(models[-1]).artifact_location)
    raise RegistryError(
        f"a model is models:/NAME@ALIAS, models:/NAME/VERSION or runs:/RUN_ID, got {model_uri!r}; "
        "for instance models:/two-stream@champion"
    )
