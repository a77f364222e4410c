import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

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

PREDICT = """
import json, sys
import twostream_ray.inference as inference
folder, video = sys.argv[1:]
(prediction,) = inference.Classifier.load(folder).predict([video])
print(json.dumps([inference.__file__, prediction.error, prediction.heads[0].logits]))
"""


def test_serving_needs_the_networks_and_the_decoder() -> None:
    files = serving_files()
    for module in (
        "__init__",
        "inference",
        "view_scorer",
        "model_package",
        "evaluation/aggregate",
        "errors",
        "data/__init__",
        "data/video/__init__",
        "data/video/prepare",
        "data/video/isolation",
        "models/__init__",
        "models/build",
        "models/towers",
        "settings/__init__",
        "settings/parser",
        "storage/__init__",
        "storage/object_store",
    ):
        assert f"twostream_ray/{module}.py" in files
    assert all(file.is_file() and file.as_posix().endswith(path) for path, file in files.items())


def test_serving_needs_no_training_and_no_commands() -> None:
    files = serving_files()
    tops = {path.split("/")[1].removesuffix(".py") for path in files}
    assert not tops & {"runs", "training", "tracking", "verbs", "visualize", "cli", "console"}
    of_evaluation = {path.split("/")[-1] for path in files if path.startswith("twostream_ray/evaluation/")}
    assert of_evaluation == {"__init__.py", "aggregate.py"}


@pytest.mark.parametrize(
    ("code", "expected"),
    [
        ("import twostream_ray.redaction\n", {"__init__", "redaction"}),
        ("from twostream_ray import redaction\n", {"__init__", "redaction"}),
        ("from twostream_ray.redaction import redact\n", {"__init__", "redaction"}),
        ("def late():\n    from twostream_ray import redaction\n", {"__init__", "redaction"}),
        ("from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    import twostream_ray.redaction\n", set()),
        ("import typing\nif typing.TYPE_CHECKING:\n    pass\nelse:\n    import twostream_ray\n", {"__init__"}),
        ("import json\nimport twostream_rays\n", set()),
        ("import twostream_ray.errors\n", {"__init__", "errors", "redaction"}),
    ],
)
def test_every_form_of_import_is_followed(tmp_path: Path, code: str, expected: set[str]) -> None:
    entry = tmp_path / "entry.py"
    entry.write_text(code)
    assert set(serving_files(entry)) == {f"twostream_ray/{name}.py" for name in expected}


@pytest.mark.slow
def test_a_model_predicts_with_these_files_alone(tmp_path: Path) -> None:
    torch.manual_seed(0)
    tower = TowerConfig(backbone="vgg_small", width=4)
    package = ModelPackage(
        model=ModelConfig(
            spatial=tower, temporal=tower, fusion=FusionConfig(layers=("relu4",), temporal="pool2d"), num_classes=4
        ),
        classes=SyntheticConfig().classes,
        contract=FlowContract(short_side_px=64),
        sampling=SamplingConfig(num_snippets=2, test_times=1),
        transforms=TransformConfig(crop_px=64),
    )
    folder, video, copy = tmp_path / "model", tmp_path / "clip.mp4", tmp_path / "copy"
    folder.mkdir()
    save_model(folder, package.build(pretrained=False), package)
    write_video(draw_clip(SyntheticConfig(size_px=64), "test", 0), path=video, container="mp4", fps=25)
    for path, file in serving_files(SERVED).items():
        (copy / path).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(file, copy / path)
    done = subprocess.run(
        [sys.executable, "-c", PREDICT, str(folder), str(video)],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(copy), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    loaded_from, error, logits = json.loads(done.stdout)
    assert Path(loaded_from).is_relative_to(copy)
    assert error is None
    (expected,) = Classifier.load(folder).predict([video])
    assert logits == pytest.approx(expected.heads[0].logits, abs=1e-5)
