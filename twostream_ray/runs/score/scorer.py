"""Distributed inference on a split: each worker scores its lanes, so every clip is scored exactly once."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from twostream_ray import storage
from twostream_ray.data.loading.decode_choice import choose_decode_at
from twostream_ray.data.loading.lanes import Pass
from twostream_ray.data.loading.pipeline import READING_CPUS, SnippetLoader
from twostream_ray.data.loading.settings import DataConfig
from twostream_ray.data.shards.shards import ShardSet
from twostream_ray.errors import own_error
from twostream_ray.model_package import MODEL_FILES, load_model
from twostream_ray.runs.cluster.resources import require_room
from twostream_ray.runs.cluster.session import ray_session
from twostream_ray.runs.workers import WorkersConfig
from twostream_ray.storage.temporary_folders import temporary_folder
from twostream_ray.training.loop import score_pass

_CLIPS_PER_STEP = 32

Progress = Callable[[int, int], None]
"""Called with (clips scored, clips in all)."""


def score_clips(
    directory: Path, shard_set: ShardSet, *, split: str, workers: WorkersConfig, progress: Progress | None = None
) -> dict[int, NDArray[np.float32]]:
    """Scores (K,) of each clip of a split by its position in the shard set's index; `directory` holds the model.

    Raises:
        ClusterError: the cluster has too little room.
        ShardError, StorageError, CheckpointError: data or model cannot be read.
    """
    import ray

    total = len(shard_set.split(split))
    with ray_session():
        gpus = int(ray.cluster_resources().get("GPU", 0))
        world_size = min(workers.most_workers(gpus=gpus), DataConfig(shards=shard_set.uri).lanes)
        cpus = workers.cpus_per_worker or max(0.1, ray.cluster_resources().get("CPU", 1) / 2 / world_size)
        share = {"CPU": cpus, **({"GPU": 1.0} if gpus else {})}
        require_room(
            [share, {"CPU": READING_CPUS}],
            what="a worker that scores, and reading for it,",
            way_out="lower workers.cpus_per_worker, or choose a larger cluster",
        )
        task = ray.remote(_score_lanes).options(num_cpus=cpus, num_gpus=1 if gpus else 0)
        files = {name: storage.read_bytes(str(directory / name)) for name in MODEL_FILES}
        shared = ray.put((shard_set, files, split))
        pending = [task.remote(shared, rank, world_size) for rank in range(world_size)]
        scores: dict[int, NDArray[np.float32]] = {}
        try:
            while pending:
                done, pending = ray.wait(pending)
                for part in ray.get(done):
                    scores.update(part)
                if progress:
                    progress(len(scores), total)
        except Exception as error:
            own = own_error(error)
            if own is None:
                raise
            raise own from None
    return scores


def _score_lanes(
    shared: tuple[ShardSet, dict[str, bytes], str], rank: int, world_size: int
) -> dict[int, NDArray[np.float32]]:
    """One worker's share of a split: clip position -> scores (K,)."""
    shard_set, files, split = shared
    torch.set_num_threads(1)
    with temporary_folder() as folder:
        for name, content in files.items():
            (Path(folder) / name).write_bytes(content)
        network, package = load_model(Path(folder))
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    network.to(device)
    data = DataConfig(shards=shard_set.uri, sampling=package.sampling, transforms=package.transforms)
    choice = choose_decode_at(data, device, want_flow=network.needs_flow)
    loader = SnippetLoader(
        shard_set,
        config=replace(data, decode_at=choice.at),
        passes=[Pass(split=split)],
        global_batch=_CLIPS_PER_STEP,
        rank=rank,
        world_size=world_size,
        want_rgb=network.needs_rgb,
        want_flow=network.needs_flow,
    )
    scores: dict[int, NDArray[np.float32]] = {}
    for _, batches in loader:
        scores |= score_pass(network, batches, device=device)[1]
    return scores
