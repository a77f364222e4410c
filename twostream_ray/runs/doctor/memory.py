"""Memory check of a training step: its peak, by torch's fake tensors, against the devices' memory."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

from twostream_ray.data.shards.shards import ShardSet
from twostream_ray.errors import TwoStreamError
from twostream_ray.runs.doctor.checks import Check, Status, gib
from twostream_ray.runs.doctor.facts import NodeFacts
from twostream_ray.runs.experiment import ExperimentConfig
from twostream_ray.training.settings import TrainingConfig

PROCESS_BYTES = 1 << 30
"""Of a worker's process on a CPU, besides its step: Python, torch and prefetched batches."""

_TIGHT = 0.92
"""Share of a device's memory above which fragmentation of the allocator may exceed it."""


def memory_check(config: ExperimentConfig, shard_set: ShardSet, nodes: Sequence[NodeFacts]) -> Check:
    """Compare a worker's step with the memory of its device, or of its node where CPUs train."""
    gpus = sum(node.ray_gpus for node in nodes)
    workers = config.workers.most_workers(gpus=gpus)
    try:
        need = _worker_bytes(config, shard_set, workers=workers, on_gpu=gpus > 0)
    except TwoStreamError as error:
        return Check(name="memory", status="wrong", found=str(error))
    if gpus:
        has = min((node.gpu_bytes for node in nodes if node.gpu_bytes), default=0)
        of = f"the GPU's {gib(has)}"
    else:
        together = math.ceil(workers / max(1, sum(node.ray_cpus > 0 for node in nodes)))
        has, need = min((node.memory_bytes for node in nodes), default=0), need * together
        of = f"the node's {gib(has)} for {together} workers" if together > 1 else f"the node's {gib(has)}"
    status: Status = "wrong" if need > has else "doubtful" if need > _TIGHT * has else "ok"
    batch, parts = config.training.global_batch, config.training.micro_batches
    enough = max(2, math.ceil(parts * need / max(has, 1))) * 2 if need > has else 2 * parts
    return Check(
        name="memory",
        status=status,
        found=f"a step of {math.ceil(batch / workers)} clips per worker takes {gib(need)} of {of}",
        way_out=f"set training.micro_batches to {enough} or training.activation_checkpointing to true: the same "
        "gradients with less memory",
    )


def _worker_bytes(config: ExperimentConfig, shard_set: ShardSet, *, workers: int, on_gpu: bool) -> int:
    from twostream_ray.training.step_memory import CUDA_BYTES, step_memory

    sampling = config.data.sampling
    memory = step_memory(
        config.model,
        _without_auto(config.training, on_gpu=on_gpu),
        num_classes=len(shard_set.classes),
        num_snippets=sampling.num_snippets,
        flow_length=sampling.flow_length,
        size_px=config.data.transforms.crop_px,
        samples=math.ceil(config.training.global_batch / workers),
        workers=workers,
    )
    return memory.peak + (CUDA_BYTES if on_gpu else PROCESS_BYTES)


def _without_auto(training: TrainingConfig, *, on_gpu: bool) -> TrainingConfig:
    """What `auto` resolves to on the cluster's devices, not on this machine's; current GPUs have bfloat16."""
    precision = ("bfloat16" if on_gpu else "float32") if training.precision == "auto" else training.precision
    layout = on_gpu if training.channels_last == "auto" else training.channels_last
    return replace(training, precision=precision, channels_last=layout, compile=False)
