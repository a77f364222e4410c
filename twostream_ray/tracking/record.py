"""One MLflow run per training, however often it restarts: parameters, metrics, files; none of it can stop training."""

from __future__ import annotations

import contextlib
import getpass
import hashlib
import json
import re
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from twostream_ray.tracking.connection import TrackingConfig, client_for, never_stopping
from twostream_ray.tracking.lineage import GIT_COMMIT
from twostream_ray.tracking.redaction import HIDDEN, is_secret_name, redact

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from mlflow import MlflowClient

RUN_TAG = "twostream.run"
"""Tag that holds a run's logical name, by which a restarted training finds its run again."""

# MLflow's limits (mlflow.utils.validation); a batch above its own is refused whole.
_KEY_LENGTH, _PARAMETER_LENGTH, _TAG_LENGTH = 250, 6000, 8000
_PARAMETERS_PER_BATCH, _METRICS_PER_BATCH = 100, 1000
_NOT_IN_A_KEY = re.compile(r"[^/\w.\- :]")


@dataclass(frozen=True, kw_only=True, slots=True)
class RunHandle:
    """An MLflow run as a value: made by the driver, sent to whichever worker reports."""

    uri: str = field(repr=False)
    """Tracking URI, in full; not shown, as it may hold a password."""
    experiment_id: str
    """Id of the experiment; empty if MLflow was away at the start."""
    run_id: str
    """Id of the run; empty if MLflow was away at the start: then nothing is recorded."""


def start_run(
    config: TrackingConfig, *, run_name: str, parameters: Mapping[str, object], tags: Mapping[str, str]
) -> RunHandle:
    """Create a run, before training, from the driver.

    Args:
        config: where.
        run_name: the logical name; `resume_run` finds the run by it.
        parameters: nested settings; recorded under dotted keys, secrets hidden, long values cut.
        tags: lineage and whatever else is to be searched for.

    Never raises for an MLflow that is away: warns once and returns a handle that records nothing.
    """
    uri = config.resolved_uri()
    with never_stopping(uri, what=f"run {run_name!r}"):
        client = client_for(uri)
        experiment_id = _experiment(client, config)
        run = client.create_run(experiment_id, run_name=run_name, tags=_run_tags(run_name, tags))
        with never_stopping(uri, what=f"parameters of run {run_name!r}"):
            _log_parameters(client, run.info.run_id, flat_parameters(parameters))
        return RunHandle(uri=uri, experiment_id=experiment_id, run_id=run.info.run_id)
    return RunHandle(uri=uri, experiment_id="", run_id="")


def resume_run(config: TrackingConfig, *, run_name: str) -> RunHandle | None:
    """The newest run of this logical name that has not finished, set to RUNNING again; none if there is none."""
    uri = config.resolved_uri()
    with never_stopping(uri, what=f"run {run_name!r}"):
        client = client_for(uri)
        experiment = client.get_experiment_by_name(config.experiment)
        if experiment is None:
            return None
        quote = '"' if "'" in run_name else "'"
        runs = client.search_runs(
            [experiment.experiment_id],
            filter_string=f"tags.`{RUN_TAG}` = {quote}{run_name}{quote} and attributes.status != 'FINISHED'",
            order_by=["attributes.start_time DESC"],
            max_results=1,
        )
        if not runs:
            return None
        client.update_run(runs[0].info.run_id, status="RUNNING")
        return RunHandle(uri=uri, experiment_id=experiment.experiment_id, run_id=runs[0].info.run_id)
    return None


def log_metrics(handle: RunHandle, metrics: Mapping[str, float], *, step: int) -> None:
    """Record metrics at a step (the epoch); what a run before a crash recorded at this step stays as it is.

    Never raises for an MLflow that is away: warns once.
    """
    from_key = {_key(name): float(value) for name, value in metrics.items()}
    if not handle.run_id or not from_key:
        return
    with never_stopping(handle.uri, what=f"step {step}"):
        client = client_for(handle.uri)
        from mlflow.entities import Metric

        # The newest step of each metric costs one request and nearly always answers; the history is asked only for
        # steps that are not new.
        newest = {metric.key: metric.step for metric in client.get_run(handle.run_id).data.to_proto().metrics}
        now = int(time.time() * 1000)
        fresh = [
            Metric(key, value, now, step)
            for key, value in from_key.items()
            if key not in newest
            or step > newest[key]
            or all(old.step != step for old in client.get_metric_history(handle.run_id, key))
        ]
        for first in range(0, len(fresh), _METRICS_PER_BATCH):
            client.log_batch(handle.run_id, metrics=fresh[first : first + _METRICS_PER_BATCH])


def log_artifacts(handle: RunHandle, paths: Sequence[Path], *, folder: str | None = None) -> None:
    """Store files or whole directories with the run, in `folder`; never raises for an MLflow that is away."""
    if not handle.run_id:
        return
    with never_stopping(handle.uri, what=", ".join(path.name for path in paths)):
        client = client_for(handle.uri)
        for path in paths:
            client.log_artifact(handle.run_id, str(path), folder)


def log_pictures(handle: RunHandle, pictures: Mapping[str, Path | Figure]) -> None:
    """Store pictures by name, files or matplotlib figures, where the run's page shows them: `pictures/NAME.png`."""
    if not handle.run_id:
        return
    with never_stopping(handle.uri, what="pictures " + ", ".join(pictures)):
        client = client_for(handle.uri)
        for name, picture in pictures.items():
            if isinstance(picture, Path):
                client.log_artifact(handle.run_id, str(picture), "pictures")
            else:
                client.log_figure(handle.run_id, picture, f"pictures/{name}.png")


def finish_run(handle: RunHandle, status: Literal["FINISHED", "FAILED", "KILLED"] = "FINISHED") -> None:
    """Close the run; `resume_run` finds FAILED and KILLED ones again. Never raises for an MLflow that is away."""
    if not handle.run_id:
        return
    with never_stopping(handle.uri, what=f"status {status}"):
        client_for(handle.uri).set_terminated(handle.run_id, status)


def flat_parameters(parameters: Mapping[str, object]) -> dict[str, str]:
    """Nested settings as MLflow parameters: dotted keys of at most 250 and values of at most 6000 characters.

    Settings whose names or values look like secrets are hidden: `{"s3": {"secret_key": "x"}}` becomes
    `{"s3.secret_key": "(hidden)"}`.
    """
    flat: dict[str, str] = {}
    _flatten(parameters, "", flat)
    return {_key(name): _cut(value, _PARAMETER_LENGTH) for name, value in flat.items()}


def _flatten(value: object, name: str, into: dict[str, str]) -> None:
    if name and is_secret_name(name):
        into[name] = HIDDEN
    elif isinstance(value, Mapping) and value:
        for key, inner in value.items():
            _flatten(inner, f"{name}.{key}" if name else str(key), into)
    elif isinstance(value, (list, tuple)) and any(isinstance(inner, (Mapping, list, tuple)) for inner in value):
        for position, inner in enumerate(value):
            _flatten(inner, f"{name}.{position}", into)
    elif isinstance(value, (list, tuple)):
        into[name] = redact(json.dumps(value, default=str))
    else:
        into[name] = redact(str(value))


def _key(name: str) -> str:
    """A name that MLflow takes: its alphabet, no path tricks, at most 250 characters and still one of a kind."""
    key = _NOT_IN_A_KEY.sub("_", name).strip("/ ") or "_"
    key = re.sub(r"/{2,}", "/", key)
    key = "/".join("_" if part in {".", ".."} else part for part in key.split("/"))
    if len(key) > _KEY_LENGTH:
        key = f"{key[: _KEY_LENGTH - 9]}-{hashlib.sha256(name.encode()).hexdigest()[:8]}"
    return key


def _cut(value: str, length: int) -> str:
    return value if len(value) <= length else f"{value[: length - 1]}…"


def _log_parameters(client: MlflowClient, run_id: str, parameters: Mapping[str, str]) -> None:
    from mlflow.entities import Param

    rows = [Param(name, value) for name, value in parameters.items()]
    for first in range(0, len(rows), _PARAMETERS_PER_BATCH):
        client.log_batch(run_id, params=rows[first : first + _PARAMETERS_PER_BATCH])


def _run_tags(run_name: str, tags: Mapping[str, str]) -> dict[str, str]:
    """The caller's tags, and those by which MLflow's page shows user, source and version."""
    shown = {"mlflow.source.type": "LOCAL", "mlflow.source.name": Path(sys.argv[0] or "python").name, **tags}
    with contextlib.suppress(OSError, KeyError):  # a container's user may have no name
        shown["mlflow.user"] = getpass.getuser()
    if GIT_COMMIT in tags:
        shown["mlflow.source.git.commit"] = tags[GIT_COMMIT].partition(" ")[0]
    hidden = {_key(name): HIDDEN if is_secret_name(name) else redact(str(value)) for name, value in shown.items()}
    return {name: _cut(value, _TAG_LENGTH) for name, value in hidden.items()} | {RUN_TAG: run_name}


def _experiment(client: MlflowClient, config: TrackingConfig) -> str:
    from mlflow.exceptions import MlflowException

    experiment = client.get_experiment_by_name(config.experiment)
    if experiment is None:
        try:
            return client.create_experiment(config.experiment, artifact_location=config.artifact_location())
        except MlflowException as error:
            if error.error_code != "RESOURCE_ALREADY_EXISTS":
                raise
            experiment = client.get_experiment_by_name(config.experiment)  # another job was first
    elif experiment.lifecycle_stage == "deleted":
        client.restore_experiment(experiment.experiment_id)
    return experiment.experiment_id
