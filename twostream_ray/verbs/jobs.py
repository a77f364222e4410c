"""The subcommands `submit` and `jobs`: other verbs as Ray jobs. Heavy modules are imported when needed."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, get_type_hints

from twostream_ray.errors import ConfigError
from twostream_ray.verbs import complain, require_uri

if TYPE_CHECKING:
    from twostream_ray.runs.submit.dashboard import Dashboard
    from twostream_ray.runs.submit.settings import SubmitConfig

STAY_HERE = frozenset(
    {"submit", "jobs", "completion", "recipes", "describe", "synthesize", "doctor", "serve", "schema"}
)
"""Verbs that cannot be submitted: local ones, and those that talk to a cluster themselves."""


def submit(arguments: list[str]) -> int:
    """Submit a verb as a job to a Ray cluster."""
    from twostream_ray.console import console
    from twostream_ray.runs.submit.settings import SubmitConfig
    from twostream_ray.verbs.commands import parse, settings_class

    own, verb, rest = split_arguments(arguments)
    config = parse("submit", SubmitConfig, [verb, *own])
    kind = settings_class(verb)
    # Refused here rather than on the cluster after an upload.
    settings = None if kind is None else parse(verb, kind, rest)
    run = str(getattr(settings, "name", ""))
    from twostream_ray.runs.submit.submission import prepare, refuse_lost_results, send

    refuse_lost_results(settings)
    if config.kuberay is not None:
        return _written(verb, rest, config, run=run)
    from twostream_ray.runs.submit.dashboard import Dashboard
    from twostream_ray.runs.submit.estimate import describe_nodes, expected_use

    dashboard = Dashboard(config.address)
    submission = prepare(verb, rest, config, dashboard, run=run)
    nodes = dashboard.nodes()
    use = expected_use(settings, nodes=nodes, gpus=max(config.gpus or 0, config.driver_gpus), price=config.price)
    for line in submission.lines(dashboard, ("cluster", describe_nodes(nodes)), *use, *mlflow_of(settings, submission)):
        console.print(line)
    name = send(submission, dashboard)
    return _followed(dashboard, name, follow=config.follow)


def _written(verb: str, arguments: Sequence[str], config: SubmitConfig, *, run: str) -> int:
    """Write a RayJob instead of a submission."""
    from pathlib import Path

    from twostream_ray.console import console
    from twostream_ray.runs.outputs import refuse_foreign_files
    from twostream_ray.runs.submit.job_environment import job_environment
    from twostream_ray.runs.submit.kuberay import HEADING, manifest
    from twostream_ray.runs.submit.submission import refuse_passwords, with_inline_recipes

    path = Path(str(config.kuberay))
    refuse_passwords(arguments)
    environment = job_environment(variables=config.variables, secrets=config.secrets, is_here=False)
    arguments = with_inline_recipes(arguments, folder=Path.cwd())
    text = manifest(verb, arguments, config, environment, run=run)
    require_uri(str(path.parent), setting="the folder of kuberay")
    refuse_foreign_files(str(path.parent), [path.name], verb="submit", begins=HEADING.encode())
    path.write_text(text, encoding="utf-8")
    for note in environment.notes:
        console.print(f"note: {note}")
    console.print(f"the RayJob is in {path}: `kubectl apply -f {path}` runs it")
    return 0


def mlflow_of(settings: Any, submission: Any) -> list[tuple[str, str]]:
    """The MLflow settings of a job's verb, as (name, value); empty for a verb without MLflow."""
    tracking = getattr(settings, "tracking", None)
    if tracking is None:
        return []
    sent = submission.environment.variables.get("MLFLOW_TRACKING_URI") if submission.environment else None
    return [("MLflow", tracking.uri or sent or "by MLFLOW_TRACKING_URI of the cluster's nodes")]


def jobs(arguments: list[str]) -> int:
    """List, follow, stop or resume the jobs of a cluster."""
    from twostream_ray.console import console, table
    from twostream_ray.runs.submit.settings import JobsConfig
    from twostream_ray.verbs.commands import parse

    config = parse("jobs", JobsConfig, arguments)
    from twostream_ray.runs.submit.dashboard import Dashboard
    from twostream_ray.runs.submit.job_list import row_of, stop
    from twostream_ray.runs.submit.submission import resubmission, send
    from twostream_ray.runs.submit.waiting import reasons

    dashboard = Dashboard(config.address)
    submitted = dashboard.jobs()
    if config.action == "list":
        table(f"jobs of {dashboard.url}", ["job", "status", "since", "took"], [row_of(one) for one in submitted])
        return 0
    if config.job is None and not submitted:
        raise ConfigError(f"the Ray cluster {dashboard.url} has no jobs: `twostream submit` starts one")
    job = dashboard.job(config.job if config.job is not None else submitted[-1]["submission_id"])
    name = str(job["submission_id"])
    if config.action == "why":
        for sentence in reasons(job, dashboard):
            console.print(sentence)
        return 0
    if config.action == "stop":
        job = stop(job, dashboard, timeout_s=config.stop_seconds)
        pending = job["status"] == "PENDING"
        rest = "it ends as soon as it starts" if pending else f"`twostream jobs resume {name}` continues its run"
        console.print(f"the job {name} is {job['status']}: {rest}")
        return 0
    if config.action == "resume":
        submission = resubmission(job, dashboard)
        for line in submission.lines(dashboard):
            console.print(line)
        name = send(submission, dashboard)
    return _followed(dashboard, name, follow=config.follow)


def split_arguments(arguments: Sequence[str]) -> tuple[list[str], str, list[str]]:
    """Split into the options of `submit` itself, the verb, and the verb's arguments.

    Raises:
        ConfigError: there is no verb, or one that runs on no cluster.
    """
    from twostream_ray.runs.submit.settings import SubmitConfig
    from twostream_ray.verbs.commands import GROUPS, VERBS

    hints = get_type_hints(SubmitConfig)
    own: list[str] = []
    rest: list[str] = []
    waiting = list(arguments)
    while waiting:
        word = waiting.pop(0)
        name = word.removeprefix("--").partition("=")[0].removesuffix("+")
        if not word.startswith("--") or name not in hints:
            rest.append(word)
            continue
        own.append(word)
        is_flag = hints[name] is bool and (not waiting or waiting[0].lower() not in ("true", "false"))
        if "=" not in word and not is_flag and waiting:
            own.append(waiting.pop(0))
    size = 2 if rest[:1] and rest[0] in GROUPS else 1
    verb = " ".join(rest[:size])
    if verb not in VERBS or verb in STAY_HERE:
        wanted = ", ".join(one for one in VERBS if one not in STAY_HERE)
        raise ConfigError(f"submit wants a verb that works on a cluster ({wanted}), got {verb or 'nothing'}")
    return own, verb, rest[size:]


def _followed(dashboard: Dashboard, name: str, *, follow: bool) -> int:
    """Print a job's log until it ends; Ctrl-C leaves it running."""
    from twostream_ray.console import console
    from twostream_ray.runs.submit.job_logs import JobLog, exit_code

    where = f" --address {dashboard.url}"
    reattach = f"`twostream jobs logs {name}{where}` follows it, `twostream jobs stop {name}{where}` ends it"
    if not follow:
        console.print(f"submitted {name}: {reattach}")
        return 0
    log = JobLog(dashboard, name, write=_write, notify=lambda text: complain(text, verb="submit"))
    try:
        job = log.follow()
    except KeyboardInterrupt:
        console.print(f"the job {name} continues without this command: {reattach}")
        return 130
    return _ended(job, log, code=exit_code(job), name=name)


def _ended(job: dict[str, Any], log: Any, *, code: int, name: str) -> int:
    from twostream_ray.console import console

    if job["status"] == "SUCCEEDED":
        console.print(f"the job {name} succeeded")
    elif job["status"] == "STOPPED":
        complain(f"the job {name} was stopped: `twostream jobs resume {name}` continues its run", verb="submit")
    else:
        said = log.final_error or (job.get("message") or "").strip().rpartition("\n")[2]
        complain(f"the job {name} failed with exit code {code}: {said}", verb="submit")
    return code


def _write(line: str) -> None:
    sys.stdout.write(line + "\n")
    sys.stdout.flush()
