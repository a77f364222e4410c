"""What MLflow has still to hear of a run: files beside its checkpoints, written before they are sent, removed after.

Below `<run>/tracking-journal/`, on disk or s3://:

    run.json                 who the run is: key, name, experiment, start, parameters, tags; written once, stays
    mlflow.json              its ids at MLflow, once it has been made there
    events/ORDER.json        one event each: metrics, files or a status, with the time when it was logged
    files/ORDER/...          the files of that event
    refused/ORDER.json       events that MLflow itself turned down; kept to be looked at

One object for each event, under a name of its own: object stores cannot append, and driver and controller both write.
"""

from __future__ import annotations

import json
import os
import threading
import time
import uuid
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from twostream_ray import storage
from twostream_ray.errors import AccessError

FOLDER = "tracking-journal"
_RUN, _IDS = "run.json", "mlflow.json"

_lock = threading.Lock()
_last_ns = 0
_writer = uuid.uuid4().hex[:8]


@dataclass(frozen=True, kw_only=True, slots=True)
class Identity:
    """A logical run, the same across all its restarts."""

    key: str
    """One of a kind; a tag of the run at MLflow, by which it is found again."""
    run_name: str
    """The name people know it by."""
    experiment: str
    """Name of the MLflow experiment."""
    start_ms: int
    """When it was first started, in ms since 1970."""
    parameters: dict[str, str]
    """As MLflow takes them: flat, secrets hidden."""
    tags: dict[str, str]
    """Likewise."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Event:
    """Something logged."""

    order: str
    """Its name: events sort by it in the order in which they were logged."""
    kind: str
    """metrics, files, tags or status."""
    time_ms: int
    """When it was logged, in ms since 1970."""
    values: dict[str, Any]
    """metrics: {"rows": [[key, step, value], ...]}; files: {"folder": str or None}; status: {"status": str};
    tags: {"tags": {name: value}}."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Journal:
    """The journal of the run at a place; every method raises StorageError if the place cannot be read or written."""

    run_place: str
    """The run's directory or s3:// prefix."""

    @property
    def place(self) -> str:
        """Where the journal itself lies."""
        return storage.join(self.run_place, FOLDER)

    def identity(self) -> Identity | None:
        """Who the run is; None before its first start."""
        found = self._read(_RUN)
        return None if found is None else Identity(**found)

    def begin(self, identity: Identity) -> None:
        """Write down who the run is."""
        self._write(_RUN, asdict(identity))

    def ids(self) -> tuple[str, str] | None:
        """(experiment id, run id) at MLflow; None as long as the run was not made there."""
        found = self._read(_IDS)
        return None if found is None else (found["experiment_id"], found["run_id"])

    def located(self, *, experiment_id: str, run_id: str) -> None:
        """Write down the ids at MLflow."""
        self._write(_IDS, {"experiment_id": experiment_id, "run_id": run_id})

    def append(self, kind: str, values: Mapping[str, Any], *, files: Mapping[str, Path] | None = None) -> None:
        """Write an event down, its files (by their relative posix paths) before it."""
        order = _next()
        for path, file in (files or {}).items():
            storage.write_bytes(storage.join(self.place, "files", order, path), file.read_bytes())
        self._write(f"events/{order}.json", {"kind": kind, "time_ms": int(time.time() * 1000), "values": dict(values)})

    def pending(self, *, most: int | None = None) -> list[Event]:
        """What has not been delivered, in order; at most that many."""
        events = []
        for order in self._orders()[:most]:
            found = self._read(f"events/{order}.json")
            if found is not None:  # else another process has just delivered it
                events.append(Event(order=order, **found))
        return events

    def count(self) -> int:
        """How many events have not been delivered."""
        return len(self._orders())

    def fetch_files(self, event: Event, folder: Path) -> int:
        """Copy an event's files into a folder; gives their number."""
        place = storage.join(self.place, "files", event.order)
        paths = _files_below(place)
        for path in paths:
            target = folder / path
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(storage.read_bytes(storage.join(place, path)))
        return len(paths)

    def remove(self, event: Event) -> None:
        """Forget an event that has arrived; the last to go is the event itself."""
        if event.kind == "files":
            place = storage.join(self.place, "files", event.order)
            for path in _files_below(place):
                storage.delete(storage.join(place, path))
        storage.delete(storage.join(self.place, f"events/{event.order}.json"))

    def set_aside(self, event: Event, *, reason: str) -> None:
        """Put an event that MLflow refuses where it holds up no others."""
        self._write(f"refused/{event.order}.json", asdict(event) | {"reason": reason})
        storage.delete(storage.join(self.place, f"events/{event.order}.json"))

    def _orders(self) -> list[str]:
        return [path.removesuffix(".json") for path in _files_below(storage.join(self.place, "events"))]

    def _read(self, name: str) -> dict[str, Any] | None:
        try:
            return dict(json.loads(storage.read_text(storage.join(self.place, name))))
        except AccessError:
            return None

    def _write(self, name: str, values: Mapping[str, Any]) -> None:
        storage.write_json(storage.join(self.place, name), values)


def journals_below(place: str) -> list[str]:
    """Places of all runs below a directory or prefix that have a journal.

    Raises:
        StorageError: there is no such place.
    """
    ending = f"/{FOLDER}/{_RUN}"
    return [
        storage.join(place, path.removesuffix(ending)) for path, _ in storage.list_files(place) if path.endswith(ending)
    ]


def _files_below(place: str) -> list[str]:
    for _ in range(10):
        try:
            # A file that is just being written has a dot before its name.
            return [path for path, _ in storage.list_files(place) if not Path(path).name.startswith(".")]
        except AccessError:
            if not storage.exists(place):
                break  # else a file went away while it was listed
    return []


def _next() -> str:
    """A name after all that this process has given out, and that no other process gives out."""
    global _last_ns
    with _lock:
        _last_ns = max(time.time_ns(), _last_ns + 1)
        return f"{_last_ns:020d}-{_writer}-{os.getpid()}"
