"""Outbox delivery to MLflow: in order, exactly once, with deadlines and exponential backoff while it is unreachable."""

from __future__ import annotations

import json
import logging
import shlex
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from twostream_ray.errors import OutboxError, TrackingError, TwoStreamError
from twostream_ray.redaction import redact
from twostream_ray.storage.locks import process_lock
from twostream_ray.storage.temporary_folders import temporary_folder
from twostream_ray.tracking import sqlite
from twostream_ray.tracking.connection import client_for, load_mlflow, short_timeouts
from twostream_ray.tracking.outbox import Event, Identity, Outbox
from twostream_ray.tracking.settings import TrackingConfig, first_line
from twostream_ray.tracking.timeouts import call_with_deadline

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run

KEY_TAG = "twostream.run_key"
"""Tag with a run's idempotency key, by which a run is found that was created although the response was lost."""

_logger = logging.getLogger(__name__)
_FIRST_PAUSE_S, _LONGEST_PAUSE_S = 15.0, 300.0
_REQUEST_S, _PATIENT_REQUEST_S = 10, 60
"""Read timeouts of requests."""
_LIMIT_S = 10.0
"""Deadline of a delivery at the start of a training, or at an epoch."""
_EVENT_LIMIT_S, _PATIENT_EVENT_LIMIT_S = 60.0, 120.0
"""Deadlines for one event, after a training and in a replay."""
_GRACE_S = 10.0
"""How much longer an abandoned delivery may run before its thread is stopped."""
_MOST_AT_ONCE = 100
"""Most events that a running training sends at once, so that a long outbox does not delay it."""
_PATIENCE_S = 30.0
"""How long the end of a run waits for another process that is delivering the same outbox."""
_REFUSALS = ("INVALID_PARAMETER_VALUE", "BAD_REQUEST", "INVALID_STATE")
"""Error codes that a retry cannot fix."""
# MLflow's limits (mlflow.utils.validation); a batch above its own is refused whole.
_PARAMETERS_PER_BATCH, _METRICS_PER_BATCH = 100, 1000


@dataclass
class _Outage:
    pause_s: float
    again_at: float
    """By the monotonic clock."""


_outages: dict[str, _Outage] = {}
"""Unreachable URIs: until the next attempt, events stay in the outbox."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Delivery:
    """Result of delivering one run's outbox."""

    run_uri: str
    """The run."""
    run_id: str
    """The run's id in MLflow."""
    metrics: int
    """Delivered metric values, without those that MLflow already had."""
    files: int
    """Delivered files."""
    statuses: int
    """Delivered starts and ends of the run."""
    refused: int
    """Events that MLflow rejected, now in the outbox's folder `refused`."""

    def sentence(self) -> str:
        """The counts in a sentence."""
        counts = {"metric values": self.metrics, "files": self.files, "statuses": self.statuses}
        delivered = ", ".join(f"{what} {count}" for what, count in counts.items() if count) or "nothing was waiting"
        return f"{self.run_uri}: {delivered}" + (f"; refused {self.refused}" if self.refused else "")


def deliver_if_due(outbox: Outbox, uri: str) -> None:
    """Deliver pending events within seconds; with backoff while MLflow is unreachable. Never raises."""
    outage = _outages.get(uri)
    if outage and time.monotonic() < outage.again_at:
        return
    try:
        delivered = _attempt(
            outbox, uri, wait_s=0, request_s=_REQUEST_S, limit_s=_LIMIT_S, most=_MOST_AT_ONCE, limit_per_event=False
        )
    except Exception as error:  # noqa: BLE001  (contract 9: nothing that MLflow or a store raises ends a training)
        _note_outage(outbox, uri, error)
    else:
        if delivered is not None:
            _outages.pop(uri, None)


def deliver_now(outbox: Outbox, uri: str, *, patient: bool) -> bool:
    """Deliver pending events without regard to backoff; returns whether all were delivered. Never raises.

    Takes at most some seconds (before a training), or with `patient` as long as there is progress (after it).
    """
    wait_s, limit_s = (_PATIENCE_S, _EVENT_LIMIT_S) if patient else (0, _LIMIT_S)
    try:
        delivered = _attempt(outbox, uri, wait_s=wait_s, request_s=_REQUEST_S, limit_s=limit_s, limit_per_event=patient)
    except Exception as error:  # noqa: BLE001  (as above)
        _note_outage(outbox, uri, error)
        if isinstance(error, TwoStreamError):
            return False
        delivered = None
    else:
        if delivered is not None:
            _outages.pop(uri, None)
    if delivered is None and patient:
        _logger.warning(
            "part of this run is not yet in MLflow at %s: `twostream track replay %s%s` delivers it",
            redact(uri),
            shlex.quote(redact(outbox.run_uri)),
            TrackingConfig(uri=uri).uri_option(),
        )
    return delivered is not None


def replay(run_uri: str, *, config: TrackingConfig) -> Delivery:
    """Deliver the outbox of a run; idempotent, even after a kill.

    Raises:
        OutboxError: there is no outbox, or it has no identity of a run.
        TrackingError: MLflow does not answer, or another process is delivering it.
        StorageError: the run's directory cannot be read.
    """
    outbox, uri = Outbox(run_uri=run_uri), config.resolved_uri()
    try:
        delivered = _attempt(
            outbox, uri, wait_s=_PATIENCE_S, request_s=_PATIENT_REQUEST_S, limit_s=_PATIENT_EVENT_LIMIT_S
        )
    except TwoStreamError:
        raise
    except Exception as error:
        raise TrackingError(
            f"MLflow at {redact(uri)} did not accept the outbox of {run_uri}, {outbox.count()} events are pending "
            f"({first_line(error)}): check tracking.uri and MLFLOW_TRACKING_USERNAME and _PASSWORD, then "
            "replay again"
        ) from error
    if delivered is None:
        raise TrackingError(f"another process is delivering the outbox of {run_uri}: wait, then replay again")
    return delivered


def _attempt(
    outbox: Outbox,
    uri: str,
    *,
    wait_s: float,
    request_s: int,
    limit_s: float,
    most: int | None = None,
    limit_per_event: bool = True,
) -> Delivery | None:
    """Deliver; None if another process is still delivering after `wait_s`.

    Raises:
        TimeoutError: a server took more than `limit_s`, for one event if `limit_per_event`, otherwise in all.
    """

    def work(progressed: Callable[[], None]) -> Delivery | None:
        with process_lock(outbox.uri, wait_s=wait_s) as acquired:
            progressed()
            report = progressed if limit_per_event else lambda: None
            return _deliver(outbox, uri, request_s=request_s, most=most, progressed=report) if acquired else None

    if sqlite.is_sqlite(uri):  # a file needs no deadline
        return work(lambda: None)
    load_mlflow()  # its seconds do not count for the server's deadline
    return call_with_deadline(work, limit_s=wait_s + limit_s, grace_s=_GRACE_S)


def _note_outage(outbox: Outbox, uri: str, error: Exception) -> None:
    before = _outages.get(uri)
    pause_s = min(2 * before.pause_s, _LONGEST_PAUSE_S) if before else _FIRST_PAUSE_S
    _outages[uri] = _Outage(pause_s=pause_s, again_at=time.monotonic() + pause_s)
    if before is not None:  # once an outage
        return
    if isinstance(error, TwoStreamError):  # of a file, not of MLflow
        _logger.warning("nothing is recorded at MLflow now; training continues (%s)", error)
    else:
        _logger.warning(
            "MLflow at %s cannot be reached, so events are kept in %s; training continues (%s)",
            redact(uri),
            outbox.uri,
            first_line(error),
        )


def _deliver(
    outbox: Outbox, uri: str, *, request_s: int, most: int | None = None, progressed: Callable[[], None]
) -> Delivery:
    identity = outbox.identity()
    if identity is None:
        raise OutboxError(
            f"a run's directory with a tracking outbox was wanted, {outbox.run_uri} has none: check the path"
        )
    # MLflow's client must not repeat requests: one whose response was lost may have been executed, and creating a run
    # is not idempotent.
    with short_timeouts(repeat=False, request_s=request_s):
        client = client_for(uri)
        run = _run_of(identity, outbox, client, uri)
        progressed()
        metrics = files = statuses = refused = 0

        def send_metrics(events: Sequence[Event]) -> None:
            nonlocal metrics
            metrics += _send_metrics(client, run, events)
            progressed()

        def send_other(events: Sequence[Event]) -> None:
            nonlocal files, statuses
            for event in events:
                if event.kind == "files":
                    files += _send_files(client, run.info.run_id, outbox, event)
                elif event.kind == "tags":
                    _send_tags(client, run, event)
                elif event.kind == "data":
                    _send_data(client, run.info.run_id, event)
                else:
                    _send_status(client, run.info.run_id, event)
                    statuses += 1
                progressed()

        pending, damaged = outbox.pending(most=most)
        refused += len(damaged)
        for sentence in damaged:
            _logger.warning("%s", sentence)
        logged = [event for event in pending if event.kind == "metrics"]
        if logged:
            refused += _send_or_refuse(outbox, logged, send_metrics)
        for event in pending:
            if event.kind != "metrics":
                refused += _send_or_refuse(outbox, [event], send_other)
    return Delivery(
        run_uri=outbox.run_uri,
        run_id=run.info.run_id,
        metrics=metrics,
        files=files,
        statuses=statuses,
        refused=refused,
    )


def _send_or_refuse(outbox: Outbox, events: Sequence[Event], send: Callable[[Sequence[Event]], None]) -> int:
    """Send events and remove them from the outbox; rejected ones are moved to `refused`, and counted."""
    from mlflow.exceptions import MlflowException

    try:
        send(events)
    except (MlflowException, OutboxError) as error:
        if isinstance(error, MlflowException) and error.error_code not in _REFUSALS:
            raise
        if len(events) > 1:
            return sum(_send_or_refuse(outbox, [event], send) for event in events)
        reason = first_line(error)
        outbox.refuse(events[0], reason=reason)
        refusal = "MLflow rejected" if isinstance(error, MlflowException) else "cannot send"
        _logger.warning("%s an event, now in %s/refused (%s)", refusal, outbox.uri, reason)
        return 1
    for event in events:
        outbox.remove(event)
    return 0


def _run_of(identity: Identity, outbox: Outbox, client: MlflowClient, uri: str) -> Run:
    """The run in this MLflow, created if it does not exist or was deleted."""
    from mlflow.entities import Param
    from mlflow.exceptions import MlflowException

    if ids := _ids(outbox):
        try:
            run = client.get_run(ids[1])
            if run.info.lifecycle_stage == "active" and run.data.tags.get(KEY_TAG) == identity.key:
                return run
        except MlflowException as error:
            if error.error_code != "RESOURCE_DOES_NOT_EXIST":  # as after a move to another server
                raise
    experiment_id = _experiment(client, TrackingConfig(uri=uri, experiment=identity.experiment))
    found = client.search_runs([experiment_id], filter_string=f"tags.`{KEY_TAG}` = '{identity.key}'")
    run = min(found, key=lambda run: str(run.info.run_id)) if found else None
    if run is None:
        run = client.create_run(
            experiment_id,
            start_time=identity.start_ms,
            run_name=identity.run_name,
            tags=identity.tags | {KEY_TAG: identity.key},
        )
    if not run.info.run_id:
        raise TrackingError(
            f"MLflow was wanted at {redact(uri)}, but something else answers (a run has no id): check tracking.uri"
        )
    rows = [Param(name, value) for name, value in identity.parameters.items()]
    for first in range(0, len(rows), _PARAMETERS_PER_BATCH):  # logging the same again is no error
        client.log_batch(run.info.run_id, params=rows[first : first + _PARAMETERS_PER_BATCH])
    outbox.write_ids(experiment_id=experiment_id, run_id=run.info.run_id)
    return run


def _ids(outbox: Outbox) -> tuple[str, str] | None:
    """The ids in the outbox; a damaged file is moved to `refused`, as the run can also be found by its key."""
    try:
        return outbox.ids()
    except OutboxError as error:
        _logger.warning("%s", error)
        outbox.forget_ids(reason=str(error))
        return None


def _send_metrics(client: MlflowClient, run: Run, events: Sequence[Event]) -> int:
    """Log values that the run does not have yet; the first value of a step stays. Returns the number of values."""
    from mlflow.entities import Metric

    # The run has the newest step of each metric, which nearly always suffices; a history is read only for steps that
    # are not newer.
    newest = {metric.key: metric.step for metric in run.data.to_proto().metrics}
    rows = [(key, step, float(value), event.time_ms) for event in events for key, step, value in event.values["rows"]]
    known: dict[str, set[int]] = {key: set() for key, *_ in rows}
    for key in {key for key, step, *_ in rows if key in newest and step <= newest[key]}:
        known[key] = {row.step for row in client.get_metric_history(run.info.run_id, key)}
    fresh = []
    for key, step, value, time_ms in rows:
        if step not in known[key]:
            known[key].add(step)
            fresh.append(Metric(key, value, time_ms, step))
    for first in range(0, len(fresh), _METRICS_PER_BATCH):
        client.log_batch(run.info.run_id, metrics=fresh[first : first + _METRICS_PER_BATCH])
    return len(fresh)


def _send_files(client: MlflowClient, run_id: str, outbox: Outbox, event: Event) -> int:
    with temporary_folder() as scratch:
        count = outbox.fetch_files(event, Path(scratch))
        if count:  # otherwise a delivery was killed before it could remove the event
            client.log_artifacts(run_id, scratch, event.values["folder"])
    return count


def _send_tags(client: MlflowClient, run: Run, event: Event) -> None:
    """Set tags; those without a value are deleted."""
    for name, value in event.values["tags"].items():
        if value:
            client.set_tag(run.info.run_id, name, value)
        elif name in client.get_run(run.info.run_id).data.tags:
            client.delete_tag(run.info.run_id, name)


def _send_data(client: MlflowClient, run_id: str, event: Event) -> None:
    """Log a data set as the run's input; an existing one is not changed."""
    from mlflow.entities import Dataset, DatasetInput, InputTag
    from mlflow.utils.mlflow_tags import MLFLOW_DATASET_CONTEXT

    values = event.values
    data_set = Dataset(
        name=values["name"],
        digest=values["digest"],
        source_type="s3" if values["source"].startswith("s3://") else "local",
        source=json.dumps({"uri": values["source"]}),
        profile=json.dumps(values["profile"]),
    )
    client.log_inputs(run_id, [DatasetInput(data_set, [InputTag(MLFLOW_DATASET_CONTEXT, values["context"])])])


def _send_status(client: MlflowClient, run_id: str, event: Event) -> None:
    if event.values["status"] == "RUNNING":
        client.update_run(run_id, status="RUNNING")
    else:
        client.set_terminated(run_id, event.values["status"], end_time=event.time_ms)


def _experiment(client: MlflowClient, config: TrackingConfig) -> str:
    from mlflow.exceptions import MlflowException

    experiment = client.get_experiment_by_name(config.experiment)
    if experiment is None:
        try:
            return str(client.create_experiment(config.experiment, artifact_location=config.artifact_location()))
        except MlflowException as error:
            if error.error_code != "RESOURCE_ALREADY_EXISTS":
                raise
            experiment = client.get_experiment_by_name(config.experiment)  # another job was first
    elif experiment.lifecycle_stage == "deleted":
        client.restore_experiment(experiment.experiment_id)
    return str(experiment.experiment_id)
