import base64
import importlib.metadata
import json
import os
import re
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from twostream_ray.data.flow import FlowContract
from twostream_ray.data.sampling import SamplingConfig
from twostream_ray.data.sources.synthetic import SyntheticConfig, draw_clip
from twostream_ray.data.transforms import TransformConfig
from twostream_ray.data.video.files import write_video
from twostream_ray.inference import Classifier
from twostream_ray.model_package import ModelPackage, save_model
from twostream_ray.models.settings import FusionConfig, ModelConfig, TowerConfig
from twostream_ray.runs.score.serving_files import SERVED, serving_files
from twostream_ray.tracking import Measurement, TrackingConfig, promote, pull, register, start_run

pytestmark = pytest.mark.slow

# What a stranger does with the registered model: in a process that knows neither this checkout nor pickle, nor any
# distribution that the model's own requirements do not bring.
STRANGER = """
import json, sys
from importlib.metadata import PackageNotFoundError, packages_distributions, requires
from pathlib import Path
from packaging.requirements import Requirement

def canonical(name):
    return name.lower().replace("_", "-")

lines = next(Path("mlartifacts/models").glob("*/artifacts/requirements.txt")).read_text().splitlines()
had, wanted = set(), [Requirement(line) for line in lines]
while wanted:
    requirement = wanted.pop()
    for extra in requirement.extras | {""}:
        if (requirement.name, extra) in had:
            continue
        had.add((requirement.name, extra))
        try:
            more = [Requirement(line) for line in requires(requirement.name) or []]
        except PackageNotFoundError:
            continue
        wanted += [one for one in more if not one.marker or one.marker.evaluate({"extra": extra})]
brought = {canonical(name) for name, _ in had}
absent = {
    module for module, owners in packages_distributions().items() if not any(canonical(o) in brought for o in owners)
}

class Brought:
    def __init__(self, finder):
        self.finder = finder
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in absent - {"twostream_ray"}:
            return None
        return self.finder.find_spec(name, path, target)
    def __getattr__(self, name):
        return getattr(self.finder, name)

assert "ray" in absent and "mlflow" not in absent
sys.meta_path[:] = [Brought(finder) for finder in sys.meta_path]

import mlflow, numpy, pandas
from mlflow.pyfunc import scoring_server

uri, good, bad, requests = sys.argv[1:]
mlflow.set_tracking_uri(uri)
model = mlflow.pyfunc.load_model("models:/two-stream@champion")
raw = open(good, "rb").read()

def served(request):
    schema = model.metadata.get_input_schema()
    return json.loads(scoring_server.invocations(request, "application/json", model, schema).response)["predictions"]

import twostream_ray
if not json.loads(requests):
    json.dump(model.predict(good), sys.stdout)
    sys.exit()
answers = {
    "code": twostream_ray.__file__,
    "ray": "ray" in sys.modules,
    "path": model.predict(good),
    "list": model.predict([good, raw, bad], params={"top_k": 4}),
    "array": model.predict(numpy.array([good, bad])),
    "column": model.predict(pandas.DataFrame({"clip": [raw, good]})),
    "served": [served(json.dumps(request)) for request in json.loads(requests)],
}
try:
    model.predict([1.5])
except Exception as error:
    answers["number"] = str(error)
json.dump(answers, sys.stdout)
"""


@pytest.fixture(scope="module")
def package(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An untrained fused network, small, as training leaves it."""
    torch.manual_seed(0)
    tower = TowerConfig(backbone="vgg_small", width=4)
    described = ModelPackage(
        model=ModelConfig(
            spatial=tower, temporal=tower, fusion=FusionConfig(layers=("relu4",), temporal="pool2d"), num_classes=4
        ),
        classes=SyntheticConfig().classes,
        contract=FlowContract(short_side_px=64),
        sampling=SamplingConfig(num_snippets=2, test_times=1),
        transforms=TransformConfig(crop_px=64),
    )
    folder = tmp_path_factory.mktemp("package")
    save_model(folder, described.build(pretrained=False), described)
    return folder


@pytest.fixture(scope="module")
def video(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("videos") / "clip.mp4"
    write_video(draw_clip(SyntheticConfig(size_px=64), "test", 0), path=path, container="mp4", fps=25)
    return path


def champion(package: Path, folder: Path, *, libraries: tuple[str, ...] = ()) -> TrackingConfig:
    """The registry in which the package is the only version."""
    config = TrackingConfig(uri=f"sqlite:///{folder}/mlflow.db")
    measurement = Measurement(
        manifest_hash="0a" * 32, split="test", num_evaluated=8, num_clips=8, metrics={"top1": 0.5}
    )
    version = register(
        start_run(config, run_name="served", run_uri=str(folder / "run"), parameters={}, tags={}),
        package,
        entry=SERVED,
        code=serving_files(),
        name="two-stream",
        measurement=measurement,
        protocol="one view",
        summary="small",
        classes=SyntheticConfig().classes,
        data="moving shapes",
        flow_contract={"algorithm": "dis"},
        lineage={},
        libraries=libraries,
    )
    promote("two-stream", version, config=config, manifest_hash="0a" * 32, split="test")
    return config


def asked(config: TrackingConfig, folder: Path, *, video: Path, bad: str, requests: list[Any]) -> Any:
    """What a stranger's process says of the champion."""
    done = subprocess.run(
        [sys.executable, "-I", "-c", STRANGER, config.resolved_uri(), str(video), bad, json.dumps(requests)],
        cwd=folder,
        env=os.environ
        | {"MLFLOW_ALLOW_PICKLE_DESERIALIZATION": "false", "MLFLOW_DISABLE_TELEMETRY": "true", "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout)


@pytest.fixture(scope="module")
def answers(package: Path, video: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    folder = tmp_path_factory.mktemp("registry")
    config = champion(package, folder)
    pull("models:/two-stream@champion", folder / "pulled", config=config)

    encoded = base64.b64encode(video.read_bytes()).decode()
    lines = base64.encodebytes(video.read_bytes()).decode()
    requests = [
        {"inputs": [encoded, lines, "bm90IGEgdmlkZW8sIGp1c3Qgd29yZHM="], "params": {"top_k": 4}},
        {"dataframe_split": {"columns": ["video"], "data": [[encoded]]}, "params": {"top_k": 4}},
        {"inputs": [str(video)]},
    ]
    bad = str(folder / "missing.mp4")
    said = asked(config, folder, video=video, bad=bad, requests=requests)
    return said | {"pulled": folder / "pulled", "bad": bad, "registry": str(folder)}


@pytest.fixture(scope="module")
def expected(package: Path, video: Path) -> dict[str, float]:
    """Score of each class, from the model's folder and without MLflow."""
    (prediction,) = Classifier.load(package).predict([video], top_k=4)
    return dict(prediction.top)


def scores(answer: dict[str, Any]) -> dict[str, float]:
    (head,) = answer["heads"]
    logits = np.array(head["logits"])
    np.testing.assert_allclose(np.exp(logits) / np.exp(logits).sum(), head["probabilities"], atol=1e-6)
    return dict(zip(head["classes"], head["probabilities"], strict=True))


def test_model_brings_its_own_code_and_no_ray(answers: dict[str, Any]) -> None:
    assert answers["code"].startswith(answers["registry"])
    assert not answers["ray"]


def test_paths_and_bytes_score_as_the_classifier_does(
    answers: dict[str, Any], expected: dict[str, float], video: Path
) -> None:
    by_path, by_bytes, _ = answers["list"]
    assert len(expected) == 4
    assert scores(by_path) == pytest.approx(expected, abs=1e-5)
    assert scores(by_bytes) == pytest.approx(expected, abs=1e-5)
    (head,) = by_path["heads"]
    assert head["probabilities"] == sorted(head["probabilities"], reverse=True)
    assert (by_path["video"], by_path["error"]) == (str(video), None)


def test_one_bad_video_does_not_spoil_the_others(answers: dict[str, Any]) -> None:
    good, _, bad = answers["list"]
    assert good["error"] is None
    assert bad["heads"] == []
    assert answers["bad"] in bad["error"]
    assert [answer["error"] is None for answer in answers["array"]] == [True, False]


def test_column_may_hold_paths_and_bytes(answers: dict[str, Any], expected: dict[str, float]) -> None:
    for answer in answers["column"]:
        assert scores(answer) == pytest.approx(expected, abs=1e-5)


def test_single_path_is_enough(answers: dict[str, Any], expected: dict[str, float]) -> None:
    (answer,) = answers["path"]
    assert scores(answer) == pytest.approx(expected, abs=1e-5)


def test_server_takes_base64_in_every_json_form(answers: dict[str, Any], expected: dict[str, float]) -> None:
    listed, in_a_table, _ = answers["served"]
    assert scores(listed[0]) == pytest.approx(expected, abs=1e-5)
    assert scores(listed[1]) == pytest.approx(expected, abs=1e-5)
    assert listed[2]["error"]
    assert scores(in_a_table[0]) == pytest.approx(expected, abs=1e-5)


def test_json_client_cannot_have_the_server_open_its_files(answers: dict[str, Any], video: Path) -> None:
    ((answer,),) = answers["served"][2:]
    assert answer["error"]
    assert answer["video"] != str(video)


def test_number_is_no_video(answers: dict[str, Any]) -> None:
    assert "binary" in answers["number"]


def test_pulled_model_is_the_registered_one(answers: dict[str, Any], package: Path) -> None:
    for file in ("model.safetensors", "model.json"):
        assert (answers["pulled"] / file).read_bytes() == (package / file).read_bytes()


def test_the_lines_of_the_readme_use_a_pulled_model_without_mlflow(
    answers: dict[str, Any], expected: dict[str, float], video: Path, tmp_path: Path
) -> None:
    readme = (Path(__file__).resolve().parents[1] / "README.md").read_text()
    (lines,) = re.findall(r"```python\n(from twostream_ray\.inference import .*?)```", readme, re.DOTALL)
    assert len([line for line in lines.splitlines() if line]) <= 3
    shutil.copytree(answers["pulled"], tmp_path / "champion")
    shutil.copy(video, tmp_path / "clip.mp4")
    code = lines + "import sys; assert not {'mlflow', 'ray'} & sys.modules.keys()"
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=True)
    best, probability = max(expected.items(), key=lambda item: item[1])
    assert f"('{best}', {probability:.4f}"[:-1] in done.stdout


@pytest.mark.soak
@pytest.mark.parametrize("backbone", ["timm:test_convnext", "timm:test_vit"])
def test_a_model_with_towers_of_timm_brings_all_that_it_wants(backbone: str, video: Path, tmp_path: Path) -> None:
    pytest.importorskip("timm")
    tower, layer = TowerConfig(backbone=backbone), "stages_2" if "convnext" in backbone else "blocks_3"
    modern = ModelConfig(spatial=tower, temporal=tower, fusion=FusionConfig(layers=(layer,), temporal="pool3d"))
    package = ModelPackage(
        model=replace(modern, num_classes=4),
        classes=SyntheticConfig().classes,
        contract=FlowContract(short_side_px=64),
        sampling=SamplingConfig(num_snippets=2, test_times=1),
        transforms=TransformConfig(crop_px=64),
    )
    torch.manual_seed(0)
    (tmp_path / "package").mkdir()
    save_model(tmp_path / "package", package.build(pretrained=False), package)
    config = champion(tmp_path / "package", tmp_path, libraries=package.model.libraries)
    (requirements,) = tmp_path.glob("mlartifacts/models/*/artifacts/requirements.txt")
    assert f"timm=={importlib.metadata.version('timm')}" in requirements.read_text().splitlines()
    (answer,) = asked(config, tmp_path, video=video, bad="missing.mp4", requests=[])
    (prediction,) = Classifier.load(tmp_path / "package").predict([video], top_k=4)
    assert scores(answer) == pytest.approx(dict(prediction.top), abs=1e-5)
