"""docs/python.md and the notebook made of it: their code runs in order, as a reader would run it."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from pages import NOTEBOOK, PAGE, ROOT, fenced_blocks, notebook_of

RUN_CELLS = """
import json, subprocess, sys

names = {"__name__": "__main__"}
for cell in json.load(open(sys.argv[1]))["cells"]:
    source = "".join(cell["source"])
    if cell["cell_type"] != "code":
        continue
    if source.startswith("%%bash"):
        subprocess.run(["bash", "-e", "-c", source.partition("\\n")[2]], check=True)
    else:
        exec(compile(source, cell["id"], "exec"), names)
"""
"""A notebook's cells one after the other, without a kernel."""


def surroundings() -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("RAY_", "MLFLOW_"))}
    return kept | {
        "PYTHONPATH": str(ROOT),
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        "RAY_USAGE_STATS_ENABLED": "0",
        "MLFLOW_DISABLE_TELEMETRY": "true",
    }


def test_the_notebook_is_the_page() -> None:
    assert json.loads(NOTEBOOK.read_text()) == notebook_of(PAGE.read_text()), "run `python tests/pages.py`"


def test_the_notebook_is_one_that_jupyter_reads() -> None:
    """The required fields of nbformat 4.5."""
    notebook = json.loads(NOTEBOOK.read_text())
    assert (notebook["nbformat"], notebook["nbformat_minor"]) == (4, 5)
    assert len({cell["id"] for cell in notebook["cells"]}) == len(notebook["cells"])
    for cell in notebook["cells"]:
        code = {"execution_count", "outputs"} if cell["cell_type"] == "code" else set()
        assert cell.keys() == {"id", "cell_type", "metadata", "source"} | code
        assert cell["cell_type"] in ("markdown", "code") and all(isinstance(line, str) for line in cell["source"])


@pytest.mark.slow
@pytest.mark.own_cluster
@pytest.mark.timeout(900)
def test_the_code_of_page_and_notebook_runs_in_order(tmp_path: Path) -> None:
    """Once: the notebook's cells are the page's blocks."""
    blocks = fenced_blocks(PAGE.read_text())
    assert {block.language for block in blocks} == {"bash", "python"} and not any(block.reason for block in blocks)
    done = subprocess.run(
        [sys.executable, "-c", RUN_CELLS, str(NOTEBOOK)],
        cwd=tmp_path,
        env=surroundings(),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-5000:]
    assert "80 clips to train on" in done.stdout and "of 20 clips" in done.stdout and "videos/test" in done.stdout
