"""The registered model where nothing is installed but what it requires: gigabytes to download, so part of the soak."""

import base64
import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from twostream_ray.data.sampling import SamplingConfig
from twostream_ray.data.shards.shards import ShardSet
from twostream_ray.data.transforms import TransformConfig
from twostream_ray.inference import Classifier
from twostream_ray.model_package import ModelPackage, save_model
from twostream_ray.models.settings import FusionConfig, ModelConfig, TowerConfig
from twostream_ray.runs.score.evaluate import Evaluation, evaluate
from twostream_ray.runs.score.serving_files import SERVED, serving_files
from twostream_ray.runs.score.settings import EvaluateConfig
from twostream_ray.tracking import Measurement, TrackingConfig, promote, register, start_run

pytestmark = [pytest.mark.soak, pytest.mark.timeout(3000)]

MODEL = "models:/two-stream@champion"
ASK = """
import importlib.util, json, sys
import mlflow
assert not any(map(importlib.util.find_spec, ("twostream_ray", "ray", "torchvision")))
model = mlflow.pyfunc.load_model(sys.argv[1])
videos = [open(path, "rb").read() for path in json.load(sys.stdin)]
json.dump(model.predict(videos, params={"top_k": 4}), sys.stdout)
"""


@pytest.fixture(scope="module")
def registered(shard_set: ShardSet, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """An untrained fused network as champion of a registry, with what `evaluate` finds."""
    folder = tmp_path_factory.mktemp("registry")
    torch.manual_seed(0)
    tower = TowerConfig(backbone="vgg_small", width=4)
    package = ModelPackage(
        model=ModelConfig(
            spatial=tower, temporal=tower, fusion=FusionConfig(layers=("relu4",), temporal="conv3d"), num_classes=4
        ),
        classes=shard_set.classes,
        contract=shard_set.contract,
        sampling=SamplingConfig(num_snippets=2, test_times=2),
        transforms=TransformConfig(crop_px=48),
    )
    (folder / "package").mkdir()
    save_model(folder / "package", package.build(pretrained=False), package)
    config = TrackingConfig(uri=f"sqlite:///{folder}/mlflow.db")
    version = register(
        start_run(config, run_name="clean", run_uri=str(folder / "run"), parameters={}, tags={}),
        folder / "package",
        entry=SERVED,
        code=serving_files(),
        name="two-stream",
        measurement=Measurement(
            manifest_hash="0a" * 32, split="test", num_evaluated=20, num_clips=20, metrics={"top1": 0.5}
        ),
        protocol="two views",
        summary="small",
        classes=package.classes,
        data="moving shapes",
        flow_contract=package.contract.to_dict(),
        lineage={},
    )
    promote("two-stream", version, config=config, manifest_hash="0a" * 32, split="test")
    evaluation = evaluate(
        EvaluateConfig(model=MODEL, shards=shard_set.uri, out=str(folder / "evaluation"), tracking=config)
    )
    (requirements,) = folder.glob("mlartifacts/models/*/artifacts/requirements.txt")
    return {"folder": folder, "uri": config.resolved_uri(), "requirements": requirements, "evaluation": evaluation}


@pytest.fixture(scope="module")
def clean(registered: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The programs of a new virtual environment that has the model's requirements."""
    folder = tmp_path_factory.mktemp("environment")
    subprocess.run([sys.executable, "-m", "venv", folder], check=True)
    install = ["-m", "pip", "install", "--quiet", "--no-cache-dir", "-r", registered["requirements"]]
    subprocess.run([folder / "bin/python", *install], check=True)
    return folder / "bin"


def surroundings(registered: dict[str, Any]) -> dict[str, str]:
    kept = {key: value for key, value in os.environ.items() if not key.startswith(("PYTHON", "MLFLOW", "RAY"))}
    return kept | {
        "MLFLOW_TRACKING_URI": registered["uri"],
        "MLFLOW_ALLOW_PICKLE_DESERIALIZATION": "false",
        "MLFLOW_DISABLE_TELEMETRY": "true",
    }


def by_class(answer: dict[str, Any], classes: tuple[str, ...]) -> list[float]:
    (head,) = answer["heads"]
    scores = dict(zip(head["classes"], head["probabilities"], strict=True))
    return [scores[name] for name in classes]


def test_bytes_of_raw_videos_score_as_evaluate_scored_their_shards(
    clean: Path, registered: dict[str, Any], videos: Path
) -> None:
    evaluation: Evaluation = registered["evaluation"]
    done = subprocess.run(
        [clean / "python", "-I", "-c", ASK, MODEL],
        input=json.dumps([str(videos / clip) for clip in evaluation.clip_ids]),
        cwd=registered["folder"],
        env=surroundings(registered),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    answers = json.loads(done.stdout)
    assert len(answers) == 20 and not any(answer["error"] for answer in answers)
    found = [by_class(answer, evaluation.report.classes) for answer in answers]
    np.testing.assert_allclose(found, evaluation.probabilities, rtol=0, atol=1e-5)


@pytest.mark.real
def test_mlflows_server_answers_for_a_real_clip(clean: Path, registered: dict[str, Any], real: Path) -> None:
    clip = next(iter(sorted((real / "ucf101").rglob("v_*.avi"))))
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = ["models", "serve", "-m", MODEL, "--env-manager", "local", "--host", "127.0.0.1", "--port", str(port)]
    log = registered["folder"] / "serve.log"
    environment = surroundings(registered) | {"PATH": f"{clean}:{os.environ['PATH']}"}
    with log.open("w") as written:
        process = subprocess.Popen(
            [clean / "mlflow", *command],
            cwd=registered["folder"],
            env=environment,
            stdout=written,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    try:
        deadline = time.monotonic() + 300
        while not _answers(f"http://127.0.0.1:{port}/ping"):
            assert process.poll() is None and time.monotonic() < deadline, log.read_text()[-3000:]
            time.sleep(1)
        body = {"inputs": [base64.b64encode(clip.read_bytes()).decode()], "params": {"top_k": 4}}
        request = urllib.request.Request(
            f"http://127.0.0.1:{port}/invocations",
            data=json.dumps(body).encode(),
            headers={"Content-Type": "application/json"},
        )
        with urllib.request.urlopen(request, timeout=300) as response:
            (answer,) = json.load(response)["predictions"]
    finally:
        os.killpg(process.pid, signal.SIGTERM)
        process.wait(timeout=60)
    (expected,) = Classifier.load(registered["folder"] / "package").predict([clip], top_k=4)
    assert answer["error"] is None
    (head,) = answer["heads"]
    assert dict(zip(head["classes"], head["probabilities"], strict=True)) == pytest.approx(dict(expected.top), abs=1e-5)


def _answers(url: str) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=5) as response:
            return response.status == 200
    except (urllib.error.URLError, OSError):
        return False
