import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from twostream_ray.data.shards.shards import ShardSet


def twostream_train(shard_set: ShardSet, folder: Path, *, name: str, epochs: int) -> subprocess.Popen[str]:
    arguments = ["--config", "demo", "--name", name, "--data.shards", shard_set.uri]
    arguments += ["--data.transforms.crop_px", "48", "--training.epochs", str(epochs), "--training.global_batch", "16"]
    arguments += ["--storage", str(folder / "runs"), "--tracking.uri", f"sqlite:///{folder}/mlflow.db"]
    return subprocess.Popen(
        [str(Path(sys.executable).with_name("twostream")), "train", *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=Path(__file__).resolve().parents[3],
        env=dict(os.environ),
    )


@pytest.mark.soak
@pytest.mark.timeout(300)
def test_sigterm_keeps_what_the_run_has_reached_and_the_same_command_goes_on_there(
    shard_set: ShardSet, tmp_path: Path
) -> None:
    process = twostream_train(shard_set, tmp_path, name="terminated", epochs=500)
    assert process.stdout is not None
    assert any(line.startswith("epoch 1/500") for line in process.stdout)
    process.send_signal(signal.SIGTERM)
    _, errors = process.communicate(timeout=120)
    assert process.returncode == 130
    assert "interrupted; what was finished is kept, run the same command again to resume" in errors
    assert "Traceback" not in errors
    kept = sorted(path.name for path in (tmp_path / "runs/terminated").glob("epoch-*"))
    process = twostream_train(shard_set, tmp_path, name="terminated", epochs=500)
    assert process.stdout is not None
    again = next(line for line in process.stdout if " at epoch " in line)
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=120)
    parts = kept[-1].split("-")
    epoch, step = (int(parts[1]), int(parts[3])) if len(parts) > 2 else (int(parts[1]) + 1, 0)
    assert again == f"2 workers resume at epoch {epoch + 1}, step {step + 1}\n"


@pytest.mark.soak
@pytest.mark.timeout(300)
def test_ctrl_c_ends_with_130_one_line_and_no_process_left(shard_set: ShardSet, tmp_path: Path) -> None:
    process = twostream_train(shard_set, tmp_path, name="interrupted", epochs=500)
    assert process.stdout is not None and process.stderr is not None
    assert any(line.startswith("epoch 1/500") for line in process.stdout)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=120)
    assert process.returncode == 130
    assert [line for line in errors.splitlines() if line.startswith("twostream train: error: interrupted")]
    assert "Traceback" not in errors
