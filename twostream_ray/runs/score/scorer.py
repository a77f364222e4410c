"""Distributed exactly-once inference on a split: a pool of Ray actors scores blocks of clips, each written atomically.

Blocks are determined by manifest and split alone, so the table is the same for any number of workers. A block whose
worker dies is rescheduled; a finished one is not.
"""

from __future__ import annotations

import hashlib
from collections import deque
from collections.abc import Callable, Generator, Sequence
from contextlib import closing, suppress
from dataclasses import asdict, dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch

from twostream_ray import storage
from twostream_ray.data.encoded_clip import EncodedClip
from twostream_ray.data.protocols import Protocol
from twostream_ray.data.shards.quarantine import read_quarantine
from twostream_ray.data.shards.shards import ROWS_PER_GROUP, ShardSet, read_clips
from twostream_ray.errors import ClusterError, DecodeError, own_error
from twostream_ray.model_package import MODEL_FILES, ModelPackage, load_model
from twostream_ray.models.build import Network
from twostream_ray.runs.cluster.resources import require_room
from twostream_ray.runs.cluster.session import ray_session
from twostream_ray.runs.score.score_table import FOLDER, ClipLogits, begin_table, encode_part, part_name
from twostream_ray.runs.score.table_record import TableRecord, settings_hash
from twostream_ray.runs.workers import WorkersConfig
from twostream_ray.storage.temporary_folders import temporary_folder
from twostream_ray.tracking.lineage import git_commit
from twostream_ray.view_scorer import ViewScorer

_SMALL_SPLIT, _SMALL_BLOCK = 512, 4
"""A split of fewer clips than the first is cut into blocks of the second, so that all workers have some to the end."""
_RETRIES = 5
"""Retries of a block whose worker died; after that the block is assumed to kill it."""
_LOOK_EVERY_S = 1.0

Progress = Callable[[int, int], None]
"""Called with (clips scored, clips in all)."""


@dataclass(frozen=True, kw_only=True)
class ScoringJob:
    """What a worker needs to score blocks, except for the model."""

    shard_set: ShardSet
    """The data."""
    protocol: Protocol
    """Which views are scored."""
    about: TableRecord
    """The table's record, stored in each part."""
    blocks: tuple[tuple[int, ...], ...]
    """Positions of each block's clips."""
    out: str
    """The evaluation's output; workers write to it directly if it is an object store."""
    threads: int
    """torch's threads in a worker."""


def plan_blocks(shard_set: ShardSet, split: str) -> tuple[tuple[int, ...], ...]:
    """Index positions of each block's clips: at most 16 of one row group, or 4 for a split of fewer than 512 clips.

    Raises:
        ShardError: the set has no such split.
    """
    members = shard_set.split(split)
    shard, row = (shard_set.index[name].to_numpy()[members].astype(np.int64) for name in ("shard", "row"))
    order = np.lexsort((row, shard))
    groups = (shard << 32 | row // ROWS_PER_GROUP)[order]
    bounds = [0, *(np.flatnonzero(np.diff(groups)) + 1).tolist(), len(order)] if len(order) else []
    size = ROWS_PER_GROUP if len(members) >= _SMALL_SPLIT else _SMALL_BLOCK
    clips = members[order].tolist()
    return tuple(
        tuple(clips[start : min(start + size, end)])
        for begin, end in pairwise(bounds)
        for start in range(begin, end, size)
    )


def describe_table(
    package: ModelPackage,
    shard_set: ShardSet,
    *,
    weights: bytes,
    split: str,
    protocol: Protocol,
    model: str,
    command: str,
    num_expected_by_head: Sequence[int | None] = (),
) -> TableRecord:
    """The record of the table of a model's scores on a split.

    Args:
        package: the model's settings.
        shard_set: the data.
        weights: content of model.safetensors.
        split: the split.
        protocol: which views to score.
        model: the model, as named by the user.
        command: what makes the table, without --out.
        num_expected_by_head: clips of each data set in the split, including quarantined ones; None where these were
            not counted.

    Raises:
        ConfigError: the network cannot score samples of this protocol.
        StorageError: the quarantine table cannot be read.
    """
    with torch.device("meta"):
        scorer = ViewScorer(package.build(pretrained=False), package, protocol=protocol, device="meta")
    members = shard_set.split(split)
    counted = [number for number in num_expected_by_head if number is not None]
    return TableRecord(
        manifest_hash=shard_set.hash,
        split=split,
        protocol={**asdict(protocol), "average": scorer.average},
        model_sha256=hashlib.sha256(weights).hexdigest(),
        settings_sha256=settings_hash(package),
        shards=shard_set.uri,
        model=model,
        commit=git_commit(),
        classes=package.classes,
        head_classes=tuple(package.model.head_classes),
        towers=scorer.towers,
        views=tuple(scorer.keys),
        num_clips=len(members),
        num_blocks=len(plan_blocks(shard_set, split)),
        num_expected=len(members) + shard_set.quarantined.get(split, 0),
        num_expected_by_head=tuple(counted) if len(counted) == len(num_expected_by_head) > 1 else None,
        quarantined=read_quarantine(shard_set, split=split),
        flow_contract_hash=package.contract.hash,
        command=command,
    )


def score_blocks(
    directory: Path,
    shard_set: ShardSet,
    about: TableRecord,
    *,
    protocol: Protocol,
    out: str,
    workers: WorkersConfig,
    progress: Progress | None = None,
) -> None:
    """Score all clips of a table at `out` that have no scores yet, with the model in `directory`.

    After an interruption the finished parts are kept, and the same call scores the others.

    Raises:
        ClusterError: the cluster has too little room, or workers died repeatedly while scoring one block.
        ConfigError: `out` has files that `evaluate` did not write.
        ShardError, DecodeError, StorageError, CheckpointError: data or model cannot be read, or `out` cannot be
            written.
    """
    blocks = plan_blocks(shard_set, about.split)
    finished = begin_table(out, about, blocks=blocks)
    waiting = [block for block in range(len(blocks)) if block not in finished]
    done = sum(len(blocks[block]) for block in finished)
    if progress:
        progress(done, about.num_clips)
    if not waiting:
        return
    job = ScoringJob(shard_set=shard_set, protocol=protocol, about=about, blocks=blocks, out=out, threads=1)
    with ray_session():
        try:
            with closing(_scored(job, directory, waiting, workers=workers)) as scored:
                for clips in scored:
                    done += clips
                    if progress:
                        progress(done, about.num_clips)
        except Exception as error:
            own = own_error(error)
            if own is None:
                raise
            raise own from None


def _scored(job: ScoringJob, directory: Path, waiting: Sequence[int], *, workers: WorkersConfig) -> Generator[int]:
    """Score blocks and write their parts; yields the number of clips of each finished block."""
    import ray

    gpus, cores = (int(ray.cluster_resources().get(name, 0)) for name in ("GPU", "CPU"))
    wanted = workers.most_workers(gpus=gpus) if workers.num_workers or gpus else max(1, cores)
    cpus = workers.cpus_per_worker or max(0.1, ray.cluster_resources().get("CPU", 1) / 2 / wanted)
    share = {"CPU": cpus, **({"GPU": 1.0} if gpus else {})}
    require_room(
        [share], what="a worker that scores clips", way_out="lower workers.cpus_per_worker, or choose a larger cluster"
    )
    options = {"num_cpus": cpus, "num_gpus": int(bool(gpus)), "max_restarts": -1, "max_task_retries": _RETRIES}
    actor = ray.remote(BlockScorer).options(**options, scheduling_strategy="SPREAD")
    shared = [
        ray.put(replace(job, threads=max(1, int(cpus)))),
        ray.put({name: storage.read_bytes(str(directory / name)) for name in MODEL_FILES}),
    ]
    queue = deque(waiting)
    actors = [actor.remote() for _ in range(min(wanted, len(waiting)))]
    # An actor for which the cluster has no room is never ready, and gets no block.
    ready: dict[Any, Any] = {one.load.options(max_task_retries=0).remote(shared): one for one in actors}
    pending: dict[Any, tuple[Any, int]] = {}
    try:
        while queue or pending:
            for reference in ray.wait([*pending, *ready], timeout=_LOOK_EVERY_S)[0]:
                if reference in ready:
                    with suppress(ray.exceptions.RayActorError):  # restarted, it loads with its first block
                        ray.get(reference)
                    free = ready.pop(reference)
                else:
                    free, block = pending.pop(reference)
                    if content := _result(ray, reference, job, block):
                        storage.write_bytes(_part_uri(job.out, block), content)
                    yield len(job.blocks[block])
                if queue:
                    block = queue.popleft()
                    pending[free.score.remote(shared, block)] = (free, block)
    finally:
        for one in actors:
            with suppress(Exception):  # on a dead cluster they are dead
                ray.kill(one)


def _result(ray: Any, reference: Any, job: ScoringJob, block: int) -> bytes:
    try:
        content: bytes = ray.get(reference)
    except (ray.exceptions.RayActorError, ray.exceptions.OutOfMemoryError) as error:
        first = job.shard_set.locate(job.blocks[block][0])
        raise ClusterError(
            f"{_RETRIES + 1} workers died while they scored the {len(job.blocks[block])} clips from {first} on "
            f"({' '.join(str(error).split())[:200]}): choose fewer workers, or nodes with more memory, and run the "
            "same command again, which keeps what is finished"
        ) from error
    return content


def _part_uri(out: str, block: int) -> str:
    return storage.join(storage.absolute(out), FOLDER, part_name(block))


class BlockScorer:
    """Ray actor that scores blocks; after a restart it loads the model again."""

    def __init__(self) -> None:
        self._loaded: tuple[ScoringJob, ViewScorer, Network] | None = None

    def load(self, shared: Sequence[Any]) -> None:
        """Load the model once; `shared` has references to the job and to the model's files.

        Raises:
            CheckpointError: the model is damaged.
        """
        self._load(shared)

    def _load(self, shared: Sequence[Any]) -> tuple[ScoringJob, ViewScorer, Network]:
        import ray

        if self._loaded is None:
            job: ScoringJob
            job, files = ray.get(list(shared))
            torch.set_num_threads(job.threads)
            with temporary_folder() as folder:
                for name, content in files.items():
                    (Path(folder) / name).write_bytes(content)
                network, package = load_model(Path(folder))
            device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
            scorer = ViewScorer(network, package, protocol=job.protocol, device=device)
            self._loaded = job, scorer, network
        return self._loaded

    def score(self, shared: Sequence[Any], block: int) -> bytes:
        """Score a block; writes its part to an object store, or returns it for the driver to write to its disk.

        Raises:
            ShardError, DecodeError, StorageError: as `score_clips`.
        """
        job, scorer, network = self._load(shared)
        wanted = {"want_rgb": network.needs_rgb, "want_flow": network.needs_flow}
        content = encode_part(job.about, score_clips(scorer, job.shard_set, job.blocks[block], **wanted))
        if not storage.is_s3(job.out):
            return content
        storage.write_bytes(_part_uri(job.out, block), content)
        return b""


def score_clips(
    scorer: ViewScorer, shard_set: ShardSet, positions: Sequence[int], *, want_rgb: bool = True, want_flow: bool = True
) -> list[ClipLogits]:
    """Score clips of one row group, by their positions in the index.

    Raises:
        ShardError: the shard is missing, damaged, or not that of the manifest.
        DecodeError: a clip is damaged; the message names it with shard and row.
    """
    ids, labels = shard_set.clip_ids(positions), shard_set.labels[list(positions)].tolist()
    groups = shard_set.groups(positions)
    clips = list(read_clips(shard_set, positions, want_rgb=want_rgb, want_flow=want_flow))
    try:
        scores = scorer.score_all([clip for _, clip in clips])
    except DecodeError as error:
        raise _located(error, scorer, shard_set, positions, clips) from error
    return [
        ClipLogits(
            position=position,
            clip_id=clip_id,
            label=label,
            group=None if group == clip_id else group,  # a clip without a group is its own group
            logits=logits,
        )
        for position, clip_id, label, group, logits in zip(positions, ids, labels, groups, scores, strict=True)
    ]


def _located(
    error: DecodeError,
    scorer: ViewScorer,
    shard_set: ShardSet,
    positions: Sequence[int],
    clips: Sequence[tuple[str, EncodedClip]],
) -> DecodeError:
    """The error with the name, shard and row of the damaged clip."""
    for position, (_, clip) in zip(positions, clips, strict=True):
        try:
            scorer.score(clip)
        except DecodeError as of_clip:
            return DecodeError(f"{shard_set.locate(position)}: {of_clip}; ingest again")
    return error
