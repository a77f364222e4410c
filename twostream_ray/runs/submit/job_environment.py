"""Environment variables of a job: addresses of services are sent, secrets only if named, local addresses never."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from urllib.parse import urlsplit

from twostream_ray.errors import ConfigError
from twostream_ray.redaction import has_credentials, is_secret_name
from twostream_ray.runs.submit.dashboard import is_loopback
from twostream_ray.tracking.lineage import git_commit

_ADDRESSES = (
    *("MLFLOW_TRACKING_URI", "MLFLOW_REGISTRY_URI", "MLFLOW_S3_ENDPOINT_URL"),
    *("AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL_S3", "AWS_DEFAULT_REGION", "AWS_REGION"),
)
"""Sent if they are set: without them a job would use other services than the same command on this machine."""

_CREDENTIALS = (
    *("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN"),
    *("MLFLOW_TRACKING_USERNAME", "MLFLOW_TRACKING_PASSWORD", "MLFLOW_TRACKING_TOKEN"),
)
_SECRETS = frozenset(_CREDENTIALS)
_OF_THIS_MACHINE = re.compile(
    r"(?:RAY_(?!TRAIN_|DATA_|JOB_STOP_)\w+|PATH|HOME|USER|PWD|SHELL|TMPDIR|PYTHON\w+|VIRTUAL_ENV|LD_LIBRARY_PATH"
    r"|CUDA_VISIBLE_DEVICES|AWS_PROFILE|AWS_CONFIG_FILE|AWS_SHARED_CREDENTIALS_FILE)"
)
"""On a node they would break Ray's own processes, or name files of this machine."""

_EVERYWHERE = "0.0.0.0"  # noqa: S104  (a value that is recognised)
_STOP_SECONDS = "300"
"""By default Ray kills a stopping job after 3 s, before a training has written its checkpoint."""


@dataclass(frozen=True, kw_only=True)
class JobEnvironment:
    """Environment variables that a job's processes get in addition to the nodes' own."""

    variables: dict[str, str]
    """Values by name, secrets included."""
    secrets: tuple[str, ...]
    """Names of the secret ones."""
    notes: tuple[str, ...]
    """What was not sent, one sentence each."""


def job_environment(*, variables: Sequence[str], secrets: Sequence[str], is_here: bool) -> JobEnvironment:
    """The variables to send with a job.

    Args:
        variables: names of further variables.
        secrets: names of variables with passwords and keys.
        is_here: whether the cluster is on this machine, so that local addresses mean the same there.

    Raises:
        ConfigError: a named variable is not set, is specific to this machine, or is a secret not named in `secrets`.
    """
    found, notes = {}, []
    for name in dict.fromkeys((*variables, *secrets)):
        _require(name, secret=name in secrets)
        found[name] = os.environ[name]
    for name in _ADDRESSES:
        value = os.environ.get(name, "").strip()
        if not value or name in found:
            continue
        if has_credentials(value):
            raise ConfigError(
                f"{name} holds a password, which the cluster would show with the job: put it in "
                "MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD, or send it all the same by "
                f"--secrets {name}"
            )
        if not is_here and _is_local_address(value):
            notes.append(f"{name} is {value}, which means this machine, so it is not sent: the nodes use their own")
        else:
            found[name] = value
    left = [name for name in _CREDENTIALS if os.environ.get(name) and name not in found]
    if left:
        are = "is" if len(left) == 1 else "are"
        notes.append(f"{', '.join(left)} {are} not sent, the nodes use their own: --secrets sends them")
    found |= {"TWOSTREAM_GIT_COMMIT": git_commit() or "", "RAY_JOB_STOP_WAIT_TIME_S": _STOP_SECONDS}
    return JobEnvironment(
        variables={name: value for name, value in found.items() if value},
        secrets=tuple(name for name in found if name in secrets),
        notes=tuple(notes),
    )


def _require(name: str, *, secret: bool) -> None:
    if _OF_THIS_MACHINE.fullmatch(name):
        raise ConfigError(f"{name} is specific to this machine and cannot be sent: set it on the cluster's nodes")
    if not os.environ.get(name):
        kind, setting = ("a secret", "secrets") if secret else ("a variable", "variables")
        raise ConfigError(
            f"{setting} names {name}, {kind} that is not set: export {name}=..., or leave it out of --{setting}"
        )
    if not secret and (name in _SECRETS or is_secret_name(name) or has_credentials(os.environ[name])):
        raise ConfigError(
            f"variables names {name}, which is a secret: name it in --secrets, whose help says who can see it"
        )


def _is_local_address(value: str) -> bool:
    """Whether an address is a path, a file or a port of this machine."""
    parts = urlsplit(value if "://" in value else f"file://{value}") if "/" in value or ":" in value else None
    if parts is None:
        return False
    return parts.scheme in ("file", "sqlite") or parts.hostname == _EVERYWHERE or is_loopback(parts.hostname or "")
