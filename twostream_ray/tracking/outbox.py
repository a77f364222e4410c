"""Transactional outbox of a run: events for MLflow are first written beside its checkpoints, and removed once sent.

`<run>/tracking-journal/`, on disk or s3://, contains:

    run.json                 identity of the run: key, name, experiment, start, parameters, tags; written once
    mlflow.json              its ids in MLflow, once it has been created there
    events/ORDER.json        one event each: metrics, files or a status, with the time when it was logged
    files/ORDER/...          the files of that event
    refused/ORDER.json       events that MLflow rejected, and damaged files; kept for inspection

Each event is an object with a name of its own, as object stores cannot append, and driver and controller both write.
Files are validated when they are read; files with other names are ignored.
"""

from __future__ import annotations

import math
import os
import re
import threading
import time
import uuid
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from tenacity import Retrying, retry_if_exception, stop_after_attempt

from twostream_ray import storage
from twostream_ray.errors import AccessError, OutboxError, StorageError
from twostream_ray.storage import json_files

FOLDER = "tracking-journal"
_RUN, _IDS, _REFUSED = "run.json", "mlflow.json", "refused"
_MOST_LISTINGS = 10

_ORDER = re.compile(r"(\d{20}-[0-9a-f]{8}-\d{1,10})\.json")
_TEXT = {"type": "string", "maxLength": 10_000}
_TEXTS = {"type": "object", "additionalProperties": _TEXT, "propertyNames": {"minLength": 1, "maxLength": 250}}
_ID = {"type": "string", "pattern": r"^[A-Za-z0-9_-]{1,64}\Z"}
_LARGEST = 1.7976931348623157e308
_NON_FINITE = ("nan", "inf", "-inf")
_ROW = {
    "type": "array",
    "prefixItems": [
        {"type": "string", "minLength": 1, "maxLength": 250},
        {"type": "integer", "minimum": -(2**53), "maximum": 2**53},
        {"anyOf": [{"type": "number", "minimum": -_LARGEST, "maximum": _LARGEST}, {"enum": list(_NON_FINITE)}]},
    ],
    "items": False,
    "minItems": 3,
}
_RUN_SCHEMA = json_files.record(
    {
        "key": {"type": "string", "pattern": r"^[0-9a-f]{32}\Z"},
        "run_name": json_files.WORD,
        "experiment": json_files.WORD,
        "start_ms": json_files.COUNT,
        "parameters": _TEXTS,
        "tags": _TEXTS,
    }
)
_IDS_SCHEMA = json_files.record({"experiment_id": _ID, "run_id": _ID})
_EVENT_SCHEMA = json_files.record(
    {
        "kind": {"enum": ["metrics", "files", "tags", "status", "data"]},
        "time_ms": json_files.COUNT,
        "values": {"type": "object"},
    }
)
_VALUES_SCHEMAS = {
    "metrics": json_files.record({"rows": json_files.list_of(_ROW, at_most=1_000_000)}),
    # A relative path inside the folder.
    "files": json_files.record(
        {"folder": {"type": ["string", "null"], "pattern": r"^(?!/)(?!(.*/)?\.\.?(/|\Z))[^\\\x00-\x1f]{1,500}\Z"}}
    ),
    "tags": json_files.record({"tags": _TEXTS}),
    "data": json_files.record(
        {
            "name": json_files.WORD,
            "digest": {"type": "string", "pattern": r"^[0-9a-f]{1,36}\Z"},
            "source": _TEXT,
            "profile": {"type": "object"},
            "context": {"enum": ["training", "evaluation"]},
        }
    ),
    "status": json_files.record({"status": {"enum": ["RUNNING", "FINISHED", "FAILED", "KILLED"]}}),
}

_lock = threading.Lock()
_last_ns = 0
_writer = uuid.uuid4().hex[:8]


@dataclass(frozen=True, kw_only=True, slots=True)
class Identity:
    """Identity of a run, the same across all its restarts."""

    key: str
    """Unique key, a tag of the run in MLflow by which it is found."""
    run_name: str
    """Name of the run."""
    experiment: str
    """Name of the MLflow experiment."""
    start_ms: int
    """When it was first started, in ms since 1970."""
    parameters: dict[str, str]
    """Parameters for MLflow: flattened, secrets hidden."""
    tags: dict[str, str]
    """Tags for MLflow, secrets hidden."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Event:
    """One entry of the outbox: metrics, files, tags, a data set or a status."""

    order: str
    """Its name, by which events sort in the order in which they were logged."""
    kind: str
    """metrics, files, tags, data or status."""
    time_ms: int
    """When it was logged, in ms since 1970."""
    values: dict[str, Any]
    """metrics: {"rows": [[key, step, value], ...]}; files: {"folder": str or None}; status: {"status": str};
    tags: {"tags": {name: value}}; data: {"name", "digest", "source", "profile", "context"}."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Outbox:
    """The outbox of a run.

    Every method raises StorageError if its folder cannot be read or written, and OutboxError if a file that it reads is
    damaged.
    """

    run_uri: str
    """The run's directory or s3:// prefix."""

    @property
    def uri(self) -> str:
        """The outbox's own folder."""
        return storage.join(self.run_uri, FOLDER)

    def identity(self) -> Identity | None:
        """Identity of the run; None before its first start."""
        found = self._read(_RUN, _RUN_SCHEMA, way_out=f"move {_RUN} away to start a new run in MLflow")
        return None if found is None else Identity(**found)

    def begin(self, identity: Identity) -> None:
        """Write the identity of a new run."""
        self._write(_RUN, asdict(identity))

    def ids(self) -> tuple[str, str] | None:
        """(experiment id, run id) in MLflow; None until the run has been created there."""
        found = self._read(_IDS, _IDS_SCHEMA, way_out="remove it; the run is found again by its key")
        return None if found is None else (found["experiment_id"], found["run_id"])

    def forget_ids(self, *, reason: str) -> None:
        """Move an unreadable file of ids to `refused`."""
        self._set_file_aside(_IDS, name=f"{_next()}.mlflow.json", reason=reason)

    def write_ids(self, *, experiment_id: str, run_id: str) -> None:
        """Write the ids in MLflow."""
        self._write(_IDS, {"experiment_id": experiment_id, "run_id": run_id})

    def forget(self) -> int:
        """Remove identity, ids and events, so that another run can start here; returns the number of unsent events.

        The identity is removed last: after a kill in between the run is still the same.
        """
        events, _ = self.pending()
        for event in events:
            self.remove(event)
        for name in (_IDS, _RUN):
            storage.delete(storage.join(self.uri, name))
        return len(events)

    def append(self, kind: str, values: Mapping[str, Any], *, files: Mapping[str, Path] | None = None) -> None:
        """Write an event, its files (by their relative posix paths) before it."""
        order = _next()
        for path, file in (files or {}).items():
            storage.write_bytes(storage.join(self.uri, "files", order, path), file.read_bytes())
        values = dict(values)
        if kind == "metrics":
            # JSON has no NaN.
            rows = [[key, step, value if math.isfinite(value) else str(value)] for key, step, value in values["rows"]]
            values = {"rows": rows}
        self._write(f"events/{order}.json", {"kind": kind, "time_ms": int(time.time() * 1000), "values": values})

    def pending(self, *, most: int | None = None) -> tuple[list[Event], list[str]]:
        """Undelivered events in order, at most `most`; and a sentence for each damaged one, now moved to `refused`."""
        events, damaged = [], []
        for order in self._orders()[:most]:
            name = f"events/{order}.json"
            way_out = f"it is kept in {self.uri}/{_REFUSED}, the others are delivered"
            try:
                found = self._read(name, _EVENT_SCHEMA, way_out=way_out)
                if found is None:  # another process has just delivered it
                    continue
                where = storage.join(self.uri, name)
                json_files.check(
                    found["values"],
                    _VALUES_SCHEMAS[found["kind"]],
                    where=where,
                    what=f"an event of kind {found['kind']}",
                    way_out=way_out,
                    error=OutboxError,
                )
            except OutboxError as error:
                self._set_file_aside(name, name=f"{order}.json", reason=str(error))
                damaged.append(str(error))
            else:
                events.append(Event(order=order, **found))
        return events, damaged

    def count(self) -> int:
        """Number of undelivered events."""
        return len(self._orders())

    def fetch_files(self, event: Event, folder: Path) -> int:
        """Copy an event's files into a folder; returns their number."""
        uri = storage.join(self.uri, "files", event.order)
        paths = self._files_of(event)
        for path in paths:
            target = folder / path
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(storage.read_bytes(storage.join(uri, path)))
        return len(paths)

    def remove(self, event: Event) -> None:
        """Remove a delivered event: its files first, the event itself last."""
        if event.kind == "files":
            uri = storage.join(self.uri, "files", event.order)
            for path in self._files_of(event):
                storage.delete(storage.join(uri, path))
        storage.delete(storage.join(self.uri, f"events/{event.order}.json"))

    def refuse(self, event: Event, *, reason: str) -> None:
        """Move an event that MLflow rejected to `refused`, where it does not block others."""
        self._write(f"{_REFUSED}/{event.order}.json", asdict(event) | {"reason": reason})
        storage.delete(storage.join(self.uri, f"events/{event.order}.json"))

    def _orders(self) -> list[str]:
        found = map(_ORDER.fullmatch, _files_below(storage.join(self.uri, "events")))
        return [match[1] for match in found if match]

    def _files_of(self, event: Event) -> list[str]:
        """An event's files, by relative paths.

        Raises:
            OutboxError: a name or a link leads outside.
        """
        uri = storage.join(self.uri, "files", event.order)
        paths = _files_below(uri)
        for path in paths:
            inside = not any(part in ("", ".", "..") for part in path.split("/"))
            if inside and not storage.is_s3(uri):
                root = Path(storage.absolute(self.uri)).resolve() / "files" / event.order
                inside = (root / path).resolve().is_relative_to(root)
            if not inside:
                raise OutboxError(f"files of an event were wanted below {uri}, {path} leads outside: remove it")
        return paths

    def _read(self, name: str, schema: json_files.Schema, *, way_out: str) -> dict[str, Any] | None:
        uri = storage.join(self.uri, name)
        try:
            return dict(
                json_files.read_json(
                    uri, schema, what="a file of a tracking outbox", way_out=way_out, error=OutboxError
                )
            )
        except AccessError as error:
            if not storage.exists(uri):  # another process has just removed it
                return None
            raise OutboxError(f"a file of a tracking outbox was wanted at {uri} ({error}): {way_out}") from error

    def _set_file_aside(self, path: str, *, name: str, reason: str) -> None:
        """Move a damaged file to `refused` unchanged, with the reason beside it."""
        uri = storage.join(self.uri, path)
        try:
            content = storage.read_bytes(uri, limit_bytes=json_files.LIMIT_BYTES)
        except StorageError:
            return  # no file: it stays where it is, and is skipped
        storage.write_bytes(storage.join(self.uri, _REFUSED, name), content)
        storage.write_bytes(storage.join(self.uri, _REFUSED, f"{name}.reason.txt"), f"{reason}\n".encode())
        storage.delete(uri)

    def _write(self, name: str, values: Mapping[str, Any]) -> None:
        storage.write_json(storage.join(self.uri, name), values)


def list_outboxes(uri: str) -> list[str]:
    """URIs of all runs below a directory or prefix that have an outbox.

    Raises:
        StorageError: there is no such directory or prefix.
    """
    ending = f"/{FOLDER}/{_RUN}"
    return [
        storage.join(uri, path.removesuffix(ending)) for path, _ in storage.list_files(uri) if path.endswith(ending)
    ]


def _files_below(uri: str) -> list[str]:
    def went_away(error: BaseException) -> bool:
        """Whether a file of the folder was removed while it was listed."""
        return isinstance(error, AccessError) and storage.exists(uri)

    retrying = Retrying(retry=retry_if_exception(went_away), stop=stop_after_attempt(_MOST_LISTINGS), reraise=True)
    try:
        found = retrying(lambda: list(storage.list_files(uri)))
    except AccessError:
        return []
    # Names of files being written start with a dot.
    return [path for path, _ in found if not Path(path).name.startswith(".")]


def _next() -> str:
    """A unique name that sorts after all earlier ones of this process."""
    global _last_ns
    with _lock:
        _last_ns = max(time.time_ns(), _last_ns + 1)
        return f"{_last_ns:020d}-{_writer}-{os.getpid()}"
