"""KubeRay 1.7 RayJob manifest: an ephemeral cluster for one verb, which runs the image's code."""

from __future__ import annotations

import platform
import re
import shlex
from collections.abc import Sequence
from importlib.metadata import version
from typing import Any

import yaml

from twostream_ray.errors import ConfigError
from twostream_ray.runs.submit.job_environment import JobEnvironment
from twostream_ray.runs.submit.settings import SubmitConfig

HEADING = "# RayJob of `twostream submit`: "
"""First words of the file, by which one that this package wrote is recognised."""
_LONGEST_NAME = 47
"""Of a RayJob's name: KubeRay derives the names of its cluster and services from it."""
_CODE = "/home/ray/twostream"
_SECRETS = ("twostream-mlflow", "twostream-s3")
"""Secrets of the namespace (cluster/README.md): MLflow's login, and S3 keys where pods have no role of their own."""
_NO_TELEMETRY = {"RAY_USAGE_STATS_ENABLED": "0", "MLFLOW_DISABLE_TELEMETRY": "true"}
_CPUS_A_GPU, _MEMORY_GI_A_GPU = 8, 48
_PRE_RUNNING_S = 1_800
_TTL_S, _FAILED_TTL_S = 60, 900
_IDLE_S = 300


def manifest(
    verb: str, arguments: Sequence[str], config: SubmitConfig, environment: JobEnvironment, *, run: str
) -> str:
    """The RayJob as YAML.

    Args:
        verb: the verb.
        arguments: its arguments, which name no file of this machine.
        config: how it is submitted; `image` is set.
        environment: variables to send; of secrets only the names are written.
        run: name of the run, from which the job's is made.

    Raises:
        ConfigError: the image has no tag.
    """
    image = str(config.image)
    if ":" not in image.rpartition("/")[2] and "@" not in image:
        raise ConfigError(f"image wants a tag, as REGISTRY/NAME:TAG, got {image}: without one nodes may differ")
    name = job_name(config.job or f"{verb}-{run}".rstrip("-"))
    container = _container(config, environment, secret=_secret_of(name))
    groups = [_workers("cpu-workers", container, cpus=16, memory_gi=64, most=8)]
    if config.gpus:
        cpus, memory = _CPUS_A_GPU * config.gpus, _MEMORY_GI_A_GPU * config.gpus
        groups.append(_workers("gpu-workers", container, cpus=cpus, memory_gi=memory, gpus=config.gpus))
    succeeded = {"jobStatus": "SUCCEEDED", "ttlSeconds": _TTL_S}
    failed = {"jobDeploymentStatus": "Failed", "ttlSeconds": _FAILED_TTL_S}
    values = {
        "apiVersion": "ray.io/v1",
        "kind": "RayJob",
        "metadata": {"name": name},
        "spec": {
            "submissionMode": "K8sJobMode",
            "submitterConfig": {"backoffLimit": 2},
            "entrypoint": shlex.join([config.python, "-m", "twostream_ray", *verb.split(), *arguments]),
            # The same name resumes the run, so a second attempt loses at most one epoch.
            "backoffLimit": 2,
            "preRunningDeadlineSeconds": _PRE_RUNNING_S,
            "deletionStrategy": {
                "deletionRules": [{"policy": "DeleteCluster", "condition": one} for one in (succeeded, failed)]
            },
            "rayClusterSpec": {
                "rayVersion": version("ray"),
                "authOptions": {"mode": "token"},
                "enableInTreeAutoscaling": True,
                "autoscalerOptions": {"version": "v2", "idleTimeoutSeconds": _IDLE_S},
                "headGroupSpec": {"rayStartParams": {"num-cpus": "0"}, "template": _head(container)},
                "workerGroupSpecs": groups,
            },
        },
    }
    text = yaml.dump(values, Dumper=_Dumper, sort_keys=False, width=120)
    return _heading(environment, secret=_secret_of(name)) + text


def _heading(environment: JobEnvironment, *, secret: str) -> str:
    python = ".".join(platform.python_version_tuple()[:2])
    lines = [f"KubeRay 1.7 or newer, Ray {version('ray')} and Python {python} in the image, whose code runs."]
    if environment.secrets:
        literals = " ".join(f'--from-literal={key}="${key}"' for key in environment.secrets)
        lines.append(f"First: kubectl create secret generic {secret} {literals}")
    lines.append("kubectl apply -f THIS FILE; applied again after a failure it resumes the run of that name.")
    return HEADING + "\n# ".join(lines) + "\n"


def _secret_of(name: str) -> str:
    return f"{name}-secrets"


def _container(config: SubmitConfig, environment: JobEnvironment, *, secret: str) -> dict[str, Any]:
    """The part of the container that all nodes share."""
    variables = [
        {"name": key, "valueFrom": {"secretKeyRef": {"name": secret, "key": key}}}
        if key in environment.secrets
        else {"name": key, "value": value}
        for key, value in (_NO_TELEMETRY | environment.variables).items()
        # The image's code runs, which may be of another commit.
        if key != "TWOSTREAM_GIT_COMMIT"
    ]
    return {
        "image": config.image,
        "workingDir": _CODE,
        "env": variables,
        "envFrom": [{"secretRef": {"name": one, "optional": True}} for one in _SECRETS],
        # Ray's object store is shared memory; a pod's own /dev/shm has 64 MB and would send it to disk.
        "volumeMounts": [{"name": "shared-memory", "mountPath": "/dev/shm"}],  # noqa: S108
    }


class _Dumper(yaml.SafeDumper):
    """Writes no YAML aliases, which are hard to edit."""

    def ignore_aliases(self, _: Any) -> bool:
        """YAML's hook."""
        return True


def job_name(text: str) -> str:
    """A valid Kubernetes name: lower-case letters, digits and hyphens, at most 47 characters.

    Raises:
        ConfigError: the text has no letter or digit.
    """
    name = re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")[:_LONGEST_NAME].rstrip("-")
    if not name:
        raise ConfigError(f"job wants letters or digits for the name of a RayJob, got {text!r}: --job NAME")
    return name if name[0].isalpha() else f"job-{name}"[:_LONGEST_NAME].rstrip("-")


def _head(container: dict[str, Any]) -> dict[str, Any]:
    ports = [("gcs-server", 6379), ("dashboard", 8265), ("client", 10001)]
    return _pod(
        {
            "name": "ray-head",
            **container,
            "ports": [{"containerPort": port, "name": name} for name, port in ports],
            **_resources(cpus=2, memory_gi=8),
        },
        shared_gi=2,
    )


def _workers(
    name: str, container: dict[str, Any], *, cpus: int, memory_gi: int, gpus: int = 0, most: int = 1
) -> dict[str, Any]:
    tolerations = [{"key": "nvidia.com/gpu", "operator": "Exists", "effect": "NoSchedule"}] if gpus else []
    pod = {"name": "ray-worker", **container, **_resources(cpus=cpus, memory_gi=memory_gi, gpus=gpus)}
    return {
        "groupName": name,
        "replicas": 1,
        "minReplicas": 1,
        "maxReplicas": most,
        "rayStartParams": {},
        "template": _pod(pod, shared_gi=memory_gi * 3 // 10, tolerations=tolerations),
    }


def _resources(*, cpus: int, memory_gi: int, gpus: int = 0) -> dict[str, Any]:
    amounts = {"cpu": str(cpus), "memory": f"{memory_gi}Gi"} | ({"nvidia.com/gpu": str(gpus)} if gpus else {})
    return {"resources": {"requests": amounts, "limits": dict(amounts)}}


def _pod(container: dict[str, Any], *, shared_gi: int, tolerations: Sequence[Any] = ()) -> dict[str, Any]:
    memory = {"medium": "Memory", "sizeLimit": f"{shared_gi}Gi"}
    spec = {
        "restartPolicy": "Never",
        "containers": [container],
        "volumes": [{"name": "shared-memory", "emptyDir": memory}],
    }
    return {"spec": spec | ({"tolerations": list(tolerations)} if tolerations else {})}
