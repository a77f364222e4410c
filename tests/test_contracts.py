"""Each kind of wrong import is planted in a copy of the package, and refused by the contracts of pyproject.toml."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "twostream_ray"

PLANTED = {
    "Ray in the Python interface": ("api.py", "import ray\n"),
    "runs that use the Python interface": ("runs/demo.py", "from twostream_ray import api\n"),
    "Ray in tracking": ("tracking/record.py", "import ray\n"),
    "Ray in serving": ("inference.py", "import ray\n"),
    "Ray in the service": ("serving/application.py", "import ray\n"),
    "timm past its door": ("models/streams.py", "import timm\n"),
    "FastAPI past its door": ("inference.py", "import fastapi\n"),
    "a service that needs runs": ("serving/application.py", "from twostream_ray.runs import workers\n"),
    "Ray in the reasons for an answer": ("explanation.py", "import ray\n"),
    "reasons that need the classifier": ("explanation.py", "from twostream_ray import inference\n"),
    "Ray in the scorer of views": ("view_scorer.py", "import ray\n"),
    "Ray in the video reader": ("data/video/raw_video.py", "import ray\n"),
    "MLflow in runs": ("runs/train/run.py", "import mlflow\n"),
    "MLflow in training": ("training/loop.py", "import mlflow\n"),
    "PyAV in sources": ("data/sources/catalog.py", "import av\n"),
    "PyAV in runs": ("runs/ingest.py", "import av\n"),
    "Arrow in training": ("training/loop.py", "import pyarrow\n"),
    "Arrow in tracking": ("tracking/record.py", "import pyarrow\n"),
    "Arrow in the pure core of data": ("data/sampling.py", "import pyarrow\n"),
    "S3 past its door": ("runs/train/run.py", "import s3fs\n"),
    "a circle inside runs": ("runs/train/run.py", "from twostream_ray.runs.score import evaluate\n"),
    "a search below its trials": ("runs/score/evaluate.py", "from twostream_ray.runs.search import space\n"),
    "a circle inside data": ("data/video/clips.py", "from twostream_ray.data.shards import shards\n"),
    "a circle inside tracking": ("tracking/outbox.py", "from twostream_ray.tracking import delivery\n"),
    "a circle inside training": ("training/recipe.py", "from twostream_ray.training import loop\n"),
    "networks that know data": ("models/towers.py", "from twostream_ray.data import sampling\n"),
    "data that know networks": ("data/sampling.py", "from twostream_ray.models import towers\n"),
    "serving that needs training": ("inference.py", "from twostream_ray.training import loop\n"),
    "a stray utils.py": ("utils.py", '"""Odds and ends."""\n'),
    "a stray module in runs": ("runs/helpers.py", '"""Odds and ends."""\n'),
    "a stray module in data": ("data/misc.py", '"""Odds and ends."""\n'),
}
"""What is wrong -> the file that it is written into, and how."""


@pytest.fixture(scope="module")
def copy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("copy")
    shutil.copytree(PACKAGE, root / PACKAGE.name, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "pyproject.toml", root)
    return root


def said_of(root: Path) -> tuple[int, str]:
    """Exit code and what is said of a copy of the package, in one line."""
    command = [Path(sys.executable).with_name("lint-imports"), "--no-cache"]
    # The folder itself is where the package is looked for, before any that is installed.
    done = subprocess.run(command, cwd=root, env={"PYTHONPATH": str(root)}, capture_output=True, text=True)
    assert "Contracts: " in done.stdout, done.stdout + done.stderr
    return done.returncode, " ".join(done.stdout.split())


@pytest.fixture(scope="module")
def refusals(copy: Path) -> str:
    """What is said of the copy with all the wrongs in it."""
    code, said = said_of(copy)
    assert (code, "Broken contracts" in said) == (0, False), said
    for name, line in PLANTED.values():
        path = copy / PACKAGE.name / name
        path.write_text((path.read_text() if path.exists() else "") + "\n" + line)
    code, said = said_of(copy)
    assert code == 1
    return said.partition("Broken contracts")[2]


@pytest.mark.parametrize("wrong", PLANTED)
def test_the_contracts_refuse(refusals: str, wrong: str) -> None:
    name, line = PLANTED[wrong]
    module = ".".join([PACKAGE.name, *Path(name).with_suffix("").parts])
    imported = line.removeprefix("from ").strip().replace(" import ", ".").removeprefix("import ")
    refused = f"- {module} " if line.startswith('"""') else f"{module} -> {imported} (l."
    assert refused in refusals
