"""Settings of submitted jobs (Ray Jobs, KubeRay): the cluster, what is sent, the resources."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Literal

from twostream_ray.errors import ConfigError
from twostream_ray.settings.bounds import require_within
from twostream_ray.settings.names import require_name

_VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")


@dataclass(frozen=True, kw_only=True)
class SubmitConfig:
    """A verb as a job on a Ray cluster; all other settings are the verb's."""

    verb: str
    """The verb to run on the cluster, followed by its settings."""

    address: str | None = None
    """The cluster's dashboard, as in http://HOST:8265; by default RAY_API_SERVER_ADDRESS, or else port 8265 of this
    machine, to which `ray dashboard` and `kubectl port-forward` forward a cluster's."""

    job: str | None = None
    """Name of the job, unique on the cluster; by default made of verb, run and time."""

    follow: bool = True
    """Print the job's log until it ends, and end with its exit code; otherwise end as soon as it is submitted."""

    working_dir: str = "."
    """Folder whose files are uploaded: those that git tracks or would track, outside a repository all but hidden files
    and results. The job's relative paths are relative to it. This package is uploaded in any case."""

    exclude: list[str] = field(default_factory=list)
    """Files of working_dir not to upload: shell patterns that match a path or any part of it."""

    upload_mb: float = 100.0
    """Most MB to upload, packed; more than 0 and up to 500, Ray's own limit."""

    variables: list[str] = field(default_factory=list)
    """Names of further environment variables to send, besides addresses and regions of MLflow and S3."""

    secrets: list[str] = field(default_factory=list)
    """Names of environment variables with passwords and keys to send, for a cluster whose nodes have none of their own.
    Anyone who may list the cluster's jobs can see them, and its nodes' logs keep them."""

    python: str = "python"
    """The interpreter on the cluster's nodes, by name or path."""

    driver_cpus: float = 0.0
    """CPU cores reserved for the job's own process; with 0 it shares the head with others."""

    driver_gpus: float = 0.0
    """GPUs reserved for the job's own process, for a verb that computes in it, such as `evaluate`."""

    gpus: int | None = None
    """GPUs that the cluster must have; the job is refused if it has fewer and no autoscaler can add them. With kuberay:
    those of its GPU node."""

    price: float | None = None
    """Price of a GPU for an hour, in any currency, to estimate the cost."""

    other_versions: bool = False
    """Submit even if the cluster has another version of Ray or Python than this machine."""

    kuberay: str | None = None
    """File to write a KubeRay RayJob to, an ephemeral cluster for this job; then nothing is submitted."""

    image: str | None = None
    """Image of the RayJob's nodes, built from cluster/Dockerfile; required with kuberay. The job runs its code."""

    def __post_init__(self) -> None:
        require_within(
            self,
            upload_mb="(0, 500]",
            driver_cpus="[0, 10_000]",
            driver_gpus="[0, 10_000]",
            gpus="[1, 100_000]",
            price="[0, 1e6]",
        )
        if self.job is not None:
            require_name(self.job, setting="job")
        for setting in ("variables", "secrets"):
            for name in getattr(self, setting):
                if not _VARIABLE.fullmatch(name):
                    raise ConfigError(f"{setting} wants names of environment variables, got {name.partition('=')[0]!r}")
        if self.kuberay is not None and self.image is None:
            raise ConfigError("kuberay wants image as well: --image REGISTRY/NAME:TAG, built from cluster/Dockerfile")


@dataclass(frozen=True, kw_only=True)
class JobsConfig:
    """Jobs of a Ray cluster."""

    action: Literal["list", "logs", "stop", "resume", "why"] = "list"
    """list: all jobs; logs: a job's output until it ends, and its exit code; stop: end it, keeping what is finished;
    resume: submit an ended job again, which continues its run; why: what a job is waiting for."""

    job: str | None = None
    """Name of the job; by default the last one."""

    address: str | None = None
    """The cluster's dashboard, as for `submit`."""

    follow: bool = True
    """Of logs and resume: print the log until the job ends, and end with its exit code."""

    stop_seconds: float = 300.0
    """Of stop: seconds to wait for the job's end, in [0, 86400]."""

    def __post_init__(self) -> None:
        require_within(self, stop_seconds="[0, 86_400]")
        if self.job is not None:
            require_name(self.job, setting="job")
        if self.action == "list" and self.job is not None:
            raise ConfigError(f"list wants no job, got {self.job}: `twostream jobs logs {self.job}` shows one")
