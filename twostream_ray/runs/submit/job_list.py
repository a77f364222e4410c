"""Ray Jobs of a cluster as table rows, and stopping a running one."""

from __future__ import annotations

import time
from datetime import datetime, timedelta

from twostream_ray.errors import ClusterError
from twostream_ray.runs.submit.dashboard import ENDED, Dashboard, Job
from twostream_ray.runs.submit.job_logs import exit_code

_LOOK_EVERY_S = 0.5
_PENDING_S = 5.0


def row_of(job: Job) -> list[str]:
    """Name, status (with the exit code if it failed), start, and duration."""
    started, ended = job.get("start_time") or 0, job.get("end_time") or time.time() * 1000
    since = datetime.fromtimestamp(started / 1000).strftime("%Y-%m-%d %H:%M:%S")
    took = timedelta(seconds=max(0, round((ended - started) / 1000)))
    failed = f" ({exit_code(job)})" if job["status"] == "FAILED" else ""
    return [str(job["submission_id"]), f"{job['status']}{failed}", since, str(took)]


def stop(job: Job, dashboard: Dashboard, *, timeout_s: float) -> Job:
    """Stop a job and wait for its end; an ended job is returned as it is, one that has not started may stay PENDING.

    To a job that waits for resources Ray delivers the request when it starts.

    Raises:
        ClusterError: it has not ended within `timeout_s`; no second signal is sent.
    """
    name = str(job["submission_id"])
    if job["status"] in ENDED:
        return job
    dashboard.stop(name)
    deadline = time.monotonic() + (timeout_s if job["status"] == "RUNNING" else min(timeout_s, _PENDING_S))
    while (job := dashboard.job(name))["status"] not in ENDED:
        if time.monotonic() > deadline and job["status"] == "PENDING":
            return job
        if time.monotonic() > deadline:
            raise ClusterError(
                f"the job {name} was requested to stop and still runs after {timeout_s:g} s: `twostream jobs` shows "
                "when it has ended"
            )
        time.sleep(_LOOK_EVERY_S)
    return job
