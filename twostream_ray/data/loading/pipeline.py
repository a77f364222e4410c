"""Distributed data loader: Ray Data streams shards into batches for each worker, in an order independent of world size.

Every pass over a split is cut into a fixed number of lanes; a step takes the next few clips of every lane, and a worker
serves every world_size-th lane. So each clip occurs exactly once per pass, each row group is read by one worker (two if
a lane ends inside it), and the samples of a step are the same for any number of workers.

Ray tasks read row groups from disk or object store (`reading.ShardReader`), draw each clip's views and drop the flow
fields that these do not need; decoder processes of the worker decode directly into the batch (`decoder_processes`).
Depending on `data.decode_at`, the worker's device decodes flow (`decode_device`), or the Ray tasks decode everything.
"""

from __future__ import annotations

import math
import queue
import threading
from collections import deque
from collections.abc import Generator, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import asdict, replace
from functools import partial

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from twostream_ray.data.loading.buffers import SampleBuffers
from twostream_ray.data.loading.cpus import cpus_of_this_machine, cpus_of_this_process
from twostream_ray.data.loading.decoder_processes import DecoderPool
from twostream_ray.data.loading.lanes import Pass, Unit, lane_lengths, plan_lanes, plan_units
from twostream_ray.data.loading.reading import ShardReader
from twostream_ray.data.loading.rows import Row, rows_of
from twostream_ray.data.loading.sample_cache import Decode, SampleCache
from twostream_ray.data.loading.settings import DataConfig
from twostream_ray.data.shards.shards import ShardSet
from twostream_ray.data.snippets import Batch, EncodedFlow
from twostream_ray.errors import ConfigError, DecodeError, own_error

READING_CPUS = 0.1
"""CPUs reserved by a Ray task that reads shards: it mostly waits for disk or network."""
_UNITS_PER_EXECUTION = 512
_UNITS_PER_TASK = 4
_STEPS_AHEAD = 2
_THREADS = 2
"""Decoding threads if there are no decoder processes."""
_DECODED_BY_THREADS = 100
"""Samples per process below which starting it takes longer than it saves."""
_CLIPS_READ_LOCALLY = 128
"""A few seconds of training: about the time that Ray Data takes to start."""


class SnippetLoader:
    """Iterates over the batches of one worker for several passes, without a pause between passes."""

    def __init__(
        self,
        shard_set: ShardSet,
        *,
        config: DataConfig,
        passes: Iterable[Pass],
        global_batch: int,
        seed: int = 0,
        rank: int = 0,
        world_size: int = 1,
        want_rgb: bool = True,
        want_flow: bool = True,
        through_ray: bool = True,
    ) -> None:
        """Plan the passes; reading starts with iteration.

        Args:
            shard_set: the shards to read.
            config: data settings, with decode_at from `choose_decode_at`; `auto` means worker here.
            passes: the passes to make, in order.
            global_batch: clips per step over all workers.
            seed: of order and views.
            rank: of this worker, in [0, world_size).
            world_size: number of workers.
            want_rgb: whether to read and decode RGB frames.
            want_flow: whether to read and decode flow.
            through_ray: False reads in this process, for local mode and to measure Ray Data's overhead.

        Raises:
            ConfigError: lanes do not divide the global batch, or are fewer than the workers.
            ShardError: a pass names an unknown split.
        """
        if global_batch % config.lanes:
            raise ConfigError(
                f"training.global_batch must be a multiple of data.lanes ({config.lanes}), got {global_batch}"
            )
        if world_size > config.lanes:
            raise ConfigError(f"data.lanes must be at least the number of workers ({world_size}), got {config.lanes}")
        self._shard_set, self._config, self._passes, self._seed = shard_set, config, list(passes), seed
        self._rank, self._world_size = rank, world_size
        self._per_lane = global_batch // config.lanes
        self._through_ray = through_ray
        self._flow_on_device = want_flow and config.decode_at == "device"
        self._want = {"want_rgb": want_rgb, "want_flow": want_flow and not self._flow_on_device}
        self._sample_cache: SampleCache | None = None
        self.reader = ShardReader(
            shard_set, config=config, passes=self._passes, seed=seed, want_rgb=want_rgb, want_flow=want_flow
        )
        """Reads the units, in this process or in a Ray Data task."""

    def num_steps(self, a_pass: Pass) -> int:
        """Number of steps of a complete pass, the same on every worker.

        Raises:
            ShardError: the set has no such split.
        """
        longest, *_ = self._lane_lengths(replace(a_pass, first_step=0))
        return math.ceil(longest / self._per_lane)

    def _lane_lengths(self, a_pass: Pass) -> list[int]:
        """Number of remaining clips in each lane of a pass."""
        return lane_lengths(
            len(self._shard_set.split(a_pass.split)),
            lanes=self._config.lanes,
            skipped=a_pass.first_step * self._per_lane,
        )

    def __iter__(self) -> Generator[tuple[Pass, Iterator[Batch]], None, None]:
        """Each pass with its batches; a pass must be exhausted before the next one is requested."""
        config = self._config
        self._sample_cache = self._open_sample_cache()
        stop = threading.Event()
        rows = self._rows(stop)
        processes = self.decode_processes()
        pool = DecoderPool(processes, config=config.sampling, contract=self._shard_set.contract)
        self._threads = cpus_of_this_process()
        self._decoders, self._buffers = pool, SampleBuffers(config, **self._want, memory=pool.memory)
        try:
            with ThreadPoolExecutor(processes or _THREADS, thread_name_prefix="decode") as threads:
                for a_pass in self._passes:
                    yield a_pass, self._batches(a_pass, rows, threads)
        finally:
            stop.set()
            rows.close()
            pool.close()

    def decode_processes(self) -> int:
        """Number of decoder processes: 0 if decoding takes only about a second, less than starting them."""
        config = self._config
        if config.decode_at == "stream" or not any(self._want.values()):
            return 0
        if config.decode_processes is not None:
            return min(config.decode_processes, cpus_of_this_machine())
        samples = 0
        for a_pass in self._passes:
            views = 1 if a_pass.training else config.sampling.test_times
            samples += sum(self._lane_lengths(a_pass)[self._rank :: self._world_size]) * views
        cores = cpus_of_this_process()
        return cores if cores > 1 and samples > _DECODED_BY_THREADS * cores else 0

    def _batches(self, a_pass: Pass, rows: Iterator[Row], threads: ThreadPoolExecutor) -> Iterator[Batch]:
        lengths = self._lane_lengths(a_pass)
        mine = range(self._rank, len(lengths), self._world_size)
        waiting: dict[int, deque[Row]] = {lane: deque() for lane in mine}
        ahead: deque[tuple[Batch, list[Future[bool]]]] = deque()
        spare: Batch | None = None
        num_steps = math.ceil(lengths[0] / self._per_lane)
        for step in range(num_steps + _STEPS_AHEAD):
            if step < num_steps:
                taken: list[Row] = []
                sizes = [min(max(length - step * self._per_lane, 0), self._per_lane) for length in lengths]
                for lane in mine:
                    while len(waiting[lane]) < sizes[lane]:
                        row = next(rows)
                        waiting[row.lane].append(row)
                    taken += [waiting[lane].popleft() for _ in range(sizes[lane])]
                ahead.append(self._begun(a_pass, taken, total=sum(sizes), threads=threads))
            if ahead and (step >= _STEPS_AHEAD or step >= num_steps):
                batch, decoding = ahead.popleft()
                if not decoding:
                    yield self._padding_batch(spare, batch)
                    continue
                spare = replace(batch, decoded=sum(future.result() for future in decoding))
                yield spare

    def _begun(
        self, a_pass: Pass, rows: list[Row], *, total: int, threads: ThreadPoolExecutor
    ) -> tuple[Batch, list[Future[bool]]]:
        """Allocate a batch and submit the decoding of its samples to threads."""
        views = 1 if a_pass.training else self._config.sampling.test_times
        rgb, flow = self._buffers.streams(len(rows) * views)
        encoded_flow = self._encoded_flow(rows) if self._flow_on_device else None
        decoding = []
        for number, row in enumerate(rows):
            part = slice(number * views, (number + 1) * views)
            outs = (None if rgb is None else rgb[part], None if flow is None else flow[part])
            decoding.append(threads.submit(self._decode, a_pass, row, outs))
        clips = np.repeat(np.array([row.clip for row in rows], dtype=np.int64), views)
        batch = Batch(
            rgb=rgb,
            flow=flow,
            labels=self._shard_set.labels[clips].astype(np.int64),
            weights=np.ones(len(clips), np.float32),
            clips=clips,
            total=float(total * views),
            encoded_flow=encoded_flow,
            lanes=np.repeat(np.array([row.lane for row in rows], dtype=np.int64), views),
        )
        return batch, decoding

    def _encoded_flow(self, rows: Sequence[Row]) -> EncodedFlow:
        return EncodedFlow(
            clips=tuple((row.packed.encoded(), row.packed.views()) for row in rows if row.packed is not None),
            size_px=self._config.transforms.crop_px,
            config=self._config.sampling,
            contract=self._shard_set.contract,
            name=lambda number: self._shard_set.locate(rows[number].clip),
            threads=self._threads,
        )

    def _padding_batch(self, spare: Batch | None, empty: Batch) -> Batch:
        """One sample of weight 0, for a step in which only other workers have clips."""
        if spare is not None:
            rgb, flow = (None if stream is None else stream[:1] for stream in (spare.rgb, spare.flow))
        else:
            rgb, flow = self._buffers.streams(1)
            for stream, level in ((rgb, 0), (flow, 128)):
                if stream is not None:
                    stream.fill(level)
            if self._flow_on_device:
                size, sampling = self._config.transforms.crop_px, self._config.sampling
                flow = np.full((1, sampling.num_snippets, 2 * sampling.flow_length, size, size), 128, np.uint8)
        encoded_flow = None if spare is None or spare.encoded_flow is None else spare.encoded_flow.first_sample()
        zero = np.zeros(1, np.int64)
        labels = zero if spare is None else spare.labels[:1]
        clips = zero if spare is None else spare.clips[:1]
        return Batch(
            rgb=rgb,
            flow=flow,
            labels=labels,
            weights=np.zeros(1, np.float32),
            clips=clips,
            total=empty.total,
            encoded_flow=encoded_flow,
            lanes=zero if spare is None or spare.lanes is None else spare.lanes[:1],
        )

    def _decode(self, a_pass: Pass, row: Row, outs: tuple[NDArray[np.uint8] | None, NDArray[np.uint8] | None]) -> bool:
        """Decode a row into (views, T, C, H, W) uint8 of each requested stream; returns False on a cache hit."""
        try:
            return self._decode_row(a_pass, row, outs)
        except DecodeError as error:
            raise DecodeError(f"{self._shard_set.locate(row.clip)}: {error}; ingest again") from error

    def _decode_row(
        self, a_pass: Pass, row: Row, outs: tuple[NDArray[np.uint8] | None, NDArray[np.uint8] | None]
    ) -> bool:
        if row.packed is None:
            for out, content in zip(outs, row.decoded, strict=True):
                if out is not None and content is not None:
                    out[...] = np.frombuffer(content, np.uint8).reshape(out.shape)
            return True
        rgb, flow = outs
        if rgb is None and flow is None:
            return True
        decode = partial(self._decoders.decode, row.packed.without_flow() if flow is None else row.packed)
        if self._sample_cache is None:
            decode(rgb=rgb, flow=flow)
            return True
        pass_name = f"seed-{self._seed}-epoch-{a_pass.epoch}" if a_pass.training else "test-views"
        wanted: dict[str, tuple[NDArray[np.uint8], Decode]] = {}
        if rgb is not None:
            wanted["rgb"] = (rgb, lambda out: decode(rgb=out, flow=None))
        if flow is not None:
            wanted["flow"] = (flow, lambda out: decode(rgb=None, flow=out))
        return self._sample_cache.fill(pass_name, str(row.clip), wanted)

    def _open_sample_cache(self) -> SampleCache | None:
        config = self._config
        if config.sample_cache is None:
            return None
        depends_on = {
            "manifest": self._shard_set.hash,
            "sampling": asdict(config.sampling),
            "transforms": asdict(config.transforms),
        }
        limit_bytes = int(config.sample_cache_gb * 1e9)
        return SampleCache(config.sample_cache, limit_bytes=limit_bytes, depends_on=depends_on)

    def _rows(self, stop: threading.Event) -> Generator[Row, None, None]:
        """Rows of all passes in order, prefetched by a thread across pass boundaries."""
        blocks: queue.Queue[pa.Table | BaseException | None] = queue.Queue(maxsize=8)

        def put(block: pa.Table | BaseException | None) -> None:
            while not stop.is_set():
                with suppress(queue.Full):
                    blocks.put(block, timeout=0.2)
                    return

        def read() -> None:
            try:
                for number, units in enumerate(self._executions()):
                    for block in self._stream(units, first=number == 0):
                        put(block)
                        if stop.is_set():
                            return
                put(None)
            except BaseException as error:  # noqa: BLE001  re-raised in the training thread
                put(error)

        thread = threading.Thread(target=read, name="shard-reader", daemon=True)
        thread.start()
        try:
            while (block := blocks.get()) is not None:
                if isinstance(block, BaseException):
                    raise own_error(block) or block
                yield from rows_of(block)
        finally:
            stop.set()
            thread.join(timeout=30)

    def _stream(self, units: list[Unit], *, first: bool) -> Iterator[pa.Table]:
        """Blocks of one execution; the very first clips are read locally, while Ray Data takes seconds to start."""
        if not self._through_ray:
            yield from (block for unit in units for block in self.reader.blocks(unit))
            return
        num_local = 0
        clips = 0
        while first and num_local < len(units) and clips < _CLIPS_READ_LOCALLY:
            clips += len(units[num_local].clips)
            num_local += 1
        if num_local == len(units):
            yield from (self.reader.read_unit(unit) for unit in units)
            return
        through_ray = iter(_through_ray(self.reader, units[num_local:], tasks=self.read_tasks()))
        with ThreadPoolExecutor(1, thread_name_prefix="ray-data-start") as starter:
            first_block = starter.submit(next, through_ray, None)
            yield from (self.reader.read_unit(unit) for unit in units[:num_local])
            block = first_block.result()
        while block is not None:
            yield block
            block = next(through_ray, None)

    def read_tasks(self) -> int:
        """Number of concurrent Ray tasks that read for this worker."""
        return self._config.read_tasks or max(2, cpus_of_this_process() // 4)

    def units(self) -> Iterator[Unit]:
        """All units that this worker reads, over all passes, in order."""
        return (unit for units in self._executions() for unit in units)

    def _executions(self) -> Iterator[list[Unit]]:
        """Units per Ray Data execution: whole passes, small ones merged, as each execution takes seconds to start."""
        gathered: list[Unit] = []
        config = self._config
        for index, a_pass in enumerate(self._passes):
            skipped = a_pass.first_step * self._per_lane
            lanes = plan_lanes(self._shard_set, a_pass, lanes=config.lanes, seed=self._seed, skipped=skipped)
            gathered += plan_units(
                self._shard_set, lanes, pass_index=index, rank=self._rank, world_size=self._world_size
            )
            if len(gathered) >= _UNITS_PER_EXECUTION:
                yield gathered
                gathered = []
        if gathered:
            yield gathered


def _through_ray(reader: ShardReader, units: Sequence[Unit], *, tasks: int) -> Iterable[pa.Table]:
    import ray

    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    context.raise_original_map_exception = True  # the wrapper's cause is lost when it is pickled
    context.execution_options.preserve_order = True
    # Stored once for all tasks: the index of a large set is megabytes.
    shared = ray.put(reader)

    def read(numbers: pa.Table) -> Iterator[pa.Table]:
        in_task: ShardReader = ray.get(shared)
        for number in numbers["item"].to_pylist():
            yield from in_task.blocks(units[number])

    # Reading tasks reserve little, because train workers hold most of the CPUs.
    numbers = ray.data.from_items(list(range(len(units))), override_num_blocks=-(-len(units) // _UNITS_PER_TASK))
    stream = numbers.map_batches(
        read,
        batch_size=None,
        batch_format="pyarrow",
        zero_copy_batch=True,
        num_cpus=READING_CPUS,
        compute=ray.data.TaskPoolStrategy(size=tasks),
    )
    batches: Iterable[pa.Table] = stream.iter_batches(batch_size=None, batch_format="pyarrow", prefetch_batches=2)
    return batches
