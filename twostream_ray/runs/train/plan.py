"""Training plan (dry run): network, steps, devices, memory and time of a run, known before Ray starts."""

from __future__ import annotations

import os
from dataclasses import dataclass

import torch

from twostream_ray.data.loading.lanes import Pass
from twostream_ray.data.loading.pipeline import SnippetLoader
from twostream_ray.data.shards.shards import ShardSet
from twostream_ray.models.build import Network
from twostream_ray.models.description import BYTES_PER_FLOAT, describe, training_flops
from twostream_ray.redaction import redact
from twostream_ray.runs.cluster.address import cluster_address
from twostream_ray.runs.experiment import ExperimentConfig
from twostream_ray.runs.run_folder import RunFolder
from twostream_ray.runs.train.run import build_on_meta_device, require_fitting_weights
from twostream_ray.training.distributed import resolved
from twostream_ray.training.matrix_rate import matrix_rate
from twostream_ray.training.recipe import optimiser_groups
from twostream_ray.training.settings import TrainingConfig

_MOMENTS = ("no optimiser state", "momentum", "two moments")


@dataclass(frozen=True, kw_only=True)
class TrainingPlan:
    """A training run in words, before it starts."""

    rows: tuple[tuple[str, str], ...]
    """(quantity, value) each."""
    notes: tuple[str, ...]
    """Notes for the user, one sentence each."""

    def lines(self) -> list[str]:
        """The plan as text."""
        width = max(len(name) for name, _ in self.rows)
        return [f"{name:<{width}}  {value}" for name, value in self.rows] + [f"note: {note}" for note in self.notes]


def plan_training(config: ExperimentConfig, shard_set: ShardSet, *, folder: RunFolder) -> TrainingPlan:
    """Describe a training run, or the trials of a search over it, without starting anything.

    Raises:
        ConfigError: the settings contradict each other, the shards or the crop size.
        WeightsError: a file of pretrained weights does not fit the network.
        ClusterError: the cluster that RAY_ADDRESS names does not answer.
    """
    package, network = build_on_meta_device(config, shard_set)
    if not folder.has_checkpoint():
        require_fitting_weights(package)
    model, training, data = config.model, config.training, config.data
    loader = SnippetLoader(shard_set, config=data, passes=[], global_batch=training.global_batch)
    steps = loader.num_steps(Pass(split=data.split_to_train, epoch=0, training=True))
    splits = {"to train": data.split_to_train, "to validate": data.split_to_validate, "to test": data.test_split}
    clips = ", ".join(
        f"{len(shard_set.split(split)):,} {what} ({split})" for what, split in splits.items() if split is not None
    )
    parameters = sum(parameter.numel() for parameter in network.parameters())
    address = cluster_address()
    gpus = torch.cuda.device_count() if address is None else 0
    workers = config.workers.most_workers(gpus=gpus)
    rows = (
        ("run", f"{config.name}, in {folder.uri}"),
        ("data", f"{data.shards}: {clips}; {len(shard_set.classes)} classes"),
        ("network", f"{model.architecture}, {' and '.join(model.backbones)}: {parameters:,} parameters"),
        ("optimiser", _optimiser(network, training)),
        ("steps", f"{training.epochs} epochs of {steps:,} steps of {training.global_batch} clips"),
        ("workers", _workers(config, workers=workers, gpus=gpus, joined=address is not None)),
        ("memory", _memory(config, shard_set, workers=workers, gpus=gpus)),
        (
            "time",
            "the first epoch will tell" if address is not None else _time(config, network, shard_set, workers=workers),
        ),
        (
            "cluster",
            f"Ray at {address}" if address is not None else f"this machine, {os.cpu_count()} CPUs, {gpus} GPUs",
        ),
        ("MLflow", f"{redact(config.tracking.resolved_uri())}, experiment {config.tracking.experiment}"),
    )
    return TrainingPlan(rows=rows, notes=tuple(_notes(joined=address is not None)))


def _optimiser(network: Network, training: TrainingConfig) -> str:
    """Learning rates and weight decay of the parameter groups."""
    groups = optimiser_groups(network, config=training)
    sizes = {id(group): sum(parameter.numel() for parameter in group["params"]) for group in groups}
    decaying = sum(sizes[id(group)] for group in groups if group["weight_decay"])
    rate = f"learning rate {training.learning_rate:g}"
    if training.optimiser == "adamw":
        what = f"AdamW, {rate}"
    else:
        what = f"SGD with momentum {training.momentum:g}, {rate}, for biases {2 * training.learning_rate:g}"
    if training.layer_decay is not None:
        lowest = min(group["lr"] for group in groups)
        what += f", layer decay {training.layer_decay:g}, down to {lowest:.2g} in the first layers"
    return f"{what}; weight decay {training.weight_decay:g} on {decaying:,} of {sum(sizes.values()):,} trainable"


def _workers(config: ExperimentConfig, *, workers: int, gpus: int, joined: bool) -> str:
    many = config.workers.num_workers
    shown = f"{many[0]} to {many[1]}" if isinstance(many, tuple) else str(workers)
    if joined:
        return (
            f"{shown}, on the cluster's devices" if many is not None else "one per GPU of the cluster, or 2 on its CPUs"
        )
    return f"{shown} on {torch.cuda.get_device_name() if gpus else 'CPU'}"


def _memory(config: ExperimentConfig, shard_set: ShardSet, *, workers: int, gpus: int) -> str:
    """Memory per worker: weights, gradients and moments, and activations of the samples it computes at once."""
    sampling, training = config.data.sampling, config.training
    size = describe(
        config.model,
        num_classes=len(shard_set.classes),
        flow_length=sampling.flow_length,
        num_snippets=sampling.num_snippets,
        size_px=config.data.transforms.crop_px,
    )
    samples = max(1, -(-training.global_batch // (workers * training.micro_batches)))
    learnt = (1 + training.num_moments) * size["gradient_bytes"]
    state = BYTES_PER_FLOAT * size["parameters"] * (2 if training.average_decay else 1) + learnt
    half = resolved(training, torch.device("cuda" if gpus else "cpu")).precision == "bfloat16"
    activations = samples * size["activation_bytes"] / (2 if half else 1)
    less = ", less by activation checkpointing" if training.activation_checkpointing else ""
    return (
        f"about {_bytes(state + activations)} per worker: {_bytes(state)} of weights, gradients and "
        f"{_MOMENTS[training.num_moments]}, "
        f"{_bytes(activations)} of activations for {samples} samples{less}"
    )


def _time(config: ExperimentConfig, network: Network, shard_set: ShardSet, *, workers: int) -> str:
    """Lower bound: the arithmetic of all steps at this machine's measured rate of large matrix products."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    sampling, training = config.data.sampling, config.training
    of_sample = training_flops(
        network,
        flow_length=sampling.flow_length,
        num_snippets=sampling.num_snippets,
        size_px=config.data.transforms.crop_px,
    )
    flops = of_sample * len(shard_set.split(config.data.split_to_train)) * training.epochs
    precision = resolved(training, device).precision
    rate = matrix_rate(device, precision="bfloat16" if precision == "bfloat16" else "float32")
    # CPU workers share the cores, all of which were measured.
    rate *= workers if device.type == "cuda" else 1
    return (
        f"at least {_duration(flops / rate)}: {flops / 1e12:,.3g} TFLOP at {rate / 1e12:,.2g} TFLOP/s, plus reading "
        "and validation; the first epoch will tell"
    )


def _duration(seconds: float) -> str:
    for unit, length in (("days", 86_400), ("h", 3_600), ("min", 60)):
        if seconds >= 2 * length:
            return f"{seconds / length:.1f} {unit}"
    return f"{seconds:.1f} s"


def _bytes(count: float) -> str:
    return f"{count / 2**30:.1f} GiB" if count >= 2**30 else f"{count / 2**20:.1f} MiB"


def _notes(*, joined: bool) -> list[str]:
    if joined or torch.version.cuda is None or torch.cuda.is_available():
        return []
    return [
        f"torch {torch.__version__} is built for CUDA {torch.version.cuda} and finds no GPU, so training runs on "
        "CPUs: if there should be a GPU, check nvidia-smi and the driver"
    ]
