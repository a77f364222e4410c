import os
import random
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from noise_shards import noise_model, noise_shards
from s3 import FaultyProxy, reached_at

from twostream_ray import storage
from twostream_ray.data.protocols import PROTOCOLS
from twostream_ray.data.shards.shards import ShardSet
from twostream_ray.model_package import load_model
from twostream_ray.runs.score.score_table import read_table
from twostream_ray.runs.score.scorer import plan_blocks, score_clips
from twostream_ray.view_scorer import ViewScorer

pytestmark = pytest.mark.own_cluster

_MARK = "TWOSTREAM_TEST_MARK"


class Driver:
    """The command in a process of its own, on a private cluster whose processes are known by a mark."""

    def __init__(self, arguments: list[str], log: Path) -> None:
        self._mark, self._log = uuid.uuid4().hex, log
        self.process = subprocess.Popen(
            [sys.executable, "-m", "twostream_ray", *arguments],
            env=os.environ | {_MARK: self._mark},
            stdout=log.open("a"),
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )

    def wait_until(self, reached: Callable[[], bool]) -> None:
        for _ in range(2400):
            if reached():
                return
            assert self.process.poll() is None, self._log.read_text()[-3000:]
            time.sleep(0.05)
        raise AssertionError(self._log.read_text()[-3000:])

    def workers(self) -> list[int]:
        """Ids of the processes that score."""
        found = []
        for folder in Path("/proc").glob("[0-9]*"):
            try:
                if b"ray::BlockScorer" in (folder / "cmdline").read_bytes():
                    marked = f"{_MARK}={self._mark}".encode() in (folder / "environ").read_bytes()
                    found += [int(folder.name)] * marked
            except OSError:
                continue
        return found

    def end(self) -> None:
        assert self.process.wait(timeout=200) == 0, self._log.read_text()[-3000:]


def undisturbed(shards: ShardSet, model: Path, protocol: str) -> dict[int, np.ndarray]:
    """Logits of each clip by its position, scored here and now."""
    torch.set_num_threads(1)
    network, package = load_model(model)
    scorer = ViewScorer(network, package, protocol=PROTOCOLS[protocol])
    return {
        clip.position: clip.logits
        for block in plan_blocks(shards, "test")
        for clip in score_clips(scorer, shards, block)
    }


@pytest.mark.timeout(600)
@pytest.mark.soak
@pytest.mark.parametrize("seed", [1, 2, 3])
def test_an_evaluation_whose_worker_and_driver_are_killed_over_a_bad_network_gives_the_same_table(
    object_store: int, tmp_path: Path, seed: int
) -> None:
    proxy, rng = FaultyProxy(object_store, fail_fraction=0.05, seed=seed), random.Random(seed)
    out = f"s3://archive/evaluation-{seed}"
    with reached_at(proxy.endpoint):
        shards = noise_shards(f"s3://archive/noise-{seed}", rows=(16, 13), num_fields=5, video=True, splits=("test",))
        model = noise_model(tmp_path / "model", shards)
        expected = undisturbed(shards, model, "paper_2014")
        command = ["evaluate", str(model), shards.uri, "--protocol", "paper_2014", "--out", out]

        def there() -> list[str]:
            if not storage.exists(f"{out}/scores"):
                return []
            return [name for name, _ in storage.list_files(f"{out}/scores") if name.endswith(".parquet")]

        first = Driver(command, tmp_path / "log")
        first.wait_until(lambda: bool(there()))
        os.kill(rng.choice(first.workers()), signal.SIGKILL)
        enough = rng.randint(2, 4)
        first.wait_until(lambda: len(there()) >= enough)
        first.process.kill()
        first.process.wait()
        kept, written = there(), len(proxy.written)
        assert 0 < len(kept) < 9, "it was killed before its end"
        Driver(command, tmp_path / "log").end()
        again = [path for path in proxy.written[written:] if Path(path).name in kept]
        table = read_table(out)
    proxy.go_away()
    assert again == [], "what was finished is not scored again"
    assert table.positions.tolist() == sorted(expected) and len(expected) == 29
    assert np.array_equal(table.logits, np.stack([expected[clip] for clip in sorted(expected)]))
    assert "29 of 29 clips" in (tmp_path / "log").read_text()
    assert proxy.requests.total() > 50 and sum(proxy.requests[fault] for fault in ("busy", "cut", "lost")) >= 1


@pytest.mark.timeout(300)
@pytest.mark.soak
def test_an_evaluation_ended_by_ctrl_c_says_one_line_leaves_no_process_and_is_resumed_to_the_same_table(
    tmp_path: Path,
) -> None:
    shards = noise_shards(str(tmp_path / "noise"), rows=(16, 13), num_fields=5, video=True, splits=("test",))
    model, out, log = noise_model(tmp_path / "model", shards), tmp_path / "out", tmp_path / "log"
    expected = undisturbed(shards, model, "paper_2014")
    command = ["evaluate", str(model), shards.uri, "--protocol", "paper_2014", "--out", str(out)]
    first = Driver(command, log)
    first.wait_until(lambda: any(out.glob("scores/*.parquet")))
    first.process.send_signal(signal.SIGINT)
    assert first.process.wait(timeout=60) == 130
    said = log.read_text()
    assert "interrupted; what was finished is kept, run the same command again to resume" in said
    assert "Traceback" not in said
    assert first.workers() == []
    kept = {path: path.stat().st_mtime_ns for path in out.glob("scores/*.parquet")}
    assert 0 < len(kept) < 9, "it was interrupted before its end"
    Driver(command, log).end()
    table = read_table(str(out))
    assert np.array_equal(table.logits, np.stack([expected[clip] for clip in sorted(expected)]))
    assert {path: path.stat().st_mtime_ns for path in kept} == kept, "what was finished is not scored again"
