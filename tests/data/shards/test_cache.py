import hashlib
import json
import os
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from forked_processes import processes
from noise_shards import noise_shards
from s3 import FaultyProxy, reached_at

from twostream_ray import storage
from twostream_ray.data.loading.lanes import Pass
from twostream_ray.data.loading.pipeline import SnippetLoader
from twostream_ray.data.loading.settings import DataConfig
from twostream_ray.data.sampling import SamplingConfig
from twostream_ray.data.shards.cache import ShardCache
from twostream_ray.data.shards.shards import ShardSet, open_shards
from twostream_ray.data.transforms import TransformConfig
from twostream_ray.errors import ConfigError, ShardError, StorageError
from twostream_ray.storage import cache_folder
from twostream_ray.storage.cache_folder import TAG
from twostream_ray.storage.locks import locked


@pytest.fixture
def proxy(object_store: int) -> Iterator[FaultyProxy]:
    proxy = FaultyProxy(object_store)
    with reached_at(proxy.endpoint):
        yield proxy
    proxy.go_away()


@pytest.fixture
def remote(proxy: FaultyProxy) -> ShardSet:
    """Three shards of 32 clips of 4 fields of 16 px, flow alone, in the object store."""
    shard_set = noise_shards("s3://archive/cached", rows=(32, 32, 32), num_fields=4)
    proxy.bodies.clear()
    return shard_set


def samples(shard_set: ShardSet, *, passes: int, **cache: object) -> dict[tuple[int, int], bytes]:
    config = DataConfig(
        shards=shard_set.uri,
        sampling=SamplingConfig(num_snippets=1, flow_length=2, min_stride_frames=1, max_stride_frames=1),
        transforms=TransformConfig(crop_px=16),
        **cache,
    )
    loader = SnippetLoader(
        shard_set,
        config=config,
        passes=[Pass(split="train", epoch=epoch, training=True) for epoch in range(passes)],
        global_batch=16,
        want_rgb=False,
        through_ray=False,
    )
    return {
        (a_pass.epoch, int(clip)): flow.tobytes()
        for a_pass, batches in loader
        for batch in batches
        for clip, weight, flow in zip(batch.clips, batch.weights, batch.flow, strict=True)
        if weight
    }


def shard_requests(proxy: FaultyProxy) -> list[str]:
    return [path for path in proxy.bodies if ".parquet" in path and "index" not in path]


def test_each_shard_is_fetched_once_for_all_passes_and_runs_and_gives_the_same_samples(
    remote: ShardSet, proxy: FaultyProxy, tmp_path: Path
) -> None:
    plain = samples(remote, passes=3)
    assert len(plain) == 3 * 96
    without = len(shard_requests(proxy))
    proxy.bodies.clear()
    cache = {"cache": str(tmp_path / "cache"), "cache_gb": 1.0}
    assert samples(remote, passes=3, **cache) == plain
    requests = shard_requests(proxy)
    assert len(requests) == len(set(requests)) == 3 < without
    assert samples(remote, passes=3, **cache) == plain
    assert len(shard_requests(proxy)) == 3, "another run asks for nothing"


def fetch(directory: str, uri: str, sha256: str, size: int) -> bytes:
    cache_folder.LEFT_FREE = 0.0  # in a process of its own
    entry = ShardCache(directory, limit_bytes=10**9).fetch(uri, sha256=sha256, size=size)
    assert entry is not None
    return entry.read_bytes()


def test_processes_that_want_a_shard_at_the_same_time_fetch_it_once(proxy: FaultyProxy, tmp_path: Path) -> None:
    content = os.urandom(3_000_000)
    storage.write_bytes("s3://archive/shard", content)
    proxy.bodies.clear()
    wanted = (str(tmp_path), "s3://archive/shard", hashlib.sha256(content).hexdigest(), len(content))
    with processes(3) as several:
        futures = [several.submit(fetch, *wanted) for _ in range(6)]
        assert all(future.result() == content for future in futures)
    assert len(proxy.bodies) == 1


def put(name: str, size: int) -> tuple[str, str]:
    content = os.urandom(size)
    storage.write_bytes(f"s3://archive/{name}", content)
    return f"s3://archive/{name}", hashlib.sha256(content).hexdigest()


def test_the_limit_holds_and_what_nobody_has_read_for_long_makes_room(proxy: FaultyProxy, tmp_path: Path) -> None:
    cache = ShardCache(str(tmp_path), limit_bytes=2500)
    (a, sha_a), (b, sha_b), (c, sha_c) = (put(name, 1000) for name in "abc")
    first = cache.fetch(a, sha256=sha_a, size=1000)
    second = cache.fetch(b, sha256=sha_b, size=1000)
    assert first is not None and second is not None
    assert cache.fetch(c, sha256=sha_c, size=1000) is None, "both were read within the hour"
    two_hours_ago = time.time() - 7200
    os.utime(first, (two_hours_ago, two_hours_ago))
    with first.open("rb") as reading:
        third = cache.fetch(c, sha256=sha_c, size=1000)
        assert third is not None and not first.exists() and second.exists()
        assert hashlib.sha256(reading.read()).hexdigest() == sha_a, "who reads it reads on"
    assert cache.fetch("s3://archive/large", sha256="0" * 64, size=3000) is None
    sizes = sum(path.stat().st_size for path in tmp_path.iterdir() if path.name != TAG)
    assert sizes == 2000 and not [path for path in tmp_path.iterdir() if path.suffix in (".partial", ".lock")]


@pytest.mark.parametrize("met", ["beforehand", "while it is copied"])
def test_a_disk_without_room_costs_time_alone_and_is_said_once(
    proxy: FaultyProxy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, met: str
) -> None:
    copy_to_disk = storage.copy_to_disk

    def full(uri: str, path: Path) -> None:
        copy_to_disk(uri, Path("/dev/full"))

    uri, sha256 = put("full", 1000)
    cache = ShardCache(str(tmp_path / "cache"), limit_bytes=10**9)
    if met == "beforehand":
        monkeypatch.setattr(cache_folder, "LEFT_FREE", 1.0)
    else:
        monkeypatch.setattr(storage, "copy_to_disk", full)
    for _ in range(2):
        assert cache.fetch(uri, sha256=sha256, size=1000) is None
    reason = {"beforehand": "GB free, and 100% of", "while it is copied": "its disk is full"}[met]
    (message,) = caplog.messages
    assert (
        message.startswith(f"data.cache {tmp_path}/cache takes no more shards, others are read") and reason in message
    )
    assert [path.name for path in (tmp_path / "cache").iterdir()] == [TAG]
    monkeypatch.undo()
    monkeypatch.setattr(cache_folder, "LEFT_FREE", 0.0)
    assert cache.fetch(uri, sha256=sha256, size=1000) is not None


def test_a_disk_that_is_too_full_has_entries_that_nobody_read_make_room(
    proxy: FaultyProxy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache = ShardCache(str(tmp_path), limit_bytes=10**9)
    (a, sha_a), (b, sha_b) = (put(name, 1000) for name in "ab")
    first = cache.fetch(a, sha256=sha_a, size=1000)
    assert first is not None
    os.utime(first, (0, 0))
    monkeypatch.setattr(cache_folder, "LEFT_FREE", 1.0)
    assert cache.fetch(b, sha256=sha_b, size=1000) is None and not first.exists()


def test_what_a_process_that_died_had_reserved_is_given_free(proxy: FaultyProxy, tmp_path: Path) -> None:
    cache = ShardCache(str(tmp_path), limit_bytes=2500)
    (tmp_path / f"{'1' * 64}.partial").write_bytes(bytes(2000))
    uri, sha256 = put("d", 1000)
    assert cache.fetch(uri, sha256=sha256, size=1000) is not None
    with locked(tmp_path / f"{'2' * 64}.lock"):  # one that is at work
        (tmp_path / f"{'2' * 64}.partial").write_bytes(bytes(1000))
        uri, sha256 = put("e", 1000)
        assert cache.fetch(uri, sha256=sha256, size=1000) is None


def test_a_shard_that_is_not_the_manifests_is_never_kept(remote: ShardSet, proxy: FaultyProxy, tmp_path: Path) -> None:
    wrong = replace(remote, shard_sha256=("0" * 64, *remote.shard_sha256[1:]))
    with pytest.raises(ShardError, match=r"\.parquet should have sha256 0{12} by its manifest, got"):
        samples(wrong, passes=1, cache=str(tmp_path), cache_gb=1.0)
    assert not (tmp_path / ("0" * 64)).exists() and not list(tmp_path.glob("*.partial"))


@pytest.mark.parametrize(
    "named", ["/home/me/precious.txt", "../precious", "precious", "A" * 64, "0" * 63, "0" * 65, ""]
)
def test_what_is_no_sha256_never_becomes_a_path(tmp_path: Path, named: str) -> None:
    precious = tmp_path / "precious"
    precious.write_text("precious")
    cache = ShardCache(str(tmp_path / "cache"), limit_bytes=10**9)
    for wanted in (named, str(precious)):
        with pytest.raises(ShardError, match=r"the sha256 of s3://archive/x as 64 hexadecimal digits, got"):
            cache.fetch("s3://archive/x", sha256=wanted, size=8)
    assert precious.read_text() == "precious" and not (tmp_path / "cache").exists()


def test_what_a_manifest_names_by_a_path_is_neither_read_nor_deleted(remote: ShardSet, tmp_path: Path) -> None:
    precious = tmp_path / "precious.txt"
    precious.write_text("precious")
    manifest = json.loads(storage.read_bytes(f"{remote.uri}/manifest.json"))
    for shard in manifest["shards"]:
        shard["sha256"] = str(precious)
    storage.write_json(f"{remote.uri}/manifest.json", manifest)
    with pytest.raises(ShardError, match=r"manifest.json, its shards.0.sha256 wants a text like"):
        open_shards(remote.uri)
    wrong = replace(remote, shard_sha256=(str(precious),) * 3)
    with pytest.raises(ShardError, match=r"as 64 hexadecimal digits"):
        samples(wrong, passes=1, cache=str(tmp_path / "cache"), cache_gb=1.0)
    assert precious.read_text() == "precious"


def test_nothing_but_entries_makes_room_and_no_link_is_followed(proxy: FaultyProxy, tmp_path: Path) -> None:
    cache = ShardCache(str(tmp_path / "cache"), limit_bytes=1500)
    uri, sha256 = put("f", 1000)
    assert cache.fetch(uri, sha256=sha256, size=1000) is not None
    outside = tmp_path / "outside"
    outside.write_bytes(bytes(1000))
    mine = {name: tmp_path / "cache" / name for name in ("notes", "0" * 40, f"{'a' * 64}.txt")}
    for path in mine.values():
        path.write_bytes(bytes(500))
        os.utime(path, (0, 0))
    link, partial = tmp_path / "cache" / ("b" * 64), tmp_path / "cache" / f"{'c' * 64}.partial"
    other, sha = put("g", 1000)
    for path in (link, partial, tmp_path / "cache" / sha, tmp_path / "cache" / f"{sha}.partial"):
        path.symlink_to(outside)
    os.utime(tmp_path / "cache" / sha256, (0, 0))
    entry = cache.fetch(other, sha256=sha, size=1000)
    assert entry is not None and not entry.is_symlink() and hashlib.sha256(entry.read_bytes()).hexdigest() == sha
    assert not (tmp_path / "cache" / sha256).exists(), "the oldest entry made room"
    assert all(path.exists() for path in mine.values()) and link.is_symlink()
    assert outside.read_bytes() == bytes(1000)


def test_a_directory_that_holds_other_files_is_no_cache(proxy: FaultyProxy, tmp_path: Path) -> None:
    (tmp_path / "0123").write_text("precious")
    uri, sha256 = put("h", 100)
    with pytest.raises(StorageError, match=r"data.cache needs a directory of its own, .* has other files, as 0123"):
        ShardCache(str(tmp_path), limit_bytes=200).fetch(uri, sha256=sha256, size=100)


def test_locks_of_those_who_died_are_cleaned_and_those_that_are_held_are_not(
    proxy: FaultyProxy, tmp_path: Path
) -> None:
    dead, held = (tmp_path / f"{digit * 64}.lock" for digit in "12")
    dead.touch()
    uri, sha256 = put("i", 100)
    with locked(held):
        assert ShardCache(str(tmp_path), limit_bytes=200).fetch(uri, sha256=sha256, size=100) is not None
        assert {path.name for path in tmp_path.iterdir()} == {TAG, sha256, held.name}


def test_an_entry_that_the_disk_has_damaged_is_read_from_the_store_again(
    remote: ShardSet, proxy: FaultyProxy, tmp_path: Path
) -> None:
    cache = {"cache": str(tmp_path), "cache_gb": 1.0}
    whole = samples(remote, passes=1, **cache)
    entry = tmp_path / remote.shard_sha256[0]
    content = entry.read_bytes()
    entry.write_bytes(content[:2000] + bytes(len(content) - 4000) + content[-2000:])
    assert samples(remote, passes=1, **cache) == whole


def test_a_limit_of_nothing_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"data.cache_gb must be more than 0, got 0"):
        DataConfig(shards="x", cache_gb=0)
