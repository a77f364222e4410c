"""Cost estimate of a job: workers, hours at the rate of an earlier run of the same network, price."""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from statistics import fmean
from typing import Any

from twostream_ray import storage
from twostream_ray.errors import TwoStreamError
from twostream_ray.runs.experiment import ExperimentConfig
from twostream_ray.runs.run_folder import RunFolder

_SETTINGS_OF_RATE = (("model",), ("data", "sampling"), ("data", "transforms"), ("training", "global_batch"))
"""Settings that determine the time of a step, besides the machines."""
_LAST_EPOCHS = 3
_MOST_FILES = 20_000
"""Files listed at most when looking for earlier runs: a folder of runs has hundreds."""


def describe_nodes(nodes: Sequence[Mapping[str, Any]]) -> str:
    """As in "3 nodes, 96 CPU cores, 8 GPUs"."""
    cores, gpus = count(nodes, "CPU"), count(nodes, "GPU")
    return f"{len(nodes)} node{'s' * (len(nodes) != 1)}, {cores:g} CPU cores, {gpus:g} GPUs"


def count(nodes: Sequence[Mapping[str, Any]], resource: str) -> float:
    """Sum of a resource over nodes."""
    return float(sum(one.get("resources_total", {}).get(resource, 0.0) for one in nodes))


def expected_use(
    settings: Any, *, nodes: Sequence[Mapping[str, Any]], gpus: float, price: float | None
) -> list[tuple[str, str]]:
    """What a job will use, as rows of (quantity, value).

    Args:
        settings: settings of its verb.
        nodes: the cluster's nodes now.
        gpus: GPUs that it requests; 0 if unspecified.
        price: price of a GPU for an hour.
    """
    used = gpus or count(nodes, "GPU")
    rows = []
    hours = None
    if isinstance(settings, ExperimentConfig):
        workers = settings.workers.most_workers(gpus=int(used))
        used = min(used, workers)
        device = "a GPU each" if used else "on CPU cores"
        rows.append(("workers", f"{workers}, {device}"))
        hours, said = _hours(settings)
        rows.append(("hours", said))
    if price is not None:
        each = f"{price * used:,.2f} an hour for {used:g} GPUs"
        rows.append(("cost", each if hours is None else f"about {price * used * hours:,.2f}: {each}"))
    return rows


def _hours(config: ExperimentConfig) -> tuple[float | None, str]:
    """Hours of a training and where the estimate comes from; None without an earlier run."""
    try:
        found = _earlier_run(config)
    except TwoStreamError:
        return None, f"unknown, as {config.storage} cannot be read from this machine: the first epoch will tell"
    if found is None:
        return None, f"unknown, as {config.storage} has no finished run of this network: the first epoch will tell"
    name, seconds = found
    hours = seconds * config.training.epochs / 3600
    return hours, (
        f"about {hours:.2g}: {config.training.epochs} epochs of {seconds:,.0f} s, as those of run {name!r} with its "
        "workers and clips"
    )


def _earlier_run(config: ExperimentConfig) -> tuple[str, float] | None:
    """Name and seconds per epoch of the most similar finished run: that of the same name, or the last one listed."""
    wanted = json.loads(json.dumps(asdict(config)))
    found = None
    for folder in _ended_runs(config.storage):
        before = json.loads(storage.read_text(folder.settings))
        if all(_part(before, keys) == _part(wanted, keys) for keys in _SETTINGS_OF_RATE):
            history = json.loads(storage.read_text(folder.report)).get("history") or []
            seconds = [one["seconds"] for one in history[-_LAST_EPOCHS:] if one.get("seconds")]
            if seconds:
                found = folder.uri.rpartition("/")[2], fmean(seconds)
                if found[0] == config.name:
                    break
    return found


def _ended_runs(uri: str) -> Iterator[RunFolder]:
    """Folders of finished runs (with a report) below a directory or prefix."""
    if not storage.exists(uri):
        return
    files = {path for path, _ in itertools.islice(storage.list_files(uri), _MOST_FILES)}
    for path in sorted(files):
        name, _, file = path.partition("/")
        if file == "report.json" and f"{name}/{RunFolder.settings_name}" in files:
            yield RunFolder(uri=storage.join(storage.absolute(uri), name), what=f"run {name!r}")


def _part(values: Mapping[str, Any], keys: Sequence[str]) -> Any:
    for key in keys:
        values = values.get(key) or {}
    return values
