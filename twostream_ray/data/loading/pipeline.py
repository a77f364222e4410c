"""Shards into batches for each worker, in an order that seed and epoch fix, but not the number of workers.

Every pass over a split is cut into a fixed number of lanes; a step takes the next few clips of every lane, and a worker
serves every world_size-th lane. So each clip comes exactly once a pass, each row group is read by one worker (two where
a lane ends inside it), and the samples of a step are the same for 1, 2 or 3 workers.

Ray Data streams the row groups: its tasks read from disk or object store and cut each clip down to the fields its view
needs; the worker's threads decode straight into the batch, or, by setting, the tasks decode too.
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
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from twostream_ray import storage
from twostream_ray.data import snippets
from twostream_ray.data.encoded_clip import EncodedClip
from twostream_ray.data.loading import decode_cpu
from twostream_ray.data.loading.buffers import Buffers
from twostream_ray.data.loading.lanes import Pass, Unit, plan_lanes, plan_units
from twostream_ray.data.loading.rows import encoded_block, rows_of, sample_block
from twostream_ray.data.loading.sample_cache import SampleCache
from twostream_ray.data.loading.settings import DataConfig
from twostream_ray.data.shards.cache import ShardCache
from twostream_ray.data.shards.shards import ShardSet, read_clips
from twostream_ray.data.snippets import Batch
from twostream_ray.data.views import View, evaluation_views, training_view
from twostream_ray.errors import ConfigError, ShardError, own_error

READING_CPUS = 0.1
"""CPUs of a Ray task that reads shards: it waits for disk or network most of the time."""
_UNITS_PER_EXECUTION = 512
_UNITS_PER_TASK = 4
_STEPS_AHEAD = 2
_CLIPS_READ_HERE = 128
"""A few seconds of training: about what Ray Data takes to start."""


class SnippetLoader:
    """Batches of one worker over several passes, streamed without a pause between them."""

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
        """`through_ray` False reads in this process, for local mode and as the measure of Ray Data's cost.

        Raises:
            ConfigError: lanes do not go with the global batch or the number of workers.
            ShardError: a pass names a split that is not there.
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
        self._want_rgb, self._want_flow, self._through_ray = want_rgb, want_flow, through_ray
        self._buffers = {"rgb": Buffers(), "flow": Buffers()}
        self._kept: SampleCache | None = None

    def num_steps(self, a_pass: Pass) -> int:
        """Steps of a whole pass: the same on every worker."""
        members = len(self._shard_set.split(a_pass.split))
        longest_lane = math.ceil(members / self._config.lanes)
        return math.ceil(longest_lane / self._per_lane)

    def _lanes(self, a_pass: Pass) -> list[NDArray[np.int64]]:
        """What is left of the lanes of a pass."""
        lanes = plan_lanes(self._shard_set, a_pass, lanes=self._config.lanes, seed=self._seed)
        return [lane[a_pass.first_step * self._per_lane :] for lane in lanes]

    def __iter__(self) -> Iterator[tuple[Pass, Iterator[Batch]]]:
        """Each pass with its batches; a pass must be consumed before the next is asked for."""
        self._kept = self._sample_cache()
        stop = threading.Event()
        rows = self._rows(stop)
        try:
            with ThreadPoolExecutor(self._config.decode_threads, thread_name_prefix="decode") as threads:
                for a_pass in self._passes:
                    yield a_pass, self._batches(a_pass, rows, threads)
        finally:
            stop.set()
            rows.close()

    def _batches(self, a_pass: Pass, rows: Iterator[dict[str, Any]], threads: ThreadPoolExecutor) -> Iterator[Batch]:
        lanes = self._lanes(a_pass)
        mine = range(self._rank, len(lanes), self._world_size)
        waiting: dict[int, deque[dict[str, Any]]] = {lane: deque() for lane in mine}
        ahead: deque[tuple[Batch, list[Future[bool]]]] = deque()
        spare: Batch | None = None
        num_steps = self.num_steps(a_pass) - a_pass.first_step
        for step in range(num_steps + _STEPS_AHEAD):
            if step < num_steps:
                taken: list[dict[str, Any]] = []
                start, end = step * self._per_lane, (step + 1) * self._per_lane
                for lane in mine:
                    wanted = len(lanes[lane][start:end])
                    while len(waiting[lane]) < wanted:
                        row = next(rows)
                        waiting[row["lane"]].append(row)
                    taken += [waiting[lane].popleft() for _ in range(wanted)]
                total = sum(len(lane[start:end]) for lane in lanes)
                ahead.append(self._begun(a_pass, taken, total=total, threads=threads))
            if ahead and (step >= _STEPS_AHEAD or step >= num_steps):
                batch, decoding = ahead.popleft()
                if not decoding:
                    yield self._padding_batch(spare, batch)
                    continue
                spare = replace(batch, decoded=sum(future.result() for future in decoding))
                yield spare

    def _begun(
        self, a_pass: Pass, rows: list[dict[str, Any]], *, total: int, threads: ThreadPoolExecutor
    ) -> tuple[Batch, list[Future[bool]]]:
        """A batch whose samples threads are decoding into place."""
        views = 1 if a_pass.training else self._config.sampling.test_times
        rgb, flow = (self._room(len(rows) * views, stream) for stream in ("rgb", "flow"))
        decoding = []
        for number, row in enumerate(rows):
            part = slice(number * views, (number + 1) * views)
            outs = (None if rgb is None else rgb[part], None if flow is None else flow[part])
            decoding.append(threads.submit(self._decode, a_pass, row, outs))
        clips = np.repeat(np.array([row["clip"] for row in rows], dtype=np.int64), views)
        batch = Batch(
            rgb=rgb,
            flow=flow,
            labels=self._shard_set.labels[clips],
            weights=np.ones(len(clips), np.float32),
            clips=clips,
            total=float(total * views),
        )
        return batch, decoding

    def _room(self, samples: int, stream: str) -> NDArray[np.uint8] | None:
        sampling, size = self._config.sampling, self._config.transforms.crop_px
        if not (self._want_rgb if stream == "rgb" else self._want_flow):
            return None
        channels = 3 if stream == "rgb" else 2 * sampling.flow_length
        return self._buffers[stream].room((samples, sampling.num_snippets, channels, size, size))

    def _padding_batch(self, spare: Batch | None, empty: Batch) -> Batch:
        """For a step in which the other workers still have clips: take part with a sample that counts nothing."""
        if spare is not None:
            rgb, flow = (None if stream is None else stream[:1] for stream in (spare.rgb, spare.flow))
        else:
            rgb, flow = self._room(1, "rgb"), self._room(1, "flow")
            for stream, level in ((rgb, 0), (flow, 128)):
                if stream is not None:
                    stream.fill(level)
        zero = np.zeros(1, np.int64)
        labels = zero if spare is None else spare.labels[:1]
        clips = zero if spare is None else spare.clips[:1]
        return Batch(rgb=rgb, flow=flow, labels=labels, weights=np.zeros(1, np.float32), clips=clips, total=empty.total)

    def _views(self, a_pass: Pass, clip_id: str, clip: EncodedClip) -> list[View]:
        config = self._config
        shape = (clip.num_frames, clip.height, clip.width)
        if not a_pass.training:
            return evaluation_views(*shape, sampling_config=config.sampling, transform_config=config.transforms)
        return [
            training_view(
                *shape,
                sampling_config=config.sampling,
                transform_config=config.transforms,
                seed=self._seed,
                epoch=a_pass.epoch,
                clip_id=clip_id,
            )
        ]

    def _decode(
        self, a_pass: Pass, row: dict[str, Any], outs: tuple[NDArray[np.uint8] | None, NDArray[np.uint8] | None]
    ) -> bool:
        """Have the views of a row in (views, T, C, size, size) of each wanted stream; False if they were kept."""
        rgb, flow = outs
        if "samples" in row:
            for out, content in zip(outs, row["samples"], strict=True):
                if out is not None:
                    out[...] = np.frombuffer(content, np.uint8).reshape(out.shape)
            return True
        clip: EncodedClip = row["encoded"]
        views = self._views(a_pass, row["clip_id"], clip)
        size, sampling, contract = self._config.transforms.crop_px, self._config.sampling, self._shard_set.contract

        def decode_rgb(outs: NDArray[np.uint8]) -> None:
            for view, out in zip(views, outs, strict=True):
                decode_cpu.decode_rgb(clip, view, size_px=size, out=out)

        def decode_flow(outs: NDArray[np.uint8]) -> None:
            for view, out in zip(views, outs, strict=True):
                decode_cpu.decode_flow(clip, view, size_px=size, config=sampling, contract=contract, out=out)

        streams = {"rgb": (rgb, decode_rgb), "flow": (flow, decode_flow)}
        wanted = {stream: (out, decode) for stream, (out, decode) in streams.items() if out is not None}
        if self._kept is not None:
            drawn = f"seed-{self._seed}-epoch-{a_pass.epoch}" if a_pass.training else "test-views"
            return self._kept.fill(drawn, str(row["clip"]), wanted)
        for out, decode in wanted.values():
            decode(out)
        return True

    def _sample_cache(self) -> SampleCache | None:
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

    def read_unit(self, unit: Unit) -> pa.Table:
        """The encoded clips of a unit, flow cut down to the fields that the pass's views need."""
        a_pass = self._passes[unit.pass_index]
        rows = self._read_rows(unit)
        fields: list[list[int]] = []
        for clip_id, clip in rows:
            times = np.concatenate([view.times for view in self._views(a_pass, clip_id, clip)])
            needed = snippets.needed_fields(times, config=self._config.sampling, num_frames=clip.num_frames)
            fields.append(needed if self._want_flow else [])
        return encoded_block(unit, rows, fields=fields)

    def _read_rows(self, unit: Unit) -> list[tuple[str, EncodedClip]]:
        shards = self._shard_set
        uri = storage.join(shards.uri, "shards", shards.shard_names[unit.shard])

        def read(copy: str | None = None) -> list[tuple[str, EncodedClip]]:
            return list(read_clips(shards, unit.clips, want_rgb=self._want_rgb, want_flow=self._want_flow, copy=copy))

        if self._config.cache is None or not storage.is_s3(uri):
            return read()
        cache = ShardCache(self._config.cache, limit_bytes=int(self._config.cache_gb * 1e9))
        sha256, size = shards.shard_sha256[unit.shard], shards.shard_bytes[unit.shard]
        entry = cache.fetch(uri, sha256=sha256, size=size)
        if entry is not None:
            try:
                return read(str(entry))
            except ShardError:
                cache.drop(entry)  # it was whole when it came: this disk is to blame
        return read()

    def blocks(self, unit: Unit) -> Iterator[pa.Table]:
        """What a reading task streams to the worker: encoded clips, or samples."""
        if self._config.decode_at == "stream":
            yield from self.decode_unit(unit)
        else:
            yield self.read_unit(unit)

    def decode_unit(self, unit: Unit) -> Iterator[pa.Table]:
        """The samples of a unit, decoded, a clip at a time: each is megabytes."""
        a_pass = self._passes[unit.pass_index]
        views = 1 if a_pass.training else self._config.sampling.test_times
        for row in rows_of(self.read_unit(unit)):
            rgb, flow = (self._room(views, stream) for stream in ("rgb", "flow"))
            self._decode(a_pass, row, (rgb, flow))
            yield sample_block(row, rgb=rgb, flow=flow)

    def _rows(self, stop: threading.Event) -> Generator[dict[str, Any], None, None]:
        """Rows of all passes in order, read ahead by a thread so that no pass waits for the start of the next."""
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
            except BaseException as error:  # noqa: BLE001  whatever it is, the training thread must hear of it
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
        """Blocks of one execution; the first clips of all are read here, while Ray Data takes seconds to start."""
        if not self._through_ray:
            yield from (block for unit in units for block in self.blocks(unit))
            return
        here = 0
        clips = 0
        while first and here < len(units) and clips < _CLIPS_READ_HERE:
            clips += len(units[here].clips)
            here += 1
        if here == len(units):
            yield from (self.read_unit(unit) for unit in units)
            return
        through_ray = iter(_through_ray(self, units[here:], tasks=self._config.read_tasks))
        with ThreadPoolExecutor(1, thread_name_prefix="ray-data-start") as starting:
            begun = starting.submit(next, through_ray, None)
            yield from (self.read_unit(unit) for unit in units[:here])
            block = begun.result()
        while block is not None:
            yield block
            block = next(through_ray, None)

    def units(self) -> Iterator[Unit]:
        """What this worker reads in all its passes, in order."""
        return (unit for units in self._executions() for unit in units)

    def _executions(self) -> Iterator[list[Unit]]:
        """Units of whole passes, several small passes together: each execution of Ray Data costs seconds to start."""
        gathered: list[Unit] = []
        for index, a_pass in enumerate(self._passes):
            gathered += plan_units(
                self._shard_set, self._lanes(a_pass), pass_index=index, rank=self._rank, world_size=self._world_size
            )
            if len(gathered) >= _UNITS_PER_EXECUTION:
                yield gathered
                gathered = []
        if gathered:
            yield gathered


def _through_ray(loader: SnippetLoader, units: Sequence[Unit], *, tasks: int) -> Iterable[pa.Table]:
    import ray

    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    context.raise_original_map_exception = True  # its wrapper loses what it wraps on the way to this process
    context.execution_options.preserve_order = True
    # One object for all tasks: the index of a large set is megabytes.
    shared = ray.put(loader)

    def read(numbers: pa.Table) -> Iterator[pa.Table]:
        reader: SnippetLoader = ray.get(shared)
        for number in numbers["item"].to_pylist():
            yield from reader.blocks(units[number])

    # Train workers hold most of the CPUs.
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
