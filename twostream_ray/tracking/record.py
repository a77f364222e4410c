"""Experiment logging: one MLflow run per training across restarts, with parameters, metrics and files; never raises.

Events are first written to the run's outbox (outbox.py), and from there delivered to MLflow when it answers
(delivery.py).
"""

from __future__ import annotations

import contextlib
import getpass
import hashlib
import json
import logging
import re
import sys
import time
import uuid
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from twostream_ray.errors import OutboxError, StorageError
from twostream_ray.redaction import HIDDEN, is_secret_name, redact
from twostream_ray.storage.temporary_folders import temporary_folder
from twostream_ray.tracking.delivery import deliver_if_due, deliver_now
from twostream_ray.tracking.lineage import GIT_COMMIT
from twostream_ray.tracking.outbox import Identity, Outbox
from twostream_ray.tracking.settings import TrackingConfig

if TYPE_CHECKING:
    from matplotlib.figure import Figure

RUN_TAG = "twostream.run"
"""Tag with a run's name."""
FAILURE = "failure"
"""Tag with the reason why a run failed."""
DESCRIPTION = "mlflow.note.content"
"""Tag whose Markdown MLflow's page shows as a run's description."""

_logger = logging.getLogger(__name__)
# MLflow's limits (mlflow.utils.validation).
_KEY_LENGTH, _PARAMETER_LENGTH, _TAG_LENGTH = 250, 6000, 8000
_DATA_NAME_LENGTH = 500
DIGEST_LENGTH = 36
"""Characters of a manifest's hash used as the digest of a data set, MLflow's limit."""
_unrecorded: Counter[str] = Counter()
"""Events of each run, by its URI, that could not be written to its outbox since the last one that could."""
_NOT_IN_A_KEY = re.compile(r"[^/\w.\- :]")


@dataclass(frozen=True, kw_only=True, slots=True)
class RunHandle:
    """Picklable reference to an MLflow run, created by the driver and sent to processes that log."""

    tracking_uri: str = field(repr=False)
    """Resolved tracking URI; not in the repr, as it may contain a password."""
    run_uri: str
    """The run's directory or s3:// prefix, where its checkpoints are; its outbox is `tracking-journal` below."""
    experiment_id: str
    """Id of the experiment; empty if MLflow has been unreachable since the start."""
    run_id: str
    """Id of the run; empty if MLflow has been unreachable since the start: the outbox collects events without it."""


def start_run(
    config: TrackingConfig,
    *,
    run_name: str,
    run_uri: str,
    parameters: Mapping[str, object],
    tags: Mapping[str, str],
    parent: RunHandle | None = None,
    anew: bool = False,
) -> RunHandle:
    """Start the run of a directory, or resume it if it was started there before; in the driver, before training.

    Args:
        config: the tracking server.
        run_name: name of the run.
        run_uri: the run's directory or s3:// prefix, whose outbox tells whether it was started before.
        parameters: nested settings; logged under dotted keys, secrets hidden, long values cut. Those of the first start
            are kept.
        tags: lineage and other searchable tags. Those of the first start are kept.
        parent: the run in which this one is nested, once it exists in MLflow.
        anew: start a new MLflow run although one was started in this directory, with other settings and no checkpoint.

    Does not raise if MLflow is unreachable: the run is created once it answers, with the time of this start.

    Raises:
        StorageError: the directory cannot be written.
        OutboxError: the outbox has no valid identity of a run.
    """
    outbox = Outbox(run_uri=run_uri)
    if anew and outbox.identity() is not None:
        _close(outbox, config.resolved_uri())
    if outbox.identity() is None:
        shown = _run_tags(run_name, tags) | parent_tags(parent)
        if parent is not None:
            # A trial's process is started by Ray, so sys.argv[0] is Ray's.
            shown["mlflow.source.name"] = "twostream tune"
        outbox.begin(
            Identity(
                key=uuid.uuid4().hex,
                run_name=run_name,
                experiment=config.experiment,
                start_ms=int(time.time() * 1000),
                parameters=flat_parameters(parameters),
                tags=shown,
            )
        )
    else:
        outbox.append("tags", {"tags": {FAILURE: ""}})
        outbox.append("status", {"status": "RUNNING"})
    return _delivered(
        RunHandle(tracking_uri=config.resolved_uri(), run_uri=run_uri, experiment_id="", run_id=""), patient=False
    )


def _close(outbox: Outbox, tracking_uri: str) -> None:
    """Deliver the outbox of a run that ended, and clear it for a new run."""
    deliver_now(outbox, tracking_uri, patient=False)
    if left := outbox.forget():
        _logger.warning("%s: MLflow is unreachable, so %d events of the earlier, failed run are lost", outbox.uri, left)


def find_run(config: TrackingConfig, *, run_uri: str) -> RunHandle | None:
    """The run that was started in a directory; None without one, or if its outbox is damaged. Asks no server.

    Raises:
        StorageError: the directory cannot be read.
    """
    outbox = Outbox(run_uri=run_uri)
    try:
        if outbox.identity() is None:
            return None
        experiment_id, run_id = outbox.ids() or ("", "")
    except OutboxError as error:
        _logger.warning("%s", error)
        return None
    return RunHandle(tracking_uri=config.resolved_uri(), run_uri=run_uri, experiment_id=experiment_id, run_id=run_id)


def parent_tags(parent: RunHandle | None) -> dict[str, str]:
    """The tag that nests a run in `parent`; {} as long as that does not exist in MLflow."""
    return {"mlflow.parentRunId": parent.run_id} if parent is not None and parent.run_id else {}


def tag_run(handle: RunHandle, tags: Mapping[str, str]) -> None:
    """Set tags of a started run; never raises if MLflow is unreachable."""
    shown = {_key(name): _cut(redact(value), _TAG_LENGTH) for name, value in tags.items()}
    _log(handle, "tags", {"tags": shown})


def deliver(handle: RunHandle) -> RunHandle:
    """Deliver the run's outbox, with a warning if MLflow is unreachable; returns the handle with the run's ids.

    Never raises.
    """
    return _delivered(handle, patient=True)


def _delivered(handle: RunHandle, *, patient: bool) -> RunHandle:
    outbox = Outbox(run_uri=handle.run_uri)
    deliver_now(outbox, handle.tracking_uri, patient=patient)
    with contextlib.suppress(StorageError, OutboxError):
        if ids := outbox.ids():
            return replace(handle, experiment_id=ids[0], run_id=ids[1])
    return handle


def log_metrics(handle: RunHandle, metrics: Mapping[str, float], *, step: int) -> None:
    """Log metrics at a step (the epoch); values that were logged at this step before a crash are kept.

    Never raises, and takes seconds at most: while MLflow is unreachable only the outbox is written.
    """
    log_history(handle, {step: metrics})


def log_history(handle: RunHandle, history: Mapping[int, Mapping[str, float]]) -> None:
    """Log the metrics of many steps at once; otherwise as `log_metrics`."""
    if write_history(handle.run_uri, history):
        send(handle)


def write_history(run_uri: str, history: Mapping[int, Mapping[str, float]]) -> bool:
    """Write metrics to a run's outbox, for `send` to deliver from another process, without importing MLflow.

    Returns whether there is something to send; never raises.
    """
    rows = [(_key(name), step, float(value)) for step, metrics in history.items() for name, value in metrics.items()]
    return bool(rows) and _write(run_uri, "metrics", {"rows": rows})


def send(handle: RunHandle) -> None:
    """Deliver the run's outbox, unless MLflow was unreachable a moment ago.

    Never raises, and takes seconds at most.
    """
    deliver_if_due(Outbox(run_uri=handle.run_uri), handle.tracking_uri)


def log_artifacts(handle: RunHandle, paths: Sequence[Path], *, folder: str | None = None) -> None:
    """Log files or directories, into `folder` of the run's artefacts; never raises if MLflow is unreachable."""
    files = {}
    for path in paths:
        below = [inner for inner in path.rglob("*") if inner.is_file()] if path.is_dir() else [path]
        files.update({inner.relative_to(path.parent).as_posix(): inner for inner in below})
    _log(handle, "files", {"folder": folder}, files=files)


def log_pictures(handle: RunHandle, pictures: Mapping[str, Path | Figure]) -> None:
    """Log pictures by name, files or Matplotlib figures, as artefacts `pictures/NAME.png`."""
    with temporary_folder() as scratch:
        files = {}
        for name, picture in pictures.items():
            if isinstance(picture, Path):
                files[f"{name}{picture.suffix}"] = picture
            else:
                files[f"{name}.png"] = Path(scratch, f"{len(files)}.png")
                picture.savefig(files[f"{name}.png"])
        _log(handle, "files", {"folder": "pictures"}, files=files)


def log_data(
    handle: RunHandle,
    *,
    name: str,
    manifest_hash: str,
    source: str,
    profile: Mapping[str, object],
    context: Literal["training", "evaluation"],
) -> None:
    """Log a data set as an input of the run; never raises if MLflow is unreachable.

    Args:
        handle: the run.
        name: name of the data set.
        manifest_hash: hash of the shards' manifest; its first 36 characters are MLflow's digest.
        source: URI of the shards.
        profile: counts, shown on the run's page.
        context: what the data was used for.
    """
    values = {
        "name": _cut(redact(name), _DATA_NAME_LENGTH),
        "digest": manifest_hash[:DIGEST_LENGTH],
        "source": _cut(redact(source), _PARAMETER_LENGTH),
        "profile": {**profile, "manifest_hash": manifest_hash},
        "context": context,
    }
    _log(handle, "data", values)


def finish_run(
    handle: RunHandle, status: Literal["FINISHED", "FAILED", "KILLED"] = "FINISHED", *, failure: str = ""
) -> RunHandle:
    """End the run (`start_run` resumes it) and deliver its outbox, as `deliver` does.

    `failure` is stored as a tag: why it failed, in a line without secrets; resuming the run removes it.
    """
    if failure:
        line = _cut(redact(" ".join(failure.split())), _TAG_LENGTH)
        _write(handle.run_uri, "tags", {"tags": {FAILURE: line}})
    _write(handle.run_uri, "status", {"status": status})
    if count := _unrecorded.pop(handle.run_uri, 0):
        _logger.warning("%d events of %s could not be written and are not recorded", count, handle.run_uri)
    return deliver(handle)


def _log(
    handle: RunHandle,
    kind: str,
    values: Mapping[str, object],
    *,
    files: Mapping[str, Path] | None = None,
) -> None:
    if _write(handle.run_uri, kind, values, files=files):
        send(handle)


def _write(run_uri: str, kind: str, values: Mapping[str, object], *, files: Mapping[str, Path] | None = None) -> bool:
    """Append to the outbox of a run; returns whether it succeeded."""
    outbox = Outbox(run_uri=run_uri)
    try:
        outbox.append(kind, values, files=files)
    except (StorageError, OSError) as error:
        # A full disk refuses every event: the first is logged, the others are counted.
        if not _unrecorded[run_uri]:
            _logger.warning("cannot write to %s, so %s are not recorded (%s)", outbox.uri, kind, redact(str(error)))
        _unrecorded[run_uri] += 1
        return False
    if count := _unrecorded.pop(run_uri, 0):
        _logger.warning("%s can be written again; %d events are not recorded", outbox.uri, count)
    return True


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
    """A valid and unique MLflow key: its alphabet, no path components such as .., at most 250 characters."""
    key = _NOT_IN_A_KEY.sub("_", name).strip("/ ") or "_"
    key = re.sub(r"/{2,}", "/", key)
    key = "/".join("_" if part in {".", ".."} else part for part in key.split("/"))
    if len(key) > _KEY_LENGTH:
        key = f"{key[: _KEY_LENGTH - 9]}-{hashlib.sha256(name.encode()).hexdigest()[:8]}"
    return key


def _cut(value: str, length: int) -> str:
    return value if len(value) <= length else f"{value[: length - 1]}…"


def _run_tags(run_name: str, tags: Mapping[str, str]) -> dict[str, str]:
    """The caller's tags, and MLflow's own tags for user, source and version."""
    shown = {"mlflow.source.type": "LOCAL", "mlflow.source.name": Path(sys.argv[0] or "python").name, **tags}
    with contextlib.suppress(OSError, KeyError):  # a container's user may have no name
        shown["mlflow.user"] = getpass.getuser()
    if GIT_COMMIT in tags:
        shown["mlflow.source.git.commit"] = tags[GIT_COMMIT].partition(" ")[0]
    hidden = {_key(name): HIDDEN if is_secret_name(name) else redact(str(value)) for name, value in shown.items()}
    return {name: _cut(value, _TAG_LENGTH) for name, value in hidden.items()} | {RUN_TAG: run_name}
