import os
import signal
import subprocess
import sys
from dataclasses import replace
from typing import Any

import numpy as np
import psutil
import pyarrow as pa
import pytest
from noise_shards import noise_shards

from twostream_ray.data.loading.decoder_child import COMMAND
from twostream_ray.data.loading.decoder_processes import DecoderPool
from twostream_ray.data.loading.lanes import Pass
from twostream_ray.data.loading.packed_clip import PackedClip
from twostream_ray.data.loading.pipeline import SnippetLoader
from twostream_ray.data.loading.rows import rows_of
from twostream_ray.data.loading.settings import DataConfig
from twostream_ray.data.sampling import SamplingConfig
from twostream_ray.data.shards.shards import ShardSet
from twostream_ray.data.snippets import Batch
from twostream_ray.data.transforms import TransformConfig
from twostream_ray.errors import DecodeError

PASSES = [
    Pass(split="train", epoch=0, training=True),
    Pass(split="train"),
    Pass(split="train", epoch=1, training=True),
]


@pytest.fixture(scope="module")
def shard_set(tmp_path_factory: pytest.TempPathFactory) -> ShardSet:
    return noise_shards(str(tmp_path_factory.mktemp("decoders")), rows=(5, 9), num_fields=12, video=True)


@pytest.fixture(autouse=True)
def processes_have_started_before_the_first_clip(monkeypatch: pytest.MonkeyPatch) -> None:
    """Or threads would decode the few clips there are."""

    class Ready(DecoderPool):
        def __init__(self, *arguments: Any, **options: Any) -> None:
            super().__init__(*arguments, **options)
            self.wait_until_ready()

    monkeypatch.setattr("twostream_ray.data.loading.pipeline.DecoderPool", Ready)


def config_of(shard_set: ShardSet, **options: object) -> DataConfig:
    return DataConfig(
        shards=shard_set.uri,
        lanes=4,
        sampling=SamplingConfig(num_snippets=2, flow_length=4, min_stride_frames=1, max_stride_frames=3, test_times=2),
        transforms=TransformConfig(crop_px=32),
        **options,
    )


def loader_of(shard_set: ShardSet, **options: object) -> SnippetLoader:
    return SnippetLoader(
        shard_set, config=config_of(shard_set, **options), passes=PASSES, global_batch=8, seed=3, through_ray=False
    )


def batches_of(loader: SnippetLoader) -> list[Batch]:
    return [batch for _, batches in loader for batch in batches]


def decoders() -> list[psutil.Process]:
    children = psutil.Process().children()
    return [one for one in children if one.status() != psutil.STATUS_ZOMBIE and COMMAND in one.cmdline()]


@pytest.fixture
def packed(shard_set: ShardSet) -> PackedClip:
    loader = loader_of(shard_set)
    row = next(rows_of(loader.reader.read_unit(next(loader.units()))))
    assert row.packed is not None
    return row.packed


@pytest.mark.slow
def test_processes_give_the_samples_that_threads_give(shard_set: ShardSet) -> None:
    ways = [batches_of(loader_of(shard_set, decode_processes=number)) for number in (0, 1, 2)]
    assert len(ways[0]) == 6
    for threads, *others in zip(*ways, strict=True):
        for other in others:
            for name in ("rgb", "flow", "labels", "weights", "clips"):
                np.testing.assert_array_equal(getattr(other, name), getattr(threads, name))
    assert decoders() == [], "none is left"


def test_a_pass_that_is_broken_off_leaves_no_process(shard_set: ShardSet) -> None:
    for _, batches in (passes := iter(loader_of(shard_set, decode_processes=2))):
        next(batches)
        break
    passes.close()
    assert decoders() == []


def test_few_samples_are_decoded_without_processes(shard_set: ShardSet) -> None:
    for _, batches in loader_of(shard_set):
        next(batches)
        assert decoders() == []


def pool_of(shard_set: ShardSet, number: int) -> DecoderPool:
    pool = DecoderPool(number, config=config_of(shard_set).sampling, contract=shard_set.contract)
    pool.wait_until_ready()
    return pool


def rgb_out(pool: DecoderPool) -> np.ndarray:
    assert pool.memory is not None
    return pool.memory.allocate(2 * 3 * 32 * 32).reshape(1, 2, 3, 32, 32)


def test_a_process_that_is_killed_is_started_again(shard_set: ShardSet, packed: PackedClip) -> None:
    pool = pool_of(shard_set, 1)
    out = rgb_out(pool)
    pool.decode(packed, rgb=out, flow=None)
    expected = out.copy()
    assert expected.any()
    (child,) = decoders()
    child.kill()
    out.fill(0)
    pool.decode(packed, rgb=out, flow=None)
    np.testing.assert_array_equal(out, expected)
    assert [one.pid for one in decoders()] != [child.pid]
    pool.close()
    assert decoders() == []


def test_a_clip_that_ends_every_process_is_an_error_in_one_line(
    shard_set: ShardSet, packed: PackedClip, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("twostream_ray.data.loading.decoder_processes.COMMAND", _ENDS_WITH_ITS_FIRST_JOB)
    pool = pool_of(shard_set, 1)
    with pytest.raises(DecodeError, match=r"a clip of \d+ frames crashed .* \(killed by SIGSEGV\)"):
        pool.decode(packed, rgb=rgb_out(pool), flow=None)
    pool.close()


_ENDS_WITH_ITS_FIRST_JOB = (
    "import os, signal, sys; from multiprocessing.connection import Connection; pipe = Connection(int(sys.argv[1])); "
    "pipe.recv_bytes(); pipe.send_bytes(b'.'); pipe.recv_bytes(); os.kill(os.getpid(), signal.SIGSEGV)"
)


def test_a_decoder_holds_no_credentials(shard_set: ShardSet, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "hidden")
    pool = pool_of(shard_set, 1)
    (child,) = decoders()
    assert "AWS_SECRET_ACCESS_KEY" not in child.environ()
    pool.close()


@pytest.mark.parametrize("options", [{"decode_processes": 0}, {"decode_processes": 1}, {"decode_at": "stream"}])
def test_damage_names_clip_row_and_shard(shard_set: ShardSet, options: dict[str, Any]) -> None:
    loader = loader_of(shard_set, **options)
    read = loader.reader.read_unit

    def damaged(unit: object) -> object:
        block = read(unit)
        video = block["video"].to_pylist()
        column = block.schema.get_field_index("video")
        damaged_videos = pa.array([video[0][:40], *video[1:]], pa.large_binary())
        return block.set_column(column, block.schema.field(column), pa.chunked_array([damaged_videos]))

    loader.reader.read_unit = damaged  # type: ignore[method-assign]
    with pytest.raises(DecodeError, match=r"clip \d+\.mp4, row \d+ of .*/shards/\S+: .*; ingest again"):
        batches_of(loader)


@pytest.mark.slow
def test_decoders_end_with_a_worker_that_is_killed(shard_set: ShardSet) -> None:
    script = (
        "import time; from twostream_ray.data.flow import FlowContract\n"
        "from twostream_ray.data.loading.decoder_processes import DecoderPool\n"
        "from twostream_ray.data.sampling import SamplingConfig\n"
        "pool = DecoderPool(2, config=SamplingConfig(), contract=FlowContract()); pool.wait_until_ready()\n"
        "print('ready', flush=True); time.sleep(600)"
    )
    worker = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE)
    assert worker.stdout is not None and worker.stdout.readline() == b"ready\n"
    children = psutil.Process(worker.pid).children()
    assert len(children) == 2
    os.kill(worker.pid, signal.SIGKILL)
    worker.communicate()
    _, left = psutil.wait_procs(children, timeout=10)
    assert left == []


@pytest.mark.slow
def test_memory_stays_flat_over_many_passes(shard_set: ShardSet) -> None:
    passes = [Pass(split="train", epoch=number, training=bool(number % 3)) for number in range(60)]
    config = replace(config_of(shard_set), decode_processes=2)
    loader = SnippetLoader(shard_set, config=config, passes=passes, global_batch=8, seed=3, through_ray=False)
    sizes, shared = [], []
    for _, batches in loader:
        for _ in batches:
            pass
        assert loader._decoders.memory is not None
        shared.append(os.fstat(loader._decoders.memory.fd).st_blocks * 512)
        sizes.append(sum(one.memory_info().rss for one in [psutil.Process(), *decoders()]))
    assert max(shared[20:]) <= max(shared[:20]), "a batch a pass that is not given back would be 14 MB"
    assert sizes[-1] - sizes[20] < 20e6, "bytes over 40 passes"
