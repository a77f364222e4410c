"""Lineage of a run and a model as tags: data manifest, flow contract, git commit, Ray job."""

import json
import os
import subprocess
from pathlib import Path

MANIFEST = "manifest_hash"
FLOW_CONTRACT = "flow_contract_hash"
GIT_COMMIT = "git_commit"
JOB_ID = "ray_job_id"
TRAIN_SPLIT = "train_split"


def lineage_tags(
    *,
    manifest_hash: str | None = None,
    flow_contract_hash: str | None = None,
    ray_job_id: str | None = None,
    train_split: str | None = None,
) -> dict[str, str]:
    """Tags of a run or model: data manifest, flow contract, git commit ("... dirty" if files differ), Ray job.

    Args:
        manifest_hash: manifest of the shards that were used.
        flow_contract_hash: contract of the network's flow input.
        ray_job_id: by default that of this process's job, if any.
        train_split: the split that a model was trained on.

    Unknown values are left out.
    """
    tags = {
        MANIFEST: manifest_hash,
        FLOW_CONTRACT: flow_contract_hash,
        GIT_COMMIT: git_commit(),
        JOB_ID: ray_job_id or _job_of_this_process(),
        TRAIN_SPLIT: train_split,
    }
    return {name: value for name, value in tags.items() if value}


def git_commit() -> str | None:
    """Commit of the code, "<hash>" or "<hash> dirty"; None outside a repository.

    TWOSTREAM_GIT_COMMIT takes precedence, as a node image or a job's working directory has no .git.
    """
    if commit := os.environ.get("TWOSTREAM_GIT_COMMIT"):
        return commit
    here = Path(__file__).resolve()
    # An installed package may be inside another repository (.venv), to which its untracked files do not belong.
    tracked = _git("ls-files", "--error-unmatch", here.name, folder=here.parent)
    folder = here.parent if tracked else Path.cwd()
    commit = _git("rev-parse", "HEAD", folder=folder)
    if not commit:
        return None
    changed = _git("status", "--porcelain", "--untracked-files=no", folder=folder)
    return f"{commit} dirty" if changed else commit


def _git(*arguments: str, folder: Path) -> str:
    try:
        done = subprocess.run(  # noqa: S603  (fixed arguments, no shell)
            ["git", *arguments],  # noqa: S607  (whichever git the user has)
            cwd=folder,
            capture_output=True,
            text=True,
            timeout=10,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout.strip() if done.returncode == 0 else ""


def _job_of_this_process() -> str | None:
    """Ray's submission id in a driver started by `ray job submit`, otherwise the job id that workers have."""
    try:
        submitted = json.loads(os.environ.get("RAY_JOB_CONFIG_JSON_ENV_VAR", "{}"))
        submission_id = submitted["metadata"]["job_submission_id"]
    except (ValueError, KeyError, TypeError):
        return os.environ.get("RAY_JOB_ID")
    return str(submission_id)
