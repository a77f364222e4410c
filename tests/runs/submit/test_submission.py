import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.own_cluster


def twostream(*arguments: str, environment: dict[str, str], folder: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "twostream_ray", *arguments]
    return subprocess.run(command, env=environment, capture_output=True, text=True, cwd=folder, timeout=200)


@pytest.mark.timeout(400)
def test_a_submitted_verb_ends_with_its_own_exit_code_and_last_error(head: dict[str, str], tmp_path: Path) -> None:
    database = f"sqlite:///{tmp_path}/none.db"
    done = twostream("submit", "promote", "--tracking.uri", database, environment=head, folder=tmp_path)
    assert done.returncode == 2, done.stdout + done.stderr
    assert "Running entrypoint for job promote-" in done.stdout and "twostream promote: error: " in done.stdout
    (line,) = done.stderr.strip().splitlines()
    assert line.startswith("twostream submit: error: the job promote-") and "failed with exit code 2: MLflow" in line
