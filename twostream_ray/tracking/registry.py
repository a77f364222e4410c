"""Model registration in MLflow: a pyfunc version (models from code) that takes raw video, with lineage and metrics."""

from __future__ import annotations

import importlib.metadata
import shutil
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from twostream_ray.errors import RegistryError
from twostream_ray.redaction import redact
from twostream_ray.storage.temporary_folders import temporary_folder
from twostream_ray.tracking.connection import ANSWER_S, client_for, loading_mlflow, registry_errors, with_deadline
from twostream_ray.tracking.measurement import Measurement
from twostream_ray.tracking.model_card import model_card
from twostream_ray.tracking.record import RunHandle, deliver
from twostream_ray.tracking.settings import TrackingConfig

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.models import ModelSignature

PACKAGE_FILES = ("model.safetensors", "model.json")
"""Files of a model, from which `inference.Classifier` builds the network."""

_UPLOAD_S = 1800.0
"""Deadline of the upload of a model's files."""
_TAG_LENGTH = 5000
"""MLflow's limit for a tag of a version."""
_ARTIFACTS = dict(zip(("weights", "settings"), PACKAGE_FILES, strict=True))
# Imports of `twostream_ray.inference` and `served`, and of reading URIs; without Ray and training.
_SERVING = (
    "mlflow",
    "torch",
    "numpy",
    "av",
    "opencv-contrib-python-headless",
    "simplejpeg",
    "safetensors",
    "jsonargparse[signatures]",
    "jsonschema",
    "pyarrow",
    "s3fs",
    "tenacity",
)


@with_deadline(_UPLOAD_S)
def register(
    handle: RunHandle,
    package: Path,
    *,
    entry: Path,
    code: Mapping[str, Path],
    name: str,
    measurement: Measurement,
    protocol: str,
    summary: str,
    classes: Sequence[str],
    data: str,
    flow_contract: Mapping[str, object],
    lineage: Mapping[str, str],
    limits: Mapping[str, object] | None = None,
    libraries: Sequence[str] = (),
) -> int:
    """Log the model to its run and register a version of it; returns the version's number.

    The version is code and data without pickles: the entry and the given code, model.safetensors, model.json and exact
    requirements. It can be loaded where this package is not installed.

    Args:
        handle: the run that trained it.
        package: folder with model.safetensors and model.json.
        entry: the file that MLflow runs to load the model ("models from code").
        code: files that the entry imports, by their path relative to the folder that imports are resolved from.
        name: name of the registered model, which is created if missing.
        measurement: its metrics, which `promote` compares.
        protocol: how it was measured, for a tag and the model card.
        summary: the network in a sentence, for the model card.
        classes: class names in the order of the network's outputs.
        data: its training data in a line, for a tag.
        flow_contract: settings of the network's flow input, for the model card.
        lineage: tags from `lineage_tags`.
        limits: limits of videos, which can be changed when the model is loaded (`model_config`).
        libraries: distributions that the network needs besides those of every model.

    Raises:
        RegistryError: the folder is not a model, the run is not in MLflow, or MLflow does not answer.
    """
    _require_model(package)
    handle = _require_run(handle, name=name)
    description = model_card(
        name,
        summary=summary,
        measurement=measurement,
        protocol=protocol,
        classes=classes,
        flow_contract=flow_contract,
        lineage=lineage,
    )
    # Lineage, classes and flow contract are in model.json, and in the card.
    tags = {**measurement.tags(), "data": data, "protocol": protocol}
    with registry_errors(
        handle.tracking_uri,
        wanted=f"registering {name}",
        way_out="the checkpoint is kept: run the same command again once MLflow answers, which registers it",
    ):
        client = client_for(handle.tracking_uri)
        logged = _log_model(
            client,
            handle,
            package,
            entry=entry,
            code=code,
            name=name,
            limits=limits or {},
            requirements=serving_requirements(libraries),
        )
        return _create_version(client, handle.run_id, logged, name=name, tags=tags, description=description)


@with_deadline(ANSWER_S)
def record_measurement(name: str, version: int, measurement: Measurement, *, config: TrackingConfig) -> None:
    """Tag a version with a measurement, for instance a champion that was evaluated on new data.

    Raises:
        RegistryError: there is no such version, or MLflow does not answer.
    """
    uri = config.resolved_uri()
    with registry_errors(uri, wanted=f"tagging {name} version {version}", way_out="check the name and the version"):
        client = client_for(uri)
        for key, value in measurement.tags().items():
            client.set_model_version_tag(name, str(version), key, value)


def serving_requirements(libraries: Sequence[str] = ()) -> list[str]:
    """Exact pip requirements of a registered model, from the installed versions.

    Args:
        libraries: distributions that its network needs besides those of every model.
    """
    pinned = []
    for distribution in (*_SERVING, *libraries):
        version = importlib.metadata.version(distribution.partition("[")[0])
        # No index has a local version such as 2.13.0+cpu.
        pinned.append(f"{distribution}=={version.partition('+')[0]}")
    return pinned


def _require_model(package: Path) -> None:
    """Raises RegistryError where a file of the model is missing from the folder."""
    missing = [file for file in PACKAGE_FILES if not (package / file).is_file()]
    if missing:
        raise RegistryError(
            f"a model needs {' and '.join(PACKAGE_FILES)} in {package}, missing {', '.join(missing)}: "
            "name a checkpoint of `twostream train`, or a directory that `twostream pull` wrote"
        )


def _require_run(handle: RunHandle, *, name: str) -> RunHandle:
    """The handle with the run's ids; raises RegistryError if the run is not in MLflow."""
    if not handle.run_id:
        handle = deliver(handle)  # MLflow was unreachable at the start, and may answer now
    if not handle.run_id:
        raise RegistryError(
            f"no run to register {name} with: MLflow at {redact(handle.tracking_uri)} has been unreachable since "
            "training started; the checkpoint is kept: run the same command again once MLflow answers, which registers "
            "it"
        )
    return handle


def _log_model(
    client: MlflowClient,
    handle: RunHandle,
    package: Path,
    *,
    entry: Path,
    code: Mapping[str, Path],
    name: str,
    limits: Mapping[str, object],
    requirements: list[str],
) -> tuple[str, str]:
    """Log the model to the run without MLflow's global state; returns its id and the URI of its files."""
    with loading_mlflow():
        from mlflow.entities import LoggedModelOutput
        from mlflow.models import Model
        from mlflow.pyfunc import save_model

    logged = client.create_logged_model(handle.experiment_id, name=name, source_run_id=handle.run_id)
    status = "FAILED"  # of a model with incomplete files, which is not listed
    try:
        with temporary_folder() as scratch, warnings.catch_warnings():
            copied = Path(scratch, "code")
            for relative, file in code.items():
                (copied / relative).parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(file, copied / relative)
            path = Path(scratch, "model")
            # MLflow warns if there is no input example, which would be a video.
            warnings.filterwarnings("ignore", message=".*An input example was not provided")
            save_model(
                path,
                python_model=str(entry),
                # URIs, as MLflow decodes these strings.
                artifacts={role: (package / file).absolute().as_uri() for role, file in _ARTIFACTS.items()},
                code_paths=[str(top) for top in sorted(copied.iterdir())],
                pip_requirements=requirements,
                signature=_signature(),
                model_config={"device": "cpu", **limits},
                mlflow_model=Model(
                    artifact_path=logged.artifact_location,
                    run_id=handle.run_id,
                    model_uuid=logged.model_id,
                    model_id=logged.model_id,
                ),
            )
            client.log_model_artifacts(logged.model_id, str(path))
        client.log_outputs(handle.run_id, [LoggedModelOutput(logged.model_id, step=0)])
        status = "READY"
    finally:
        client.finalize_logged_model(logged.model_id, status)
    return logged.model_id, logged.artifact_location


def _signature() -> ModelSignature:
    from mlflow.models import ModelSignature
    from mlflow.types import ColSpec, DataType, ParamSchema, ParamSpec, Schema
    from mlflow.types.schema import Array, Object, Property

    # An unnamed binary column: in Python MLflow passes paths through it unchanged, over HTTP it accepts only base64.
    head = Object(
        [
            Property("name", DataType.string),
            Property("classes", Array(DataType.string)),
            Property("probabilities", Array(DataType.double)),
            Property("logits", Array(DataType.double)),
        ]
    )
    return ModelSignature(
        inputs=Schema([ColSpec(DataType.binary)]),
        outputs=Schema(
            [
                ColSpec(DataType.string, "video"),
                ColSpec(Array(head), "heads"),
                ColSpec(DataType.string, "error", required=False),
            ]
        ),
        params=ParamSchema(
            [
                ParamSpec("top_k", DataType.long, default=5),
                ParamSpec("head", DataType.string, default=""),
                ParamSpec("protocol", DataType.string, default="validation"),
            ]
        ),
    )


def _create_version(
    client: MlflowClient, run_id: str, logged: tuple[str, str], *, name: str, tags: Mapping[str, str], description: str
) -> int:
    """Create a version of the registered model, and that model if it is missing; returns the version's number."""
    from mlflow.exceptions import MlflowException

    try:
        client.create_registered_model(name, description="Two-stream video classifiers: raw video in, classes out.")
    except MlflowException as error:
        if error.error_code != "RESOURCE_ALREADY_EXISTS":
            raise
    model_id, location = logged
    version = client.create_model_version(
        name,
        source=location,
        run_id=run_id,
        tags={key: redact(value)[:_TAG_LENGTH] for key, value in tags.items()},
        description=redact(description),
        model_id=model_id,
        await_creation_for=0,  # all files are there already
    )
    return int(version.version)
