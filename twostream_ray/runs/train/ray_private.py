"""Ray Train's and Ray Tune's private interfaces, all that this package uses; imported only when a training starts.

Each is named in tests/runs/train/test_ray_private.py, so that a change of Ray is found there first. Those of Ray itself
are in `runs.cluster.ray_private`.
"""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ray
from ray.train.torch import TorchConfig, TorchTrainer
from ray.train.torch.config import _set_torch_distributed_env_vars, _setup_torch_process_group, _TorchBackend
from ray.train.v2._internal.callbacks import BackendSetupCallback, DatasetsCallback
from ray.train.v2._internal.execution.failure_handling import DefaultFailurePolicy

from twostream_ray.errors import is_final
from twostream_ray.runs.cluster.private_cluster import private_folder


def process_group_config(*, timeout_s: float) -> TorchConfig:
    """Settings of the workers' process group; one that waits longer than `timeout_s` seconds for another gives up.

    On a private cluster workers meet in a file. Without that PyTorch's store listens on all addresses of the machine.
    """
    folder = private_folder()
    if folder is None:
        return TorchConfig(timeout_s=timeout_s)
    return _FileConfig(timeout_s=timeout_s, folder=str(folder))


@dataclass
class _FileConfig(TorchConfig):
    """Ray's own, except that the process group's store is a file."""

    folder: str = ""

    @property
    def backend_cls(self) -> Any:
        return _FileBackend


class _FileBackend(_TorchBackend):
    def on_start(self, worker_group: Any, backend_config: Any) -> None:
        backend = "nccl" if worker_group.get_resources_per_worker().get("GPU", 0) else "gloo"
        worker_group.execute(_set_torch_distributed_env_vars)
        # A group that starts again must not find what the one before it has written.
        path = Path(backend_config.folder) / f"process-group-{uuid.uuid4().hex}"
        begun = [
            worker_group.execute_single_async(
                rank,
                _setup_torch_process_group,
                backend=backend,
                world_rank=rank,
                world_size=len(worker_group),
                init_method=f"file://{path}",
                timeout_s=backend_config.timeout_s,
            )
            for rank in range(len(worker_group))
        ]
        ray.get(begun)


class Trainer(TorchTrainer):
    """Ray's trainer, except for four habits.

    Ctrl-C stays a KeyboardInterrupt: Ray would end the process with exit code 1. No actor hands out parts of datasets
    that nobody passed: its process would import Ray Data whenever workers start, beside them. Workers are not asked
    to leave their process group before they are killed: one that is lost or hangs would be waited for. And what
    starting again does not mend ends the run at once.
    """

    def _create_default_callbacks(self) -> list[Any]:
        return [
            _BackendSetup(self.backend_config) if isinstance(each, BackendSetupCallback) else each
            for each in super()._create_default_callbacks()
            if not isinstance(each, DatasetsCallback)
        ]

    def _initialize_and_run_controller(self, **controller_init_kwargs: Any) -> Any:
        policy = FailurePolicy(self.run_config.failure_config)
        return super()._initialize_and_run_controller(**controller_init_kwargs | {"failure_policy": policy})

    def _register_sigint_handler(self, controller: Any) -> None:
        pass


class FailurePolicy(DefaultFailurePolicy):
    """Ray's own, except that a wrong setting or a damaged file is not taken for a lost node.

    Without that a run starts again as often as workers.max_failures allows, and meets the same error each time.
    """

    def _is_retryable_error(self, training_failed_error: Any) -> bool:
        failures = getattr(training_failed_error, "worker_failures", {})
        return super()._is_retryable_error(training_failed_error) and not any(map(is_final, failures.values()))


class _BackendSetup(BackendSetupCallback):
    """Makes the process group of the workers; it ends with their processes."""

    def before_execution_group_shutdown(self, execution_group: Any) -> None:
        pass


@contextmanager
def only_ray_variables_in_trials() -> Iterator[None]:
    """Tune passes only Ray's environment variables to its trials while the block runs.

    Without that it sends the keys of object stores too, in the trials' runtime environment, which Ray writes to its
    logs in clear.
    """
    from ray.tune.execution import class_cache  # here: a training has no use for Tune

    names = class_cache.ENV_VARS_TO_PROPAGATE
    class_cache.ENV_VARS_TO_PROPAGATE = {name for name in names if name.startswith("RAY_")}
    try:
        yield
    finally:
        class_cache.ENV_VARS_TO_PROPAGATE = names
