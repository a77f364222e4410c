"""Throughput probes: the stages of a training measured one at a time, by as many workers, on their devices.

Each stage is the training's own code: its reading tasks, its pool of decoders, its step, its process group.
"""

from __future__ import annotations

import socket
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from datetime import timedelta
from itertools import islice
from typing import Any

import torch
import torch.distributed as dist

from twostream_ray import storage
from twostream_ray.data.loading.buffers import SampleBuffers
from twostream_ray.data.loading.decode_choice import choose_decode_at
from twostream_ray.data.loading.decoder_processes import DecoderPool
from twostream_ray.data.loading.device import DeviceBatch, on_device, to_device
from twostream_ray.data.loading.lanes import Pass, Unit
from twostream_ray.data.loading.pipeline import SnippetLoader
from twostream_ray.data.loading.reading import ShardReader
from twostream_ray.data.loading.rows import Row, rows_of
from twostream_ray.data.shards.shards import ShardSet
from twostream_ray.data.snippets import Batch
from twostream_ray.model_package import ModelPackage
from twostream_ray.runs.benchmark.settings import BenchmarkStepConfig
from twostream_ray.runs.benchmark.step import random_batch
from twostream_ray.runs.experiment import ExperimentConfig
from twostream_ray.runs.train.data_wait import cpu_seconds
from twostream_ray.training.distributed import distributed, prepared, resolved
from twostream_ray.training.matrix_rate import matrix_rate
from twostream_ray.training.recipe import build_optimiser
from twostream_ray.training.settings import Precision
from twostream_ray.training.step import TrainingStep

_DECODED_ROWS = 64
_UNITS_READ = 512
_TIMEOUT_S = 300.0
_THREADS_WITHOUT_PROCESSES = 2
_FIRST_BYTES = 3


@dataclass(frozen=True, kw_only=True)
class StepRate:
    """Time of a step on one worker's share of a batch."""

    seconds: float
    """Median."""
    cpu_seconds: float
    """CPU time that the process spent on it."""
    backward_seconds: float
    """Of which backward; 0 if not measured."""


@dataclass(frozen=True, kw_only=True)
class SampleRate:
    """Throughput of a stage by itself."""

    samples_per_second: float
    cpu_seconds: float
    """CPU time of all processes per sample."""
    bytes_per_sample: float = 0.0
    first_byte_s: float = 0.0
    """Seconds until a request's first byte; only of reading."""
    clips_per_request: float = 0.0
    """Clips in a unit of reading."""


class WorkerProbe:
    """One worker of the training with its network; an actor with a worker's resources."""

    def __init__(
        self,
        config: ExperimentConfig,
        package: ModelPackage,
        shard_set: ShardSet,
        *,
        rank: int,
        world_size: int,
        needs: tuple[bool, bool],
    ) -> None:
        self._device = torch.device("cuda", 0) if torch.cuda.is_available() else torch.device("cpu")
        torch.set_num_threads(1)  # as a training's worker has it
        torch.manual_seed(config.seed)
        self._config = replace(config, training=resolved(config.training, self._device))
        self._package, self._shard_set, self._rank, self._world_size = package, shard_set, rank, world_size
        self.decoding = choose_decode_at(config.data, self._device, want_flow=needs[1]).at
        self._needs = needs
        self._loader = self._new_loader()
        self._batch: DeviceBatch | None = None

    def _new_loader(self, *, through_ray: bool = True) -> SnippetLoader:
        config, data = self._config, self._config.data
        return SnippetLoader(
            self._shard_set,
            config=replace(data, decode_at=self.decoding),
            passes=[
                Pass(split=data.split_to_train, epoch=epoch, training=True) for epoch in range(config.training.epochs)
            ],
            global_batch=config.training.global_batch,
            seed=config.seed,
            rank=self._rank,
            world_size=self._world_size,
            want_rgb=self._needs[0],
            want_flow=self._needs[1],
            through_ray=through_ray,
        )

    def plan(self) -> tuple[ShardReader, list[Unit], int, int, str]:
        """Reader, first units, number of reading tasks and of decoders, and `decode_at` of this worker."""
        units = list(islice(self._loader.units(), _UNITS_READ))
        return self._loader.reader, units, self._loader.read_tasks(), self._loader.decode_processes(), self.decoding

    def device(self) -> tuple[str, float]:
        """The device's name, and its floating-point operations per second in large matrix products."""
        precision: Precision = "bfloat16" if self._config.training.precision == "bfloat16" else "float32"
        cuda = self._device.type == "cuda"
        return torch.cuda.get_device_name() if cuda else "CPU", matrix_rate(self._device, precision=precision)

    def step(self, seconds: float) -> StepRate:
        """Time steps of this worker alone, on random samples that are on its device."""
        network = prepared(self._package.build(pretrained=False), config=self._config.training, device=self._device)
        network.train()
        self._network, self._optimiser = network, build_optimiser(network, config=self._config.training)
        self._batch = to_device(self._random_batch(), self._device)
        return self._timed_steps(network, seconds)

    def pipeline(self, seconds: float) -> float:
        """Samples per second of loader and steps at once, read in this process; 0 if reading tasks decode.

        It includes what no stage has by itself: decoders and steps competing for cores, and collating batches.
        """
        if self.decoding == "stream":
            return 0.0
        learn = TrainingStep(self._network, self._optimiser, config=self._config.training, seed=0, device=self._device)
        began, done, counted_from = time.perf_counter(), 0, 0.0
        loader = iter(self._new_loader(through_ray=False))
        try:
            for _, batches in loader:
                for batch in on_device(batches, self._device):
                    learn(batch, epoch=0, step=0, num_steps=10**6)
                    now = time.perf_counter()
                    done += len(batch.labels) if counted_from else 0
                    if not counted_from and now - began > seconds:  # decoders have started by now
                        counted_from = now
                    if counted_from and now - counted_from > seconds:
                        return done / (now - counted_from)
        finally:
            loader.close()
        return done / (time.perf_counter() - counted_from) if done else 0.0

    def free_address(self) -> str:
        """A free TCP address for the process group's store, on the first worker's node."""
        import ray

        with socket.socket() as asked:
            asked.bind(("", 0))
            return f"tcp://{ray.util.get_node_ip_address()}:{asked.getsockname()[1]}"

    def join_process_group(self, init_method: str) -> None:
        """Join the process group."""
        dist.init_process_group(
            "nccl" if self._device.type == "cuda" else "gloo",
            init_method=init_method,
            rank=self._rank,
            world_size=self._world_size,
            timeout=timedelta(seconds=_TIMEOUT_S),
        )

    def step_together(self, count: int) -> StepRate:
        """Time `count` steps, the same number on each worker, that exchange gradients."""
        model = distributed(self._network, config=self._config.training, device=self._device)
        return self._timed_steps(model.train(), 0.0, count=count)

    def all_reduce(self, count: int) -> float:
        """Seconds of an all-reduce of all gradients in DistributedDataParallel's buckets, while nothing is computed."""
        half = self._config.training.compress_gradients
        number = 2 if half else 4
        left = sum(one.numel() for one in self._network.parameters() if one.requires_grad)
        most = (25 << 20) // number
        sizes = [min(most, left - start) for start in range(0, left, most)]
        buckets = [
            torch.zeros(size, device=self._device, dtype=torch.bfloat16 if half else torch.float32) for size in sizes
        ]

        def share() -> float:
            started = time.perf_counter()
            for work in [dist.all_reduce(bucket, async_op=True) for bucket in buckets]:
                work.wait()
            self._synchronise()
            return time.perf_counter() - started

        share()
        return statistics.median(share() for _ in range(count))

    def leave_process_group(self) -> None:
        """Leave the process group."""
        dist.destroy_process_group()

    def transfer(self, seconds: float) -> float:
        """Bytes per second from host memory to the device; 0 on a CPU, where nothing is copied."""
        if self._device.type == "cpu":
            return 0.0
        host = torch.empty(64 << 20, dtype=torch.uint8, pin_memory=True)
        device_buffer = torch.empty_like(host, device=self._device)
        self._synchronise()
        ends, copies, started = time.perf_counter() + min(seconds, 1.0), 0, time.perf_counter()
        while time.perf_counter() < ends:
            device_buffer.copy_(host, non_blocking=True)
            self._synchronise()
            copies += 1
        return copies * host.nbytes / (time.perf_counter() - started)

    def decode(self, seconds: float) -> SampleRate | None:
        """Throughput of the worker's decoders on clips in memory; None if reading tasks decode."""
        if self.decoding == "stream":
            return None
        rows: list[Row] = []
        for unit in self._loader.units():
            rows += rows_of(self._loader.reader.read_unit(unit))
            if len(rows) >= _DECODED_ROWS:
                break
        rows = rows[:_DECODED_ROWS]
        sampling, processes = self._config.data.sampling, self._loader.decode_processes()
        want_flow = self._needs[1] and self.decoding != "device"
        pool = DecoderPool(processes, config=sampling, contract=self._shard_set.contract)
        buffers = SampleBuffers(self._config.data, want_rgb=self._needs[0], want_flow=want_flow, memory=pool.memory)
        try:
            pool.wait_until_ready()
            at_once = processes or _THREADS_WITHOUT_PROCESSES

            def decode(row: Row) -> None:
                rgb, flow = buffers.streams(1)
                packed = row.packed
                assert packed is not None  # noqa: S101  (they come encoded)
                pool.decode(packed if want_flow else packed.without_flow(), rgb=rgb, flow=flow)

            with ThreadPoolExecutor(at_once) as threads:
                list(threads.map(decode, rows[: 2 * at_once]))
                before, started, done = cpu_seconds(), time.perf_counter(), 0
                while not done or time.perf_counter() - started < seconds:
                    list(threads.map(decode, rows))
                    done += len(rows)
                spent, used = time.perf_counter() - started, cpu_seconds() - before
        finally:
            pool.close()
        return SampleRate(samples_per_second=done / spent, cpu_seconds=used / done)

    def _timed_steps(self, model: Any, seconds: float, *, count: int = 2) -> StepRate:
        batch = self._batch
        assert batch is not None  # noqa: S101  (`step` comes first)
        phases: dict[str, float] = {}
        learn, learn_by_phases = (
            TrainingStep(
                model, self._optimiser, config=self._config.training, seed=0, device=self._device, seconds=into
            )
            for into in (None, phases)
        )

        def once(learn: TrainingStep = learn) -> tuple[float, float]:
            began, used = time.perf_counter(), time.process_time()
            learn(batch, epoch=0, step=0, num_steps=10**6)
            self._synchronise()
            return time.perf_counter() - began, time.process_time() - used

        for _ in range(3 if self._device.type == "cuda" else 1):
            once()
        taken, started = [once() for _ in range(count)], time.perf_counter()
        while time.perf_counter() - started < seconds:
            taken.append(once())
        once(learn_by_phases)
        phases.clear()
        once(learn_by_phases)
        wall, cpu = zip(*taken, strict=True)
        return StepRate(
            seconds=statistics.median(wall),
            cpu_seconds=statistics.median(cpu),
            backward_seconds=phases["backward"],
        )

    def _random_batch(self) -> Batch:
        data = self._config.data
        share = -(-self._config.training.global_batch // self._world_size)
        batch = random_batch(
            BenchmarkStepConfig(
                batch=share,
                num_snippets=data.sampling.num_snippets,
                flow_length=data.sampling.flow_length,
                size_px=data.transforms.crop_px,
                num_classes=len(self._shard_set.classes),
            )
        )
        rgb, flow = (one if wanted else None for one, wanted in zip((batch.rgb, batch.flow), self._needs, strict=True))
        return replace(batch, rgb=rgb, flow=flow, total=float(self._config.training.global_batch))

    def _synchronise(self) -> None:
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)


def read_for(reader: ShardReader, units: Sequence[Unit], seconds: float, *, decodes: bool) -> SampleRate:
    """Throughput of one reading task over `units`; the first warms up."""
    work: Callable[[Unit], Iterator[Any]] = (
        reader.decode_unit if decodes else lambda unit: iter([reader.read_unit(unit)])
    )
    first_byte = _first_byte(reader, units[0])
    list(work(units[0]))
    clips, size, number, times = 0, 0, 0, list[float]()
    before, started = time.process_time(), time.perf_counter()
    while not number or time.perf_counter() - started < seconds:
        unit = units[(number + 1) % len(units)]
        began = time.perf_counter()
        for block in work(unit):
            size += block.nbytes
        times.append(time.perf_counter() - began)
        clips += len(unit.clips)
        number += 1
    spent, used = time.perf_counter() - started, time.process_time() - before
    return SampleRate(
        samples_per_second=clips / spent,
        cpu_seconds=used / clips,
        bytes_per_sample=size / clips,
        first_byte_s=first_byte,
        clips_per_request=clips / number,
    )


def _first_byte(reader: ShardReader, unit: Unit) -> float:
    shards = reader.shard_set
    taken = []
    with storage.open_regular(storage.join(shards.uri, "shards", shards.shard_names[unit.shard])) as file:
        for number in range(_FIRST_BYTES):
            began = time.perf_counter()
            file.read_at(1, number)
            taken.append(time.perf_counter() - began)
    return min(taken)
