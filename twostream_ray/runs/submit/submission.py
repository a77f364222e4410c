"""Ray Jobs submission of a verb: validated, packaged, described and started; or an earlier job resubmitted."""

from __future__ import annotations

import getpass
import json
import os
import platform
import re
import shlex
import socket
import time
from collections.abc import Collection, Sequence
from contextlib import suppress
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

from twostream_ray.errors import ClusterError, ConfigError
from twostream_ray.redaction import has_credentials
from twostream_ray.runs.submit.dashboard import ENDED, Dashboard, Job, is_loopback
from twostream_ray.runs.submit.job_environment import JobEnvironment, job_environment
from twostream_ray.runs.submit.settings import SubmitConfig
from twostream_ray.runs.submit.working_directory import Package, pack
from twostream_ray.settings.recipe_text import read_recipe

_ARGUMENTS, _DRIVER, _FOLDER = "twostream.arguments", "twostream.driver", "twostream.folder"
_BY, _COMMIT = "twostream.by", "twostream.commit"
"""Keys of a job's metadata: what is needed to resubmit it, as Ray does not return the whole request, and its owner."""
_NAME = re.compile(r"[^A-Za-z0-9_.-]+")
_MODULE = "twostream_ray"
_MOST_BYTES = 500_000_000


@dataclass(frozen=True, kw_only=True)
class Submission:
    """A job ready to be submitted."""

    request: dict[str, Any]
    """Body of the request to Ray's REST interface."""
    package: Package | None
    """Package to upload; None if the cluster still has it."""
    environment: JobEnvironment | None
    """Variables sent from this shell; None if they are an earlier job's."""
    notes: tuple[str, ...] = ()
    """Notes for the user, one sentence each."""

    @property
    def name(self) -> str:
        """The job's name on the cluster."""
        return str(self.request["submission_id"])

    def lines(self, dashboard: Dashboard, *more: tuple[str, str]) -> list[str]:
        """The submission as text: what will be sent where, and the rows `more`."""
        rows = [("job", f"{self.name}: {self.request['entrypoint']}"), ("dashboard", dashboard.url)]
        if self.package is not None:
            rows.append(
                ("uploads", f"{len(self.package.names)} files, {len(self.package.content) / 1e6:.1f} MB packed")
            )
        if self.environment is not None:
            shown = [
                name + " (secret)" * (name in self.environment.secrets)
                for name in self.environment.variables
                if not name.startswith("RAY_")
            ]
            rows.append(("environment", ", ".join(shown) or "nothing of this shell"))
            commit = self.environment.variables.get("TWOSTREAM_GIT_COMMIT", "unknown, as this is not a git repository")
            rows.append(("commit", commit))
        rows.extend(more)
        width = max(len(name) for name, _ in rows)
        noted = (*(self.package.notes if self.package else ()), *(self.environment.notes if self.environment else ()))
        return [f"{name:<{width}}  {value}" for name, value in rows] + [
            f"note: {note}" for note in (*self.notes, *noted)
        ]


def prepare(
    verb: str, arguments: Sequence[str], config: SubmitConfig, dashboard: Dashboard, *, run: str = ""
) -> Submission:
    """Validate and package a job without sending it.

    Args:
        verb: the verb, of one word or two.
        arguments: its arguments.
        config: how it is submitted.
        dashboard: the cluster.
        run: name of the run, from which the job's is made.

    Raises:
        ConfigError: a variable is not set, the working directory is too large, an argument holds a password.
        ClusterError: the cluster cannot be reached, rejects the token, or has other versions.
    """
    refuse_passwords(arguments)
    require_versions(dashboard, other_versions=config.other_versions)
    nodes = dashboard.nodes()
    require_gpus(nodes, dashboard, config)
    environment = job_environment(
        variables=config.variables, secrets=config.secrets, is_here=all(_is_own(one.get("node_ip")) for one in nodes)
    )
    package = pack(Path(config.working_dir), exclude=config.exclude, limit_bytes=int(config.upload_mb * 1e6))
    arguments = with_inline_recipes(arguments, folder=Path(config.working_dir), uploaded=package.names)
    stamp = time.strftime("%Y%m%d-%H%M%S")
    driver = {"entrypoint_num_cpus": config.driver_cpus or None, "entrypoint_num_gpus": config.driver_gpus or None}
    name = config.job or "-".join(part for part in (_NAME.sub("-", verb), _NAME.sub("-", run)[:60], stamp) if part)
    return Submission(
        request={
            "submission_id": name,
            "entrypoint": shlex.join([config.python, "-m", _MODULE, *verb.split(), *arguments]),
            "runtime_env": {"working_dir": package.uri, "env_vars": environment.variables},
            "metadata": {
                _ARGUMENTS: json.dumps([verb, *arguments]),
                _FOLDER: str(Path(config.working_dir).absolute()),
                _BY: _person(),
                _DRIVER: json.dumps(driver),
                _COMMIT: environment.variables.get("TWOSTREAM_GIT_COMMIT", ""),
            },
            **driver,
        },
        package=package,
        environment=environment,
    )


def with_inline_recipes(arguments: Sequence[str], *, folder: Path, uploaded: Collection[str] = ()) -> list[str]:
    """The arguments, with recipe files of this machine replaced by their content, except those that are uploaded.

    Raises:
        ConfigError: one cannot be read.
    """
    found = list(arguments)
    for number, argument in enumerate(arguments):
        option, equals, value = argument.partition("=")
        if option != "--config" or (not equals and number + 1 == len(found)):
            continue
        value = value if equals else found[number + 1]
        path = Path(value)
        if value.lstrip().startswith("{") or not path.is_file():
            continue  # settings themselves, or the name of a recipe of the package
        inside = not path.is_absolute() and folder.absolute() == Path.cwd()
        if inside and path.as_posix().removeprefix("./") in uploaded:
            continue
        text = json.dumps(read_recipe(value).values)
        found[number if equals else number + 1] = f"--config={text}" if equals else text
    return found


def refuse_lost_results(settings: Any) -> None:
    """Refuse results in a relative path: it would be in the job's copy of the working directory, which Ray deletes.

    Raises:
        ConfigError: a setting names one.
    """
    for name in ("storage", "out"):
        path = getattr(settings, name, None)
        if isinstance(path, str) and not path.startswith(("s3://", "/")):
            raise ConfigError(
                f"{name} is {path}, which would be in the copy of the job's working directory that Ray deletes: set "
                f"--{name} to s3://BUCKET/PREFIX or to an absolute path that all nodes see"
            )


def send(submission: Submission, dashboard: Dashboard) -> str:
    """Upload the package if the cluster lacks it, start the job, and return its name.

    Raises:
        ConfigError: the cluster already has a job of that name.
        ClusterError: the cluster cannot be reached, or refuses it.
    """
    package = submission.package
    if package is not None and not dashboard.has_package(package.name):
        dashboard.upload(package.name, package.content)
    return dashboard.submit(submission.request)


def refuse_passwords(arguments: Sequence[str]) -> None:
    """Refuse arguments that contain a password: the cluster shows a job's command to anyone who may list jobs.

    Raises:
        ConfigError: one contains a password.
    """
    for argument in arguments:
        if has_credentials(argument.partition("=")[2] if argument.startswith("--") else argument):
            raise ConfigError(
                "a setting contains a password, which the cluster would show in the job's command: put it in the "
                "environment (MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD) and name that in --secrets"
            )


def require_versions(dashboard: Dashboard, *, other_versions: bool) -> None:
    """Refuse a cluster with another version of Ray or Python, with which this package was not tested.

    Raises:
        ClusterError: its versions differ.
    """
    theirs = dashboard.versions()
    ours = {"ray": version("ray"), "python": platform.python_version()}
    different = [
        f"{name.capitalize()} {theirs[name]} there, {ours[name]} here"
        for name in ours
        if name in theirs and _series(theirs[name], name) != _series(ours[name], name)
    ]
    if different and not other_versions:
        raise ClusterError(
            f"the Ray cluster {dashboard.url} has other versions ({'; '.join(different)}): build its image from "
            "cluster/Dockerfile, install this package's versions there, or try it with --other_versions"
        )


def require_gpus(nodes: Sequence[dict[str, Any]], dashboard: Dashboard, config: SubmitConfig) -> None:
    """Refuse a job that wants more GPUs than the cluster has, unless an autoscaler may bring nodes.

    Raises:
        ClusterError: it has too few.
    """
    found = sum(one.get("resources_total", {}).get("GPU", 0.0) for one in nodes)
    wanted = max(config.gpus or 0, config.driver_gpus)
    if wanted > found and not may_grow(nodes, dashboard):
        raise ClusterError(
            f"the job wants {wanted:g} GPUs, the Ray cluster {dashboard.url} has {found:g} on {len(nodes)} nodes and "
            "no autoscaler that brings any: add nodes with GPUs, or leave gpus out to train on CPUs"
        )


def may_grow(nodes: Sequence[dict[str, Any]], dashboard: Dashboard) -> bool:
    """Whether the cluster has an autoscaler, by the node types that it names."""
    report = dashboard.autoscaler_status().get("autoscalerReport") or {}
    # Ray's interface rewrites the keys of its JSON, but not the values.
    kinds = (report.get("nodeTypeMapping") or {}).values()
    labelled = any("ray.io/node-group" in (one.get("labels") or {}) for one in nodes)
    return labelled or any(not kind.startswith("node_") for kind in kinds)


def resubmission(job: Job, dashboard: Dashboard) -> Submission:
    """The same job again, for a run that resumes by its name.

    With the files that it had if the cluster still keeps them, otherwise with those of this machine.

    Raises:
        ConfigError: it has not ended, or was not submitted by this package.
        ClusterError: the cluster cannot be reached.
    """
    name, metadata = str(job["submission_id"]), job.get("metadata") or {}
    if job["status"] not in ENDED:
        raise ConfigError(
            f"the job {name} is {job['status']}, so there is nothing to resume: `twostream jobs logs {name}`"
        )
    if _ARGUMENTS not in metadata:
        raise ConfigError(
            f"the job {name} was not submitted by `twostream submit`, so its command is unknown: submit it again"
        )
    stamp = time.strftime("%Y%m%d-%H%M%S")
    fresh = f"{re.sub(r'-[0-9]{8}-[0-9]{6}$', '', name)}-{stamp}"
    runtime = job.get("runtime_env") or {}
    uri = str(runtime.get("working_dir", ""))
    request = {
        "submission_id": fresh,
        "entrypoint": job["entrypoint"],
        "runtime_env": {"working_dir": uri, "env_vars": runtime.get("env_vars") or {}},
        "metadata": metadata,
        **json.loads(metadata.get(_DRIVER, "{}")),
    }
    if dashboard.has_package(uri.removeprefix("gcs://")):
        return Submission(request=request, package=None, environment=None)
    folder = Path(metadata.get(_FOLDER, "."))
    folder = folder if folder.is_dir() and metadata.get(_BY) == _person() else Path.cwd()
    package = pack(folder, limit_bytes=_MOST_BYTES)
    note = f"the cluster no longer has the files of {name}: the current ones of {folder} are sent instead"
    request["runtime_env"]["working_dir"] = package.uri
    return Submission(request=request, package=package, environment=None, notes=(note,))


def _series(text: str, name: str) -> str:
    """The part of a version that must be the same: all of Ray's, major and minor of Python's."""
    return text if name == "ray" else ".".join(text.split(".")[:2])


def _person() -> str:
    with suppress(OSError, KeyError):
        return f"{getpass.getuser()}@{socket.gethostname()}"
    return f"{os.getuid()}@{socket.gethostname()}"


def _is_own(address: Any) -> bool:
    """Whether an IP address is this machine's."""
    import psutil

    if is_loopback(str(address)):
        return True
    own = {one.address for many in psutil.net_if_addrs().values() for one in many}
    return str(address) in own
