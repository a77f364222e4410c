"""Cluster diagnosis for one training: all health checks and, given shards, memory, speed and bottleneck."""

from __future__ import annotations

import logging
import platform
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

from twostream_ray import storage, tracking
from twostream_ray.data.shards.shards import ShardSet, open_shards
from twostream_ray.errors import ClusterError, TwoStreamError, own_error
from twostream_ray.redaction import one_line, redact
from twostream_ray.runs.cluster.private_cluster import environment, private_folder
from twostream_ray.runs.cluster.session import ray_session
from twostream_ray.runs.doctor.checks import Check, Status, Wanted, checks_of_nodes, worst
from twostream_ray.runs.doctor.facts import NodeFacts, Questions, versions
from twostream_ray.runs.doctor.memory import memory_check
from twostream_ray.runs.doctor.nodes import facts_of_nodes
from twostream_ray.runs.doctor.settings import DoctorConfig
from twostream_ray.runs.experiment import with_absolute_uris
from twostream_ray.runs.train.preflight import (
    SPLITS,
    fewest_workers,
    require_lanes,
    require_shard_files,
    require_splits,
    require_weights,
)

if TYPE_CHECKING:
    from twostream_ray.runs.doctor.measurement import Measured
    from twostream_ray.runs.doctor.stages import Prediction

Progress = Callable[[str], None]
"""Called with the name of the part that is checked next."""

_PROBE_FILE = ".doctor-mark"


@dataclass(frozen=True, kw_only=True)
class Diagnosis:
    """Results of all checks and measurements."""

    checks: list[Check] = field(default_factory=list)
    nodes: list[NodeFacts] = field(default_factory=list)
    measured: Measured | None = None
    """None if speed was not requested, or could not be measured."""
    prediction: Prediction | None = None


def diagnose(config: DoctorConfig, *, progress: Progress | None = None) -> Diagnosis:
    """Check the settings, MLflow and every node of the cluster; a fault is a `Check`, not an exception.

    Raises:
        ClusterError: there is no cluster at the address, or none can be started on this machine.
    """
    report_progress = progress or (lambda _: None)
    report_progress("settings and shards")
    checks: list[Check] = []
    if config.data.shards:
        config = with_absolute_uris(config)
    shard_set = _shard_set(config, checks)
    report_progress("MLflow")
    checks.append(_mlflow(config))
    address = {} if config.address is None else {"RAY_ADDRESS": config.address}
    with environment(address), _without_retry_warnings(), ray_session():
        report_progress("nodes")
        nodes = _check_nodes(config, shard_set, checks)
        if shard_set is None:
            return Diagnosis(checks=checks, nodes=nodes)
        report_progress("memory")
        checks.append(memory_check(config, shard_set, nodes))
        if not config.speed or worst(checks) == 2:
            return Diagnosis(checks=checks, nodes=nodes)
        return _with_speed(config, shard_set, Diagnosis(checks=checks, nodes=nodes), report_progress)


def _with_speed(config: DoctorConfig, shard_set: ShardSet, found: Diagnosis, report_progress: Progress) -> Diagnosis:
    from twostream_ray.runs.doctor.measurement import measure
    from twostream_ray.runs.doctor.stages import predict

    try:
        measured = measure(config, shard_set, seconds=config.probe_seconds, report_progress=report_progress)
    except Exception as error:
        own = own_error(error)
        if own is None and not type(error).__module__.startswith("ray."):
            raise
        # A worker that died or ran out of memory would do so in the training too.
        status: Status = "unknown" if isinstance(own, ClusterError) else "wrong"
        last = (str(error).strip().splitlines() or [type(error).__name__])[-1]
        found.checks.append(Check(name="speed", status=status, found=str(own) if own else redact(one_line(last))))
        return found
    data = config.data
    views = len(shard_set.split(data.split_to_validate)) * data.sampling.test_times if data.split_to_validate else 0
    prediction = predict(
        measured,
        clips=len(shard_set.split(data.split_to_train)),
        validation_views=views,
        price=config.price,
        is_s3=storage.is_s3(data.shards),
    )
    return replace(found, measured=measured, prediction=prediction)


@contextmanager
def _without_retry_warnings() -> Iterator[None]:
    """Silence warnings about retries of a store: the check reports the result."""
    log = logging.getLogger("twostream_ray.storage")
    before = log.level
    log.setLevel(logging.ERROR)
    try:
        yield
    finally:
        log.setLevel(before)


def _shard_set(config: DoctorConfig, checks: list[Check]) -> ShardSet | None:
    """The shard set if it and the settings are valid; adds their checks."""
    if not config.data.shards:
        return None
    shard_set: ShardSet | None = None

    def open_shard_set() -> str:
        nonlocal shard_set
        shard_set = open_shards(config.data.shards)
        require_splits(config, shard_set, SPLITS)
        require_shard_files(shard_set)
        size = sum(shard_set.shard_bytes) / 1e9
        return f"{len(shard_set.index):,} clips in {len(shard_set.shard_names):,} shards, {size:,.2f} GB"

    def check_settings() -> str:
        require_lanes(config, workers=fewest_workers(config))
        require_weights(config.model)
        return f"batches of {config.training.global_batch} clips over {config.data.lanes} lanes"

    checks += [_check("shard set", open_shard_set), _check("settings", check_settings)]
    return None if any(check.status == "wrong" for check in checks) else shard_set


def _check(name: str, inspect: Callable[[], str]) -> Check:
    """A check with what `inspect` returns, or with the message of the error that it raises."""
    try:
        return Check(name=name, status="ok", found=inspect())
    except TwoStreamError as error:
        return Check(name=name, status="wrong", found=str(error))
    except OSError as error:
        return Check(name=name, status="wrong", found=redact(one_line(error)))


def _mlflow(config: DoctorConfig) -> Check:
    uri = redact(config.tracking.resolved_uri())
    try:
        config.tracking.require_usable()
        seconds = tracking.answer_seconds(config.tracking)
    except TwoStreamError as error:
        # Training continues without it: what is logged is kept in the outbox, and delivered later.
        return Check(
            name="MLflow",
            status="doubtful",
            found=str(error),
            way_out="check the server; training continues without it, and `twostream track replay` delivers later",
        )
    waited = "a file" if seconds is None else f"answers in {1000 * seconds:,.0f} ms"
    return Check(name="MLflow", status="ok", found=f"{uri}, {waited}")


def _check_nodes(config: DoctorConfig, shard_set: ShardSet | None, checks: list[Check]) -> list[NodeFacts]:
    largest = ""
    if shard_set is not None and shard_set.shard_names:
        largest = shard_set.shard_names[shard_set.shard_bytes.index(max(shard_set.shard_bytes))]
    root = storage.absolute(config.storage)
    with _probe_file(root) if config.data.shards else nullcontext(None) as mark:
        questions = Questions(
            shards=config.data.shards,
            shard=largest,
            storage=root if isinstance(mark, str) else None,
            mark=mark if isinstance(mark, str) else "",
            cache=config.data.cache,
        )
        nodes, silent = facts_of_nodes(questions)
    if isinstance(mark, TwoStreamError):
        way_out = "set --storage to a directory or prefix that can be written"
        checks.append(Check(name="storage", status="wrong", found=str(mark), way_out=way_out))
    checks += [
        Check(name="node", node=name, status="wrong", found="does not answer", way_out="restart or remove it")
        for name in silent
    ]
    wanted = Wanted(
        python=platform.python_version(),
        versions=versions(),
        shared=private_folder() is None,
        cache_bytes=config.data.cache_gb * 1e9 if config.data.cache is not None else 0.0,
        decodes_on_gpu=config.data.decode_at in ("auto", "device") and config.model.reads_flow,
        compiles=config.training.compile in ("auto", True),
    )
    checks += checks_of_nodes(nodes, wanted)
    return nodes


@contextmanager
def _probe_file(root: str) -> Iterator[str | TwoStreamError]:
    """A file beside the checkpoints for the nodes to look for, deleted at the end; or why it cannot be written."""
    path = storage.join(root, _PROBE_FILE)
    made = [one for one in (Path(root), *Path(root).parents) if not one.exists()] if not storage.is_s3(root) else []
    try:
        storage.write_bytes(path, b"written by `twostream doctor`, which removes it")
    except TwoStreamError as error:
        yield error
        return
    try:
        yield path
    finally:
        with suppress(TwoStreamError):
            storage.delete(path)
        for folder in made:
            with suppress(OSError):  # another process has put a file there
                folder.rmdir()
