"""Diagnosis of a cluster for one training: every check, and with shards its memory, its speed and its bottleneck."""

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
"""Called with what is looked at now."""

_MARK = ".doctor-mark"


@dataclass(frozen=True, kw_only=True)
class Diagnosis:
    """What was found."""

    checks: list[Check] = field(default_factory=list)
    nodes: list[NodeFacts] = field(default_factory=list)
    measured: Measured | None = None
    """None where speed was not asked for, or could not be measured."""
    prediction: Prediction | None = None


def diagnose(config: DoctorConfig, *, progress: Progress | None = None) -> Diagnosis:
    """Look at the settings, at MLflow, and at every node of the cluster; what is wrong is a check, no error.

    Raises:
        ClusterError: there is no cluster at the address, or none can be started here.
    """
    say = progress or (lambda _: None)
    say("settings and shards")
    checks: list[Check] = []
    if config.data.shards:
        config = with_absolute_uris(config)
    shard_set = _shard_set(config, checks)
    say("MLflow")
    checks.append(_mlflow(config))
    address = {} if config.address is None else {"RAY_ADDRESS": config.address}
    with environment(address), _quiet(), ray_session():
        say("nodes")
        nodes = _look_at_nodes(config, shard_set, checks)
        if shard_set is None:
            return Diagnosis(checks=checks, nodes=nodes)
        say("memory")
        checks.append(memory_check(config, shard_set, nodes))
        if not config.speed or worst(checks) == 2:
            return Diagnosis(checks=checks, nodes=nodes)
        return _with_speed(config, shard_set, Diagnosis(checks=checks, nodes=nodes), say)


def _with_speed(config: DoctorConfig, shard_set: ShardSet, found: Diagnosis, say: Progress) -> Diagnosis:
    from twostream_ray.runs.doctor.measurement import measure
    from twostream_ray.runs.doctor.stages import predict

    try:
        measured = measure(config, shard_set, seconds=config.probe_seconds, say=say)
    except Exception as error:
        own = own_error(error)
        if own is None and not type(error).__module__.startswith("ray."):
            raise
        # A worker that has died or run out of memory would do so in the training.
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
def _quiet() -> Iterator[None]:
    """Without the lines about stores that are tried again: the check says what became of it."""
    log = logging.getLogger("twostream_ray.storage")
    before = log.level
    log.setLevel(logging.ERROR)
    try:
        yield
    finally:
        log.setLevel(before)


def _shard_set(config: DoctorConfig, checks: list[Check]) -> ShardSet | None:
    """The shards, if there are any and they are whole; everything wrong with the settings becomes a check."""
    if not config.data.shards:
        return None
    shard_set: ShardSet | None = None

    def opened() -> str:
        nonlocal shard_set
        shard_set = open_shards(config.data.shards)
        require_splits(config, shard_set, SPLITS)
        require_shard_files(shard_set)
        size = sum(shard_set.shard_bytes) / 1e9
        return f"{len(shard_set.index):,} clips in {len(shard_set.shard_names):,} shards, {size:,.2f} GB"

    def settled() -> str:
        require_lanes(config, workers=fewest_workers(config))
        require_weights(config.model)
        return f"batches of {config.training.global_batch} clips over {config.data.lanes} lanes"

    checks += [_checked("shard set", opened), _checked("settings", settled)]
    return None if any(check.status == "wrong" for check in checks) else shard_set


def _checked(name: str, look: Callable[[], str]) -> Check:
    """What `look` found, or the error that it met, whose message says the way out."""
    try:
        return Check(name=name, status="ok", found=look())
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
        # Training goes on without it: what is logged is kept, and delivered later.
        return Check(
            name="MLflow",
            status="doubtful",
            found=str(error),
            way_out="see to the server; a training goes on without it, and `twostream track replay` delivers later",
        )
    waited = "a file" if seconds is None else f"answers in {1000 * seconds:,.0f} ms"
    return Check(name="MLflow", status="ok", found=f"{uri}, {waited}")


def _look_at_nodes(config: DoctorConfig, shard_set: ShardSet | None, checks: list[Check]) -> list[NodeFacts]:
    largest = ""
    if shard_set is not None and shard_set.shard_names:
        largest = shard_set.shard_names[shard_set.shard_bytes.index(max(shard_set.shard_bytes))]
    root = storage.absolute(config.storage)
    with _marked(root) if config.data.shards else nullcontext(None) as mark:
        questions = Questions(
            shards=config.data.shards,
            shard=largest,
            storage=root if isinstance(mark, str) else None,
            mark=mark if isinstance(mark, str) else "",
            cache=config.data.cache,
        )
        nodes, silent = facts_of_nodes(questions)
    if isinstance(mark, TwoStreamError):
        way_out = "let --storage name a place that can be written"
        checks.append(Check(name="storage", status="wrong", found=str(mark), way_out=way_out))
    checks += [
        Check(name="node", node=name, status="wrong", found="does not answer", way_out="see to it, or take it away")
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
def _marked(root: str) -> Iterator[str | TwoStreamError]:
    """A file where checkpoints go, for the nodes to find; or why there can be none. Nothing is left behind."""
    path = storage.join(root, _MARK)
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
            with suppress(OSError):  # somebody has put something there
                folder.rmdir()
