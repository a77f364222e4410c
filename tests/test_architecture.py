import subprocess
import sys
from pathlib import Path

import pytest

from twostream_ray.verbs.commands import VERBS

ROOT = Path(__file__).resolve().parents[1]

HEAVY = [
    *("ray", "torch", "torchvision", "mlflow", "pyarrow", "pandas", "av", "cv2", "decord", "simplejpeg", "safetensors"),
    *("matplotlib", "optuna", "sklearn", "scipy", "s3fs", "botocore", "psutil"),
]
"""What a command line is read without."""


def test_imports_point_down() -> None:
    """The contracts in pyproject.toml; `make check` runs them too."""
    done = subprocess.run([Path(sys.executable).with_name("lint-imports")], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize(
    ("module", "kept_out"),
    [
        ("twostream_ray", [*HEAVY, "numpy", "rich", "yaml", "jsonargparse"]),
        ("twostream_ray.api", HEAVY),
        ("twostream_ray.cli", ["ray", "torch", "mlflow", "jsonargparse", "numpy", "rich"]),
        ("twostream_ray.inference", ["ray", "mlflow"]),
        ("twostream_ray.tracking", ["mlflow", "torch"]),
        ("twostream_ray.data.video.prepare", ["ray", "mlflow", "torch", "pyarrow"]),
        ("twostream_ray.data.snippets", ["ray", "mlflow", "torch", "pyarrow", "av"]),
        ("twostream_ray.data.loading.decode_cpu", ["ray", "mlflow", "torch", "pyarrow"]),
        ("twostream_ray.models.build", ["ray", "mlflow", "pyarrow", "av", "cv2"]),
        ("twostream_ray.models.settings", [*HEAVY, "numpy"]),
        ("twostream_ray.data.protocols", [*HEAVY, "numpy"]),
        ("twostream_ray.training.settings", [*HEAVY, "numpy"]),
        ("twostream_ray.runs.experiment", HEAVY),
        ("twostream_ray.runs.score.settings", [*HEAVY, "numpy"]),
        ("twostream_ray.data", ["numpy"]),
        ("twostream_ray.runs", ["ray", "numpy"]),
    ],
)
def test_a_light_module_loads_nothing_heavy(module: str, kept_out: list[str]) -> None:
    code = f"import sys, {module}; print([name for name in {kept_out} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize("verb", VERBS)
def test_help_of_a_verb_loads_nothing_heavy(verb: str) -> None:
    """The parser is built: it executes the TYPE_CHECKING blocks of the modules that settings classes are in."""
    code = (
        "import sys; from twostream_ray.cli import main; "
        f"code = main({[*verb.split(), '--help']}) + main({[*verb.split(), '--help-all']}); "
        f"print(code, [name for name in {HEAVY} if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    help_text, _, ending = done.stdout.strip().rpartition("\n")
    assert help_text.startswith(f"usage: twostream {verb} ")
    assert ending == "0 []"


def test_jobs_are_short_scripts_over_the_same_verbs() -> None:
    scripts = sorted((ROOT / "jobs").glob("*.py"))
    assert {path.stem for path in scripts} >= {"ingest", "train", "evaluate", "predict", "pull_best"}
    for path in scripts:
        assert len(path.read_text().splitlines()) < 20, path.name


def test_no_index_address_and_no_unpinned_version_in_the_constraints() -> None:
    lines = (ROOT / "constraints.txt").read_text().split()
    assert all("==" in line and "://" not in line for line in lines)
