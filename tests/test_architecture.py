import subprocess
import sys
from pathlib import Path

import pytest

from twostream_ray.verbs.commands import VERBS

ROOT = Path(__file__).resolve().parents[1]

HEAVY = {
    *("ray", "torch", "torchvision", "mlflow", "pyarrow", "pandas", "av", "cv2", "decord", "simplejpeg", "safetensors"),
    *("matplotlib", "optuna", "sklearn", "scipy", "s3fs", "botocore", "psutil"),
}
"""What a command line is read without."""


def test_imports_point_down() -> None:
    """The contracts in pyproject.toml; `make check` runs them too."""
    done = subprocess.run([Path(sys.executable).with_name("lint-imports")], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout


@pytest.mark.slow
@pytest.mark.parametrize(
    ("modules", "command"),
    [
        (
            {
                "twostream_ray": {*HEAVY, "numpy", "rich", "yaml", "jsonargparse"},
                "twostream_ray.cli": {"ray", "torch", "mlflow", "jsonargparse", "numpy", "rich"},
                "twostream_ray.data": {"numpy"},
                "twostream_ray.runs": {"ray", "numpy"},
                "twostream_ray.models.settings": {*HEAVY, "numpy"},
                "twostream_ray.data.protocols": {*HEAVY, "numpy"},
                "twostream_ray.training.settings": {*HEAVY, "numpy"},
                "twostream_ray.runs.score.settings": {*HEAVY, "numpy"},
                "twostream_ray.api": HEAVY,
                "twostream_ray.runs.experiment": HEAVY,
                "twostream_ray.data.snippets": {"ray", "mlflow", "torch", "pyarrow", "av"},
                "twostream_ray.data.loading.decode_cpu": {"ray", "mlflow", "torch", "pyarrow"},
                "twostream_ray.data.video.prepare": {"ray", "mlflow", "torch", "pyarrow"},
                "twostream_ray.tracking": {"mlflow", "torch"},
            },
            ["recipes"],
        ),
        (
            {
                "twostream_ray.models.build": {"ray", "mlflow", "pyarrow", "av", "cv2"},
                "twostream_ray.inference": {"ray", "mlflow"},
            },
            ["describe", "--config", "own_videos_cpu"],
        ),
    ],
    ids=["without torch", "with torch"],
)
def test_light_modules_and_commands_of_them_load_nothing_heavy(
    modules: dict[str, set[str]], command: list[str]
) -> None:
    """Imported one after the other, the lightest first: none has loaded what those after it may not load."""
    code = (
        "import importlib, sys\n"
        f"for module, kept_out in {modules}.items():\n"
        "    importlib.import_module(module)\n"
        "    heavy = sorted(kept_out & sys.modules.keys())\n"
        "    assert not heavy, f'{module} loads {heavy}'\n"
        "from twostream_ray.cli import main\n"
        f"command = {command}\n"
        "assert main(command) == 0 and not kept_out & sys.modules.keys(), command\n"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.slow
def test_help_of_no_verb_loads_anything_heavy() -> None:
    """The parser is built: it executes the TYPE_CHECKING blocks of the modules that settings classes are in."""
    code = (
        "import contextlib, io, sys\n"
        "from twostream_ray.cli import main\n"
        f"for verb in {list(VERBS)}:\n"
        "    for help in ('--help', '--help-all'):\n"
        "        with contextlib.redirect_stdout(io.StringIO()) as said:\n"
        "            assert main([*verb.split(), help]) == 0, verb\n"
        "        assert said.getvalue().startswith(f'usage: twostream {verb} '), verb\n"
        f"        heavy = sorted({HEAVY} & sys.modules.keys())\n"
        "        assert not heavy, f'twostream {verb} {help} loads {heavy}'\n"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_jobs_are_short_scripts_over_the_same_verbs() -> None:
    scripts = sorted((ROOT / "jobs").glob("*.py"))
    assert {path.stem for path in scripts} >= {"ingest", "train", "evaluate", "predict", "pull_best"}
    for path in scripts:
        assert len(path.read_text().splitlines()) < 20, path.name


def test_no_index_address_and_no_unpinned_version_in_the_constraints() -> None:
    lines = (ROOT / "constraints.txt").read_text().split()
    assert all("==" in line and "://" not in line for line in lines)
