import os
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from forked_processes import processes
from noise_shards import noise_shards
from numpy.typing import NDArray

from twostream_ray.data.loading.lanes import Pass
from twostream_ray.data.loading.pipeline import SnippetLoader
from twostream_ray.data.loading.sample_cache import SampleCache
from twostream_ray.data.loading.settings import DataConfig
from twostream_ray.data.sampling import SamplingConfig
from twostream_ray.data.shards.shards import ShardSet
from twostream_ray.data.transforms import TransformConfig
from twostream_ray.errors import ConfigError, StorageError
from twostream_ray.storage import cache_folder


@pytest.fixture(scope="module")
def shard_set(tmp_path_factory: pytest.TempPathFactory) -> ShardSet:
    return noise_shards(str(tmp_path_factory.mktemp("noise")), rows=(20, 12), num_fields=4)


def drawn(shard_set: ShardSet, *, seed: int = 0, world_size: int = 1, **data: Any) -> tuple[dict[Any, bytes], int]:
    """(pass, clip) -> its sample over 2 epochs, each followed by the test views; and how many clips were decoded."""
    config = DataConfig(
        shards=shard_set.uri,
        sampling=SamplingConfig(num_snippets=2, min_stride_frames=1, max_stride_frames=2, test_times=2, flow_length=2),
        transforms=TransformConfig(crop_px=16),
    )
    samples: dict[Any, bytes] = {}
    decoded = 0
    passes = [Pass(split="train", epoch=epoch, training=training) for epoch in range(2) for training in (True, False)]
    for rank in range(world_size):
        loader = SnippetLoader(
            shard_set,
            config=replace(config, **data),
            passes=passes,
            global_batch=8,
            seed=seed,
            rank=rank,
            world_size=world_size,
            want_rgb=False,
            through_ray=False,
        )
        for a_pass, batches in loader:
            for batch in batches:
                decoded += batch.decoded
                for row in np.flatnonzero(batch.weights):
                    key = (a_pass.epoch, a_pass.training, int(batch.clips[row]))
                    samples[key] = samples.get(key, b"") + batch.flow[row].tobytes()
    return samples, decoded


def test_runs_that_draw_the_same_samples_decode_each_once_and_test_views_once_for_all_epochs(
    shard_set: ShardSet, tmp_path: Path
) -> None:
    plain, decoded = drawn(shard_set)
    assert len(plain) == decoded == 4 * 32
    cache = {"sample_cache": str(tmp_path / "samples")}
    first, decoded = drawn(shard_set, **cache)
    assert first == plain and decoded == 3 * 32, "two epochs, and the test views of the first"
    for others in ({"world_size": 3}, {"decode_processes": 1, "lanes": 4}):
        again, decoded = drawn(shard_set, **cache, **others)
        assert again == plain and decoded == 0


@pytest.mark.slow
def test_samples_that_depend_on_other_settings_are_never_taken(shard_set: ShardSet, tmp_path: Path) -> None:
    cache = {"sample_cache": str(tmp_path)}
    drawn(shard_set, **cache)
    for change in (
        {"sampling": SamplingConfig(num_snippets=2, min_stride_frames=1, max_stride_frames=1, flow_length=2)},
        {"transforms": TransformConfig(crop_px=16, flip=False)},
    ):
        plain, _ = drawn(shard_set, **change)
        kept, decoded = drawn(shard_set, **cache, **change)
        assert kept == plain and decoded == 3 * 32
    plain, _ = drawn(shard_set, seed=1)
    kept, decoded = drawn(shard_set, seed=1, **cache)
    assert kept == plain and decoded == 2 * 32, "test views do not depend on the seed"
    other = noise_shards(str(tmp_path / "other"), rows=(32,), num_fields=5)
    assert drawn(other, **cache) == (drawn(other)[0], 3 * 32)


def test_beyond_the_limit_everything_is_decoded_and_the_directory_grows_no_more(
    shard_set: ShardSet, tmp_path: Path
) -> None:
    plain, _ = drawn(shard_set)
    sample = 2 * 4 * 16 * 16
    cache = {"sample_cache": str(tmp_path), "sample_cache_gb": 10.5 * sample / 1e9}
    assert drawn(shard_set, **cache) == (plain, 4 * 32)
    assert drawn(shard_set, **cache) == (plain, 4 * 32 - 10)
    kept = tmp_path.glob("*/seed-*/*")
    assert sum(path.stat().st_size - 4 for path in kept) == 10 * sample


def test_a_sample_cut_short_on_disk_is_decoded_again(shard_set: ShardSet, tmp_path: Path) -> None:
    plain, _ = drawn(shard_set, sample_cache=str(tmp_path))
    for path in tmp_path.glob("*/seed-0-epoch-1-flow/*"):
        path.write_bytes(path.read_bytes()[:100])
    assert drawn(shard_set, sample_cache=str(tmp_path)) == (plain, 32)
    assert drawn(shard_set, sample_cache=str(tmp_path)) == (plain, 0)


@pytest.mark.parametrize("damage", ["a flipped bit", "another clip's", "longer", "a link", "a fifo"])
def test_a_sample_that_is_not_the_one_that_was_kept_is_decoded_again(
    shard_set: ShardSet, tmp_path: Path, damage: str
) -> None:
    cache, outside = tmp_path / "cache", tmp_path / "outside"
    plain, _ = drawn(shard_set, sample_cache=str(cache))
    first, *rest = sorted(cache.glob("*/seed-0-epoch-1-flow/*"))
    content = first.read_bytes()
    outside.write_bytes(content)
    if damage == "a flipped bit":
        first.write_bytes(content[:100] + bytes([content[100] ^ 1]) + content[101:])
    elif damage == "another clip's":
        first.write_bytes(rest[0].read_bytes()[:-4] + content[-4:])
    elif damage == "longer":
        first.write_bytes(content + b"x")
    else:
        first.unlink()
        first.symlink_to(outside) if damage == "a link" else os.mkfifo(first)
    assert drawn(shard_set, sample_cache=str(cache)) == (plain, 1)
    assert drawn(shard_set, sample_cache=str(cache)) == (plain, 0)
    assert outside.read_bytes() == content


def test_no_lock_stays_behind_and_a_directory_of_others_is_refused(shard_set: ShardSet, tmp_path: Path) -> None:
    drawn(shard_set, sample_cache=str(tmp_path / "cache"))
    assert not list((tmp_path / "cache/locks").iterdir())
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/size").write_text("42 kg")
    with pytest.raises(
        StorageError, match=r"data.sample_cache needs a directory of its own, .* has other files, as size"
    ):
        drawn(shard_set, sample_cache=str(tmp_path / "mine"))
    assert (tmp_path / "mine/size").read_text() == "42 kg"


def slowly(out: NDArray[np.uint8], log: Path) -> None:
    time.sleep(0.05)
    out[...] = 7
    with log.open("a") as file:
        file.write("x")


def fill_all(directory: Path, log: Path) -> int:
    """Ask for 10 clips four times from each of 4 threads; gives how often something was decoded."""
    cache_folder.LEFT_FREE = 0.0  # in a process of its own
    cache = SampleCache(str(directory), limit_bytes=10**9, depends_on={})

    def fill(number: int) -> bool:
        rgb, flow = np.zeros(1000, np.uint8), np.zeros(3000, np.uint8)
        decode = partial(slowly, log=log)
        decoded = cache.fill("pass", str(number % 10), {"rgb": (rgb, decode), "flow": (flow, decode)})
        assert (rgb == 7).all() and (flow == 7).all()
        return decoded

    with ThreadPoolExecutor(4) as threads:
        return sum(threads.map(fill, range(40)))


@pytest.mark.slow
def test_threads_and_processes_that_want_a_clip_at_the_same_time_decode_it_once(tmp_path: Path) -> None:
    log = tmp_path / "log"
    with processes(3) as several:
        assert sum(several.map(fill_all, [tmp_path / "samples"] * 3, [log] * 3)) == 10
    assert log.read_text() == "x" * 2 * 10


def test_a_place_that_cannot_be_written_is_refused_by_its_setting(shard_set: ShardSet, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError, match=r"data\.sample_cache must be a writable directory"):
        drawn(shard_set, sample_cache=str(tmp_path / "file" / "samples"))
    with pytest.raises(ConfigError, match=r"data\.sample_cache needs data\.decode_at worker or auto, got stream"):
        drawn(shard_set, sample_cache=str(tmp_path), decode_at="stream")
    with pytest.raises(ConfigError, match=r"data\.sample_cache_gb must be more than 0"):
        drawn(shard_set, sample_cache_gb=0.0)


@pytest.mark.parametrize("fault", ["a limit", "a disk that is nearly full", "a disk that is full"])
def test_a_cache_that_takes_no_more_holds_nothing_up_and_says_so_once(
    shard_set: ShardSet,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    fault: str,
) -> None:
    def no_room(self: Any, file: Any) -> None:
        raise OSError(28, os.strerror(28))

    plain, _ = drawn(shard_set)
    limit = {}
    if fault == "a limit":
        limit, reason = {"sample_cache_gb": 1e-9}, "data.sample_cache_gb=1e-09 are full"
    elif fault == "a disk that is nearly full":
        monkeypatch.setattr(cache_folder, "LEFT_FREE", 1.0)
        reason = "GB free, and 100% of"
    else:
        monkeypatch.setattr(SampleCache, "_reserve", no_room)
        reason = "it cannot be written (No space left on device)"
    for _ in range(2):
        assert drawn(shard_set, sample_cache=str(tmp_path), **limit) == (plain, 4 * 32)
    (message,) = caplog.messages
    assert message.startswith(f"data.sample_cache {tmp_path} takes no more samples") and reason in message
