"""Checkpoint recovery: rebuilds Ray Train's damaged checkpoint_manager_snapshot.json from the checkpoints' state files.

Ray rewrites the snapshot in place with every report: a driver that is killed meanwhile leaves a truncated file, from
which Ray refuses to resume. The checkpoints beside it are intact, each with its own state.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ray
import ray.train

from twostream_ray import storage
from twostream_ray.errors import CheckpointError, StorageError, TwoStreamError
from twostream_ray.model_package import MODEL_FILES
from twostream_ray.runs.run_folder import CHECKPOINT_NAME
from twostream_ray.runs.train.preflight import has_all_tensors
from twostream_ray.storage.json_files import COUNT, list_of, parse_json, record
from twostream_ray.training.checkpoint import OPTIMISER_FILE, STATE_FILE, parse_state

SNAPSHOT = "checkpoint_manager_snapshot.json"

_CHECKPOINT_RESULT = record(
    {
        "checkpoint_dir_name": {"type": "string", "pattern": rf"^{CHECKPOINT_NAME}\Z"},
        "metrics": {"type": "object", "additionalProperties": {"type": "number"}},
    },
    others=True,
)
_SCHEMA = record(
    {
        "checkpoint_results": list_of(_CHECKPOINT_RESULT),
        "checkpoint_report_indices": list_of(COUNT),
        "latest_checkpoint_result": {"anyOf": [_CHECKPOINT_RESULT, {"type": "null"}]},
        "pending_training_results": list_of({}, at_most=0),
        "pending_validation_specs": list_of({}, at_most=0),
        "current_report_index": COUNT,
        "validated_checkpoint_dir_names": list_of({"type": "string"}),
        "timed_out_validation_checkpoint_dir_names": list_of({"type": "string"}),
        "failed_validation_checkpoint_dir_names": list_of({"type": "string"}),
    },
    others=True,
)

_log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class SavedCheckpoint:
    """A complete checkpoint in a run's folder."""

    name: str
    """Name of its folder."""
    history: list[dict[str, float]]
    """Metrics of the finished epochs."""
    step: int
    """Finished steps of the next epoch; 0 at the end of an epoch."""

    @property
    def progress(self) -> tuple[int, int]:
        """Finished epochs, and finished steps of the next one."""
        return len(self.history), self.step

    @property
    def metrics(self) -> dict[str, float]:
        """The reported metrics, as far as Ray sorts checkpoints by them."""
        if not self.step:
            return self.history[-1] if self.history else {"epoch": -1}
        return {"epoch": len(self.history) - 1 + self.step / (self.step + 1), "step": self.step}


def epoch_of(checkpoint: str) -> int:
    """The epoch, from 0, that a checkpoint's folder is named after."""
    return int(checkpoint.rstrip("/").rpartition("/")[2].split("-")[1])


def history_of(checkpoint: str) -> list[dict[str, float]]:
    """Metrics of every epoch finished before a checkpoint (a directory or s3:// prefix) was saved.

    Raises:
        CheckpointError: its state is damaged.
        StorageError: it cannot be read.
    """
    where = storage.join(checkpoint, STATE_FILE)
    history: list[dict[str, float]] = parse_state(storage.read_bytes(where), where=where)["history"]
    return history


def result_of(uri: str, *, watched: str) -> ray.train.Result | None:
    """Ray Train's result of the run in a folder; None before its first checkpoint. The best is by the metric `watched`.

    Raises:
        StorageError: the folder cannot be read or written.
    """
    mend_snapshot(uri, watched=watched)
    if not storage.exists(storage.join(uri, SNAPSHOT)):
        return None
    system, path = storage.filesystem(uri, patient=True)
    return ray.train.Result.from_path(path, storage_filesystem=system)


def mend_snapshot(path: str, *, watched: str) -> None:
    """Rebuild the snapshot if Ray Train could not resume from it, with one warning that says so.

    Raises:
        StorageError: the folder cannot be read or written.
    """
    uri = storage.join(path, SNAPSHOT)
    if not storage.exists(uri):
        return
    try:
        fault = _fault_of(uri, path)
    except (TwoStreamError, UnicodeDecodeError) as error:
        fault = str(error).partition(" was wanted at ")[2] or str(error)
    if fault is None:
        return
    complete = sorted(_complete_checkpoints(path), key=lambda saved: saved.progress)
    storage.write_json(uri, _snapshot(complete, watched=watched))
    start = (
        f"from checkpoint {complete[-1].name}, the last complete one"
        if complete
        else "from the start: no checkpoint is complete"
    )
    _log.warning("%s: Ray Train's checkpoint snapshot is damaged (%s); the run resumes %s", path, fault, start)


def _fault_of(uri: str, path: str) -> str | None:
    """Why Ray could not resume from the snapshot, in words; None if it can."""
    found = parse_json(
        storage.read_bytes(uri, limit_bytes=64 << 20),
        _SCHEMA,
        where=uri,
        what="Ray Train's snapshot",
        way_out="it is written anew",
        error=CheckpointError,
        metrics=True,
    )
    names = [one["checkpoint_dir_name"] for one in found["checkpoint_results"]]
    if len(names) != len(found["checkpoint_report_indices"]):
        return f"it has {len(names)} checkpoints but {len(found['checkpoint_report_indices'])} report indices"
    latest = found["latest_checkpoint_result"]
    if latest is None:
        return None if not names else "it names no last checkpoint"
    if latest["checkpoint_dir_name"] not in names:
        return "its last checkpoint is not among the others"
    # Only the last is resumed from; the others are checked when they are used.
    for name in names:
        if not storage.exists(storage.join(path, name, STATE_FILE)):
            return f"{name} is gone or damaged"
    _require_complete(path, latest["checkpoint_dir_name"])
    return None


def _complete_checkpoints(uri: str) -> Iterator[SavedCheckpoint]:
    """The complete checkpoints in a run's folder."""
    if storage.is_s3(uri):
        names = {path.partition("/")[0] for path, _ in storage.list_files(uri)}
    else:
        names = {path.name for path in Path(uri).iterdir() if path.is_dir()}
    for name in sorted(names):
        if re.fullmatch(CHECKPOINT_NAME, name):
            try:
                yield _require_complete(uri, name)
            except TwoStreamError as error:
                _log.warning("%s/%s is left out: %s", uri, name, error)


def _require_complete(uri: str, name: str) -> SavedCheckpoint:
    """Read a checkpoint's state, and check that its tensors are complete to the last byte.

    Raises:
        CheckpointError, StorageError: something is missing or damaged.
    """
    folder = storage.join(uri, name)
    where = storage.join(folder, STATE_FILE)
    state = parse_state(storage.read_bytes(where), where=where)
    for file in (MODEL_FILES[0], OPTIMISER_FILE):
        _require_all_bytes(storage.join(folder, file))
    if not storage.exists(storage.join(folder, MODEL_FILES[1])):
        raise CheckpointError(f"{folder} lacks {MODEL_FILES[1]}")
    return SavedCheckpoint(name=name, history=state["history"], step=int(state["step"]))


def _require_all_bytes(uri: str) -> None:
    """Compare a safetensors file's length with the tensor offsets in its header; the tensors are not read."""
    system, path = storage.filesystem(uri)

    def read() -> bool:
        with system.open_input_file(path) as file:
            return has_all_tensors(file)

    try:
        complete = storage.patiently(read, uri=uri)
    except OSError as error:
        raise StorageError(f"cannot read {uri}: {error.strerror or error}") from error
    if not complete:
        raise CheckpointError(f"{uri} is truncated or damaged")


def _snapshot(complete: list[SavedCheckpoint], *, watched: str) -> dict[str, Any]:
    """Ray Train's snapshot of checkpoints, given oldest first."""

    def score(saved: SavedCheckpoint) -> tuple[float, int]:
        value = saved.metrics.get(watched)
        # A checkpoint within an epoch has no score, and is never the best.
        return (float("-inf") if value is None or value != value else value), complete.index(saved)

    def entry(saved: SavedCheckpoint) -> dict[str, Any]:
        return {"version": 0, "checkpoint_dir_name": saved.name, "metrics": saved.metrics}

    by_score = sorted(complete, key=score)
    return {
        "ray_version": ray.__version__,
        "checkpoint_results": [entry(saved) for saved in by_score],
        "checkpoint_report_indices": [complete.index(saved) for saved in by_score],
        "latest_checkpoint_result": entry(complete[-1]) if complete else None,
        "pending_training_results": [],
        "pending_validation_specs": [],
        "current_report_index": len(complete),
        "validated_checkpoint_dir_names": [],
        "timed_out_validation_checkpoint_dir_names": [],
        "failed_validation_checkpoint_dir_names": [],
    }
