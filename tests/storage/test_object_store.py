import json
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import psutil
import pytest
from s3 import ENVIRONMENT, FaultyProxy, reached_at

from twostream_ray import storage
from twostream_ray.cli import main
from twostream_ray.data.flow import FlowContract
from twostream_ray.data.loading.lanes import Pass
from twostream_ray.data.loading.pipeline import SnippetLoader
from twostream_ray.data.loading.settings import DataConfig
from twostream_ray.data.sampling import SamplingConfig
from twostream_ray.data.shards.records import survey
from twostream_ray.data.shards.shards import ShardSet, open_shards
from twostream_ray.data.snippets import Batch
from twostream_ray.data.transforms import TransformConfig
from twostream_ray.errors import AccessError, LeaseError, StorageError
from twostream_ray.storage import lease, object_store, uris

OUTAGE_S = 20


@pytest.fixture
def proxy(object_store: int) -> Iterator[FaultyProxy]:
    """The store behind a network in which 5 % of the requests fail or are cut, for this process and its children."""
    proxy = FaultyProxy(object_store, fail_fraction=0.05, seed=1)
    with reached_at(proxy.endpoint):
        yield proxy
    proxy.go_away()


def twostream(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [str(Path(sys.executable).with_name("twostream")), *arguments],
        capture_output=True,
        text=True,
        env=os.environ | environment,
        check=False,
    )


def test_of_many_that_want_a_place_in_the_store_one_gets_it_and_a_stale_lease_is_taken_over(
    object_store: int, caplog: pytest.LogCaptureFixture
) -> None:
    uri = "s3://archive/leased"

    def work(number: int) -> bool:
        try:
            with lease.held(uri, work=f"run {number}", way_out="wait"):
                found = json.loads(storage.read_text(f"{uri}/{lease.FILE}"))
                assert found["work"] == f"run {number}"
                time.sleep(1)
                assert json.loads(storage.read_text(f"{uri}/{lease.FILE}")) == found
                left.append(found)
                return True
        except LeaseError:
            return False

    left: list[dict[str, object]] = []
    with reached_at(f"http://127.0.0.1:{object_store}"), ThreadPoolExecutor(4) as threads:
        assert list(threads.map(work, range(4))).count(True) == 1
        assert not storage.exists(f"{uri}/{lease.FILE}")
        storage.write_json(f"{uri}/{lease.FILE}", left[0] | {"process_start": 1})
        assert work(4)
    assert "run 4 takes over s3://archive/leased" in caplog.text


def test_places_in_the_store_behave_as_places_on_disk_though_requests_fail(proxy: FaultyProxy) -> None:
    base = "s3://archive/several"
    names = [f"a b/%20 & #{number};+[x]!'.bin" for number in range(10)] + ["q?x=403#1%.bin", "[q]*?"]
    contents = [os.urandom(1000 + number) for number in range(12)]
    for name, content in zip(names, contents, strict=True):
        storage.write_bytes(storage.join(base, name), b"old")
        storage.write_bytes(storage.join(base, name), content)
    assert list(storage.list_files(base)) == sorted(
        (name, len(content)) for name, content in zip(names, contents, strict=True)
    )
    assert [storage.read_bytes(storage.join(base, name)) for name in names] == contents
    storage.delete(storage.join(base, names[0]))
    storage.delete(storage.join(base, names[0]))
    assert not storage.exists(storage.join(base, names[0])) and storage.exists(storage.join(base, names[1]))
    large = os.urandom(60_000_000)  # in parts
    storage.write_bytes(storage.join(base, "large"), large)
    assert storage.read_bytes(storage.join(base, "large")) == large
    with storage.on_disk(f"{base}/large") as copy:
        assert copy.read_bytes() == large
        storage.write_file(f"{base}/again", copy)
    assert not copy.exists() and storage.read_bytes(f"{base}/again") == large
    with pytest.raises(AccessError, match=r"cannot read s3://archive/several/none: it does not exist; check the path"):
        storage.read_bytes(f"{base}/none")
    with pytest.raises(AccessError, match="expected a prefix, found an object"):
        list(storage.list_files(f"{base}/large"))
    with (
        pytest.raises(AccessError, match="at most 1000 bytes"),
        storage.on_disk(f"{base}/large", limit_bytes=1000),
    ):
        pass
    assert min(proxy.requests[fault] for fault in ("busy", "cut", "lost")) >= 1


def test_a_wrong_secret_a_missing_bucket_and_no_answer_each_end_in_one_line(
    proxy: FaultyProxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    proxy.fail_fraction = 0.0
    secret = "not-the-secret"
    denied = twostream("inspect", "s3://archive/shards", AWS_SECRET_ACCESS_KEY=secret)
    assert (denied.returncode, denied.stdout) == (2, "")
    assert denied.stderr.count("\n") == 1 and "access denied; check the permissions" in denied.stderr
    assert secret not in denied.stderr
    absent = twostream("ingest", "--catalog.root", "s3://no-such-bucket/videos", "--out", "s3://archive/none")
    assert absent.returncode == 2
    assert absent.stderr.splitlines()[-1].endswith("s3://no-such-bucket/videos: it does not exist; check the path")
    monkeypatch.setattr(uris, "_PATIENCE_S", 1.0)
    proxy.go_away()
    with pytest.raises(StorageError, match=r"cannot read s3://archive/x: .* check AWS_ENDPOINT_URL and the network"):
        storage.read_bytes("s3://archive/x")
    with pytest.raises(StorageError, match="cannot look up s3://archive/x: "):
        storage.exists("s3://archive/x")
    with pytest.raises(StorageError, match="cannot list"):
        storage.list_files("s3://archive/shards").__next__()
    with pytest.raises(StorageError, match="cannot look up"):
        survey("s3://archive/shards", clips=[], contract=FlowContract())
    proxy.start()


def test_a_training_whose_checkpoints_cannot_be_written_ends_in_one_line_before_it_starts(
    proxy: FaultyProxy,
    shard_set: ShardSet,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    proxy.fail_fraction = 0.0
    common = ["train", "--config", "demo", "--name", "x", "--data.shards", shard_set.uri]
    common += ["--data.transforms.crop_px", "48", "--tracking.uri", f"sqlite:///{tmp_path}/mlflow.db", "--storage"]
    assert main([*common, "s3://no-such-bucket/runs"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.endswith("s3://no-such-bucket/runs/x/lease.json: it does not exist; check the path")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "not-the-secret")
    object_store.reader.cache_clear()
    assert main([*common, "s3://archive/runs"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "access denied; check the permissions" in line and "not-the-secret" not in line
    assert not (tmp_path / "mlflow.db").exists()


@pytest.mark.slow
def test_a_server_that_accepts_and_says_nothing_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        for name, value in (ENVIRONMENT | {"AWS_ENDPOINT_URL": f"http://127.0.0.1:{silent.getsockname()[1]}"}).items():
            monkeypatch.setenv(name, value)
        monkeypatch.setattr(uris, "_PATIENCE_S", 1.0)
        monkeypatch.setattr(object_store, "REQUEST_TIMEOUT_S", 2)
        with pytest.raises(StorageError, match=r"cannot write s3://archive/x: .*check AWS_ENDPOINT_URL"):
            storage.write_bytes("s3://archive/x", b"content")


def batches_of(shard_set: ShardSet) -> list[Batch]:
    loader = SnippetLoader(
        shard_set,
        config=DataConfig(
            shards=shard_set.uri,
            sampling=SamplingConfig(num_snippets=2, min_stride_frames=1, max_stride_frames=3),
            transforms=TransformConfig(crop_px=32),
        ),
        passes=[Pass(split="train", epoch=epoch, training=True) for epoch in range(2)],
        global_batch=16,
        through_ray=False,
    )
    return [batch for _, batches in loader for batch in batches]


@pytest.mark.soak
@pytest.mark.timeout(400)
def test_an_ingest_killed_and_redone_and_a_loader_survive_an_outage_and_lose_and_double_nothing(
    proxy: FaultyProxy, videos: Path, shard_set: ShardSet
) -> None:
    for path in sorted(videos.rglob("*")):
        if path.is_file():
            storage.write_bytes(f"s3://archive/videos/{path.relative_to(videos).as_posix()}", path.read_bytes())
    local = Path(shard_set.uri)
    for path in sorted(local.rglob("*")):
        if path.is_file():
            storage.write_bytes(f"s3://archive/copy/{path.relative_to(local).as_posix()}", path.read_bytes())
    out = "s3://archive/shards"
    command = [str(Path(sys.executable).with_name("twostream")), "ingest", "--catalog.root", "s3://archive/videos"]
    command += ["--out", out, "--flow.short_side_px", "48", "--rows_per_shard", "32"]
    process = subprocess.Popen(
        command, start_new_session=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=dict(os.environ)
    )
    while not storage.exists(f"{out}/parts"):
        assert process.poll() is None
        time.sleep(0.05)
    for one in [*psutil.Process(process.pid).children(recursive=True), psutil.Process(process.pid)]:
        one.kill()
    process.wait()
    finished = {name for name, _ in storage.list_files(out) if name.startswith("parts/")}
    assert finished and not storage.exists(f"{out}/manifest.json"), "killed on the way"

    again = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=dict(os.environ))
    with ThreadPoolExecutor(1) as threads:
        proxy.go_away()
        threading.Timer(OUTAGE_S, proxy.start).start()
        loading = threads.submit(lambda: batches_of(open_shards("s3://archive/copy")))
        printed, errors = again.communicate(timeout=200)
        remote = loading.result()
    assert again.returncode == 0, errors
    assert "Traceback" not in errors
    assert int(printed.rsplit(", ", 1)[-1].split()[0]) > 0, "what was finished before is not done again"
    manifest = storage.read_bytes(f"{out}/manifest.json")
    assert manifest == (local / "manifest.json").read_bytes()
    names = {name for name, _ in storage.list_files(out)}
    shards = {f"shards/{shard['name']}" for shard in json.loads(manifest)["shards"]}
    parts = {f"parts/{name.removeprefix('shards/').partition('-')[0]}.json" for name in shards}
    assert names == shards | parts | {"index.parquet", "quarantine.csv", "manifest.json"}, "no orphan"
    expected = batches_of(shard_set)
    assert len(remote) == len(expected)
    for one, other in zip(expected, remote, strict=True):
        np.testing.assert_array_equal(one.clips, other.clips)
        np.testing.assert_array_equal(one.rgb, other.rgb)
        np.testing.assert_array_equal(one.flow, other.flow)
