"""Verbs that run others on a cluster, as jobs, and look after them. Nothing heavy is imported before it is needed."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, get_type_hints

from twostream_ray.errors import ConfigError
from twostream_ray.verbs import complain

if TYPE_CHECKING:
    from twostream_ray.runs.submit.dashboard import Dashboard

STAY_HERE = frozenset(
    {"submit", "jobs", "completion", "recipes", "describe", "synthesize", "doctor", "serve", "schema"}
)
"""Verbs that are no work for a cluster, or that speak to one themselves."""


def submit(arguments: list[str]) -> int:
    """A verb as a job on a cluster."""
    from twostream_ray.console import console
    from twostream_ray.runs.submit.settings import SubmitConfig
    from twostream_ray.verbs.commands import parse, settings_class

    own, verb, rest = split_arguments(arguments)
    config = parse("submit", SubmitConfig, [verb, *own])
    kind = settings_class(verb)
    # What the cluster would refuse after an upload is refused here.
    settings = None if kind is None else parse(verb, kind, rest)
    from twostream_ray.runs.submit.dashboard import Dashboard
    from twostream_ray.runs.submit.submission import prepare, refuse_lost_results, send

    refuse_lost_results(settings)

    dashboard = Dashboard(config.address)
    submission = prepare(verb, rest, config, dashboard, run=str(getattr(settings, "name", "")))
    for line in submission.lines(dashboard):
        console.print(line)
    name = send(submission, dashboard)
    return _followed(dashboard, name, follow=config.follow)


def jobs(arguments: list[str]) -> int:
    """Look after the jobs of a cluster."""
    from twostream_ray.console import console, table
    from twostream_ray.runs.submit.settings import JobsConfig
    from twostream_ray.verbs.commands import parse

    config = parse("jobs", JobsConfig, arguments)
    from twostream_ray.runs.submit.dashboard import Dashboard
    from twostream_ray.runs.submit.job_list import row_of, stop
    from twostream_ray.runs.submit.submission import again, send

    dashboard = Dashboard(config.address)
    submitted = dashboard.jobs()
    if config.action == "list":
        table(f"jobs of {dashboard.url}", ["job", "status", "since", "took"], [row_of(one) for one in submitted])
        return 0
    if config.job is None and not submitted:
        raise ConfigError(f"the Ray cluster {dashboard.url} has no jobs: `twostream submit` starts one")
    job = dashboard.job(config.job if config.job is not None else submitted[-1]["submission_id"])
    name = str(job["submission_id"])
    if config.action == "stop":
        job = stop(job, dashboard, patience_s=config.stop_seconds)
        console.print(f"the job {name} is {job['status']}: `twostream jobs resume {name}` continues its run")
        return 0
    if config.action == "resume":
        submission = again(job, dashboard)
        for line in submission.lines(dashboard):
            console.print(line)
        name = send(submission, dashboard)
    return _followed(dashboard, name, follow=config.follow)


def split_arguments(arguments: Sequence[str]) -> tuple[list[str], str, list[str]]:
    """The arguments of `submit` itself, the verb, and what stands behind it.

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
    log = JobLog(dashboard, name, write=_write, say=lambda text: complain(text, verb="submit"))
    try:
        job = log.follow()
    except KeyboardInterrupt:
        console.print(f"the job {name} goes on without this command: {reattach}")
        return 130
    return _ended(job, log, code=exit_code(job), name=name)


def _ended(job: dict[str, Any], log: Any, *, code: int, name: str) -> int:
    from twostream_ray.console import console

    if job["status"] == "SUCCEEDED":
        console.print(f"the job {name} succeeded")
    elif job["status"] == "STOPPED":
        complain(f"the job {name} was stopped: `twostream jobs resume {name}` continues its run", verb="submit")
    else:
        said = log.last_words or (job.get("message") or "").strip().rpartition("\n")[2]
        complain(f"the job {name} failed with exit code {code}: {said}", verb="submit")
    return code


def _write(line: str) -> None:
    sys.stdout.write(line + "\n")
    sys.stdout.flush()
