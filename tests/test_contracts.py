"""Each kind of wrong import is planted in a copy of the package, and refused by the contracts of pyproject.toml."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from test_layout import PACKAGE, PLANTED, ROOT


@pytest.fixture(scope="module")
def copy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("copy")
    shutil.copytree(PACKAGE, root / PACKAGE.name, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "pyproject.toml", root)
    return root


def contracts_hold(root: Path) -> bool:
    command = [Path(sys.executable).with_name("lint-imports"), "--no-cache"]
    # The folder itself is where the package is looked for, before any that is installed.
    done = subprocess.run(command, cwd=root, env={"PYTHONPATH": str(root)}, capture_output=True, text=True)
    assert done.returncode == 0 or "Contracts: " in done.stdout, done.stdout + done.stderr
    return done.returncode == 0


def test_the_copy_keeps_the_contracts(copy: Path) -> None:
    assert contracts_hold(copy)


@pytest.mark.parametrize("wrong", PLANTED)
def test_the_contracts_refuse(copy: Path, wrong: str) -> None:
    name, line = PLANTED[wrong]
    path = copy / PACKAGE.name / name
    before = path.read_text() if path.exists() else None
    try:
        path.write_text((before or "") + "\n" + line)
        assert not contracts_hold(copy)
    finally:
        if before is None:
            path.unlink()
        else:
            path.write_text(before)
