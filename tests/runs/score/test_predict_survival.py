"""Batch prediction through an object store that loses one request in twenty, killed on the way."""

import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pandas as pd
import psutil
import pytest
from s3 import FaultyProxy, reached_at
from test_inference import stored_model

from twostream_ray import storage
from twostream_ray.errors import StorageError
from twostream_ray.inference import Classifier
from twostream_ray.redaction import redact

pytestmark = [pytest.mark.own_cluster, pytest.mark.soak, pytest.mark.timeout(400)]


@pytest.fixture
def proxy(object_store: int) -> Iterator[FaultyProxy]:
    proxy = FaultyProxy(object_store, fail_fraction=0.05, seed=1)
    with reached_at(proxy.endpoint):
        yield proxy


def upload(videos: Path, to: str) -> int:
    """Gives the number of videos."""
    paths = [path for path in sorted(videos.rglob("*")) if path.suffix in (".mp4", ".avi")][-32:]
    for path in paths:
        storage.write_bytes(f"{to}/{path.relative_to(videos).as_posix()}", path.read_bytes())
    storage.write_bytes(f"{to}/test/damaged.mp4", b"no video")
    return len(paths) + 1


def rows_of(out: str, folder: Path) -> pd.DataFrame:
    """What readers of Parquet files see; parts are copied, for pandas knows nothing of the store."""
    folder.mkdir()
    for name, _ in storage.list_files(out):
        if not name.startswith("_"):
            (folder / name).write_bytes(storage.read_bytes(f"{out}/{name}"))
    return pd.read_parquet(folder)


def finished(out: str) -> int:
    try:
        return sum(name.startswith("part-") for name, _ in storage.list_files(out))
    except StorageError:  # nothing is there yet
        return 0


def kill(process: subprocess.Popen[bytes], *, what: str, rng: random.Random) -> None:
    """kill -9: the driver and all that it has started; it alone, while its actors write on; or one of these."""
    below = psutil.Process(process.pid).children(recursive=True)
    if what == "an actor":
        rng.choice([one for one in below if "PartScorer" in " ".join(one.cmdline())]).kill()
        return
    process.send_signal(signal.SIGKILL)
    process.wait()
    if what == "all":
        for one in below:
            if one.is_running():
                one.kill()


@pytest.mark.parametrize(("seed", "what"), [(0, "all"), (1, "the driver"), (2, "an actor")])
def test_a_prediction_killed_and_redone_has_every_video_once_with_the_same_scores(
    proxy: FaultyProxy, videos: Path, tmp_path: Path, seed: int, what: str
) -> None:
    source, out = f"s3://archive/{seed}/videos", f"s3://archive/{seed}/predictions"
    rng = random.Random(seed)
    total = upload(videos, source)
    model = stored_model(tmp_path / "model")
    command = [str(Path(sys.executable).with_name("twostream")), "predict", source, "--model", str(model), "--out", out]
    command += ["--num_actors", "1"]
    with (tmp_path / "log").open("wb") as log:
        process = subprocess.Popen(command, start_new_session=True, stdout=log, stderr=log, env=dict(os.environ))
        wanted, limit = rng.randint(1, 4), time.monotonic() + 120
        while finished(out) < wanted:
            assert process.poll() is None and time.monotonic() < limit, (tmp_path / "log").read_text()
            time.sleep(0.1)
        kill(process, what=what, rng=rng)
    before = finished(out)
    assert 0 < before < 9, "killed on the way: there are 9 parts"
    if what == "an actor":
        assert process.wait(timeout=200) == 0, (tmp_path / "log").read_text()
    else:
        again = subprocess.run(command, capture_output=True, text=True, timeout=200, check=False)
        assert again.returncode == 0, redact(again.stderr)
        assert f" of {total} videos are done already" in again.stdout

    rows = rows_of(out, tmp_path / "rows").set_index("uri").sort_index()
    assert len(rows) == total and rows.index.is_unique
    assert set(rows.status[rows.status != "ok"].index) == {f"{source}/test/damaged.mp4"}
    local = {f"{source}/{path.relative_to(videos).as_posix()}": path for path in videos.rglob("*") if path.is_file()}
    classifier = Classifier.load(model)
    for uri, row in rows[rows.status == "ok"].iterrows():
        (prediction,) = classifier.predict([local[str(uri)]])
        assert row.logits.tolist() == pytest.approx([x for head in prediction.heads for x in head.logits], abs=1e-6)
