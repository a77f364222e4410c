"""Private interfaces of Ray Train and Ray Tune that this package uses; imported only when a training starts.

tests/runs/train/test_ray_private.py names each, so that a change in Ray is found there first. Those of Ray Core are in
`runs.cluster.ray_private`.
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
from ray.train.v2._internal.callbacks.placement_group_callback import PlacementGroupCleanerCallback
from ray.train.v2._internal.execution.failure_handling import DefaultFailurePolicy
from ray.train.v2._internal.execution.scaling_policy import FixedScalingPolicy

from twostream_ray.errors import is_final
from twostream_ray.runs.cluster.private_cluster import private_folder
from twostream_ray.runs.cluster.session import lacks_dashboard


def process_group_config(*, timeout_s: float) -> TorchConfig:
    """Settings of the workers' torch process group; a worker waits at most `timeout_s` seconds for another.

    On a private cluster the rendezvous is a file: PyTorch's TCP store would listen on all addresses of the machine.
    """
    folder = private_folder()
    if folder is None:
        return TorchConfig(timeout_s=timeout_s)
    return _FileConfig(timeout_s=timeout_s, folder=str(folder))


@dataclass
class _FileConfig(TorchConfig):
    """Ray's TorchConfig with a file as the process group's store."""

    folder: str = ""

    @property
    def backend_cls(self) -> Any:
        return _FileBackend


class _FileBackend(_TorchBackend):
    def on_start(self, worker_group: Any, backend_config: Any) -> None:
        backend = "nccl" if worker_group.get_resources_per_worker().get("GPU", 0) else "gloo"
        worker_group.execute(_set_torch_distributed_env_vars)
        # A restarted group must not find what the one before it wrote.
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
    """Ray's TorchTrainer with six changes.

    Ctrl-C stays a KeyboardInterrupt: Ray would end the process with exit code 1. No actor splits datasets, as none are
    passed: its process would import Ray Data whenever workers start. Workers are not asked to leave their process group
    before they are killed: Ray would wait for one that is lost or hangs. Without a dashboard no actor asks it every
    second whether the controller is alive: it would get no answer, and the workers wait until it has started. On a
    private cluster no actor asks an autoscaler for the workers: there is none. And an error that a restart would not
    fix ends the run at once.
    """

    def _create_default_callbacks(self) -> list[Any]:
        useless = (DatasetsCallback, *([PlacementGroupCleanerCallback] if lacks_dashboard() else []))
        return [
            _BackendSetup(self.backend_config) if isinstance(each, BackendSetupCallback) else each
            for each in super()._create_default_callbacks()
            if not isinstance(each, useless)
        ]

    def _initialize_and_run_controller(self, **controller_init_kwargs: Any) -> Any:
        changed: dict[str, Any] = {"failure_policy": FailurePolicy(self.run_config.failure_config)}
        if private_folder() is not None and type(controller_init_kwargs["scaling_policy"]) is FixedScalingPolicy:
            changed["scaling_policy"] = ScalingPolicy(self.scaling_config)
        return super()._initialize_and_run_controller(**controller_init_kwargs | changed)

    def _register_sigint_handler(self, controller: Any) -> None:
        pass


class ScalingPolicy(FixedScalingPolicy):
    """Ray's policy for a fixed number of workers, except that it does not announce them to an autoscaler.

    By default Ray Train's controller starts an actor to do so, which imports Ray Data, and starts no worker until the
    actor has answered or 5 s have passed.
    """

    def _send_resource_request(self) -> None:
        pass

    def _maybe_send_resource_request(self) -> None:
        pass

    def _cancel_resource_request(self) -> None:
        pass


class FailurePolicy(DefaultFailurePolicy):
    """Ray's default policy, except that a wrong setting or a damaged file is not treated as a lost node.

    Otherwise the run would restart as often as workers.max_failures allows, with the same error each time.
    """

    def _is_retryable_error(self, training_failed_error: Any) -> bool:
        failures = getattr(training_failed_error, "worker_failures", {})
        return super()._is_retryable_error(training_failed_error) and not any(map(is_final, failures.values()))


class _BackendSetup(BackendSetupCallback):
    """Creates the workers' process group, and leaves it to end with their processes."""

    def before_execution_group_shutdown(self, execution_group: Any) -> None:
        pass


@contextmanager
def only_ray_variables_in_trials() -> Iterator[None]:
    """Have Tune pass only Ray's environment variables to its trials while the block runs.

    By default it also sends the credentials of object stores, in the trials' runtime environment, which Ray logs in
    plain text.
    """
    from ray.tune.execution import class_cache  # imported late: a plain training does not use Tune

    names = class_cache.ENV_VARS_TO_PROPAGATE
    class_cache.ENV_VARS_TO_PROPAGATE = {name for name in names if name.startswith("RAY_")}
    try:
        yield
    finally:
        class_cache.ENV_VARS_TO_PROPAGATE = names
