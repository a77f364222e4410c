"""Distinctive secrets in everything that may hold one, every verb well and badly: nobody writes them anywhere."""

import base64
import contextlib
import logging
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import quote

import pytest
from mlflow_server import USER, MlflowServer

from twostream_ray.cli import main
from twostream_ray.data.shards.shards import ShardSet
from twostream_ray.storage import object_store, uris
from twostream_ray.tracking import (
    TrackingConfig,
    delivery,
    finish_run,
    log_artifacts,
    log_metrics,
    start_run,
    tag_run,
)

MARK = "PLANTED-gqzjxw"
"""In every piece of every secret, so that any piece gives it away."""


def planted(name: str) -> str:
    """A secret with all characters that mean something in a URI, its mark between each two of them."""
    return MARK.join([name, "/", "@", ":", "%", "#", "?", "&", "=", "+", ""])


def forms() -> list[bytes]:
    """The mark as it is, in quotes of URIs, and in base64 at each of its three alignments."""
    found = {MARK, quote(MARK, safe="")}
    for shift in range(3):
        coded = base64.b64encode(b"x" * shift + MARK.encode())
        found.add(coded[2 + shift : -4].decode())
    return [form.encode() for form in found]


def holding_secrets(*folders: Path) -> list[Path]:
    """Files whose content or name gives a secret away."""
    found = []
    for folder in folders:
        for path in sorted(folder.rglob("*")):
            content = b""
            with contextlib.suppress(OSError):  # it is gone meanwhile
                content = path.read_bytes() if path.is_file() and not path.is_symlink() else b""
            if any(form in content or form in str(path).encode() for form in forms()):
                found.append(path)
    return found


ENVIRONMENT = {
    "MLFLOW_TRACKING_PASSWORD": planted("password"),
    "MLFLOW_TRACKING_TOKEN": planted("token"),
    "AWS_ACCESS_KEY_ID": "AKIAIOSFODNN7EXAMPLE",
    "AWS_SECRET_ACCESS_KEY": planted("secret"),
    "AWS_SESSION_TOKEN": planted("session"),
    "AWS_EC2_METADATA_DISABLED": "true",
    "AWS_REGION": "us-east-1",
}


@pytest.fixture
def everywhere(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    for name, value in ENVIRONMENT.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://ann:{planted('endpoint')}@127.0.0.1:9")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://ann:{planted('tracking')}@127.0.0.1:9")
    monkeypatch.setenv("HTTPS_PROXY", f"http://ann:{planted('proxy')}@127.0.0.1:9")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    monkeypatch.setattr(uris, "_PATIENCE_S", 0.1)
    object_store.reader.cache_clear()
    yield
    object_store.reader.cache_clear()
    delivery._outages.clear()


@pytest.mark.usefixtures("everywhere")
def test_no_verb_that_fails_shows_a_secret_and_neither_does_what_it_leaves_behind(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.chdir(tmp_path)
    caplog.set_level(logging.INFO)
    own = planted("argument")  # of no variable: known by its position alone
    bucket, server = f"s3://key:{own}@bucket/x", f"http://ann:{own}@127.0.0.1:9"
    train = ["train", "--name", "x"]
    verbs = [
        ["pull", "out"],
        ["pull", "out", "--tracking.uri", server],
        ["pull", "out", "--tracking.uri", f"ftp://ann:{own}@127.0.0.1"],
        ["pull", "out", "--tracking.uri", f"http://ann:{own}@127.0.0.1:port"],
        ["pull", "out", "--model", f"models:/{server}"],
        ["rollback"],
        ["predict", "v.mp4", "--model", "models:/m@champion"],
        ["predict", "v.mp4", "--model", bucket],
        ["evaluate", "--model", bucket, "--shards", bucket],
        ["inspect", bucket],
        ["inspect", "s3://archive/shards"],
        ["ingest", "--catalog.root", bucket, "--out", "out"],
        [*train, "--data.shards", bucket],
        [*train, "--data.shards", "nowhere", "--tracking.url", server],
        [*train, "--data.shards", "nowhere", "--tracking.uri", f"postgresql+nonsense://ann:{own}@127.0.0.1:9/db"],
        [*train, "--data.shards", "nowhere", "--tracking.uri", f"sqlite://ann:{own}@/mlflow.db"],
        [*train, "--data.shards", "nowhere", "--storage", bucket],
        [*train, "--data.shards", "nowhere", "--seed", server],
        ["tune-scores", "--choose.both", bucket],
        ["track", "replay", "run"],
        ["track", "replay", "--storage", bucket],
    ]
    handle = start_run(
        TrackingConfig(uri=server),
        run_name="run",
        run_uri=str(tmp_path / "run"),
        parameters={
            "tracking": {"uri": server},
            "data": {"shards": bucket, "more": [server, {"api_key": own}]},
            "signed": f"https://b.example.org/x?X-Amz-Signature={quote(own, safe='')}",
            "password": own,
        },
        tags={"from": server, "token": own},
    )
    log_metrics(handle, {"loss": 1.0}, step=0)
    tag_run(handle, {"seen": f"it came from {bucket}"})
    (tmp_path / "note.txt").write_text("kept")
    log_artifacts(handle, [tmp_path / "note.txt"])
    finish_run(handle)
    for verb in verbs:
        assert main(verb) == 2, verb
        shown = capfd.readouterr()
        assert len(shown.err.strip().splitlines()) >= 1
        assert not any(form.decode() in shown.out + shown.err for form in forms()), (verb, shown)
        assert "Traceback" not in shown.err, (verb, shown)
    assert not any(form.decode() in caplog.text for form in forms())
    assert holding_secrets(tmp_path) == []
    stored = (tmp_path / "run" / "tracking-journal" / "run.json").read_text()
    assert "(hidden)@127.0.0.1:9" in stored, "the address of a server is no secret"


def test_a_password_of_any_characters_in_the_uri_opens_the_door_it_is_for(tmp_path: Path) -> None:
    """Without a server: what requests would send for it."""
    from requests import Request

    password = planted("door")
    config = TrackingConfig(uri=f"http://ann:{password}@127.0.0.1:9/prefix")
    prepared = Request("GET", f"{config.resolved_uri()}/api").prepare()
    sent = base64.b64decode(prepared.headers["Authorization"].removeprefix("Basic ")).decode()
    assert sent == f"ann:{password}"
    assert prepared.url is not None and prepared.url.partition("#")[0].endswith("127.0.0.1:9/prefix/api")


@pytest.mark.soak
@pytest.mark.own_cluster
@pytest.mark.timeout(1500)
def test_no_verb_writes_a_secret_anywhere_well_or_badly(shard_set: ShardSet, videos: Path, tmp_path: Path) -> None:
    """Ray's session logs, journals, checkpoints, MLflow's database and log, temporary folders and all output."""
    password = planted("server")
    (tmp_path / "server").mkdir()
    server = MlflowServer(tmp_path / "server", auth=True, password=password)
    server.start()
    scratch = Path(tempfile.mkdtemp(prefix="s"))  # short, for Ray's sockets
    uri = f"http://{USER}:{password}@127.0.0.1:{server.port}"
    environment = os.environ | ENVIRONMENT | {"TMPDIR": str(scratch), "RAY_TMPDIR": str(scratch)}
    environment |= {"AWS_ENDPOINT_URL": f"http://ann:{planted('endpoint')}@127.0.0.1:9"}
    environment |= {"HTTPS_PROXY": f"http://ann:{planted('proxy')}@127.0.0.1:9", "MLFLOW_TRACKING_URI": uri}
    environment = {name: value for name, value in environment.items() if name != "MLFLOW_TRACKING_TOKEN"}
    environment = {name: value for name, value in environment.items() if name != "MLFLOW_TRACKING_PASSWORD"}
    network = ["--model.spatial.backbone", "vgg_small", "--model.temporal.backbone", "vgg_small"]
    network += ["--model.spatial.width", "4", "--model.temporal.width", "4", "--model.fusion.layers", "[relu3]"]
    network += ["--model.fusion.temporal", "pool2d", "--model.fusion.method", "conv"]
    data = ["--data.shards", shard_set.uri, "--data.validation_split", "val", "--data.transforms.crop_px", "48"]
    data += ["--data.sampling.num_snippets", "1", "--data.sampling.flow_length", "4"]
    data += ["--data.sampling.min_stride_frames", "1", "--data.sampling.max_stride_frames", "1"]
    short = ["--training.epochs", "1", "--training.global_batch", "16", "--storage", "runs"]
    space = "{training.learning_rate: [0.01, 0.02]}"
    video = next(iter(sorted(videos.rglob("*.avi"))))
    champion = "models:/two-stream@champion"
    verbs = [
        (0, ["train", "--name", "well", *data, *network, *short]),
        (0, ["train", "--name", "well", *data, *network, *short]),
        (0, ["train", "--name", "given", *data, *network, *short, "--tracking.uri", uri]),
        (0, ["tune", "--name", "search", *data, *network, *short, "--search.trials", "2", "--search.space", space]),
        (0, ["evaluate", "--model", champion, "--shards", shard_set.uri]),
        (0, ["predict", str(video), "--model", champion]),
        (0, ["pull", "pulled"]),
        (0, ["rollback", "--to", "1", "--because", f"of {uri}"]),
        (0, ["track", "replay", "--storage", "runs"]),
        (0, ["ingest", "--catalog.root", str(videos), "--out", "shards", "--flow.short_side_px", "48"]),
        (0, ["inspect", "shards"]),
        (2, ["train", "--name", "bad", *data, *network, *short, "--data.transforms.crop_px", "4000"]),
        (2, ["evaluate", "--model", "models:/nobody@champion", "--shards", shard_set.uri]),
        (2, ["inspect", f"s3://key:{password}@bucket/x"]),
    ]
    looked_at = False
    try:
        for number, (code, verb) in enumerate(verbs):
            with (tmp_path / f"output-{number}").open("wb") as output:
                running = subprocess.Popen(
                    [str(Path(sys.executable).with_name("twostream")), *verb],
                    cwd=tmp_path,
                    env=environment,
                    stdout=output,
                    stderr=subprocess.STDOUT,
                )
                while running.poll() is None:  # the folder of a private cluster goes with it
                    time.sleep(1)
                    assert holding_secrets(scratch) == []
                    looked_at |= any("session_" in path.name for path in scratch.rglob("session_*"))
            assert running.returncode == code, (verb[0], (tmp_path / f"output-{number}").read_bytes()[-2000:])
        assert looked_at, "Ray's own logs too"
        assert holding_secrets(tmp_path, scratch) == []
    finally:
        server.kill()
        shutil.rmtree(scratch, ignore_errors=True)
