"""The process group of training workers: on a private cluster they meet in a file, not at a port open to others."""

from __future__ import annotations

import uuid
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ray
from ray.train.torch import TorchConfig
from ray.train.torch.config import _set_torch_distributed_env_vars, _setup_torch_process_group, _TorchBackend

from twostream_ray.runs.cluster.private_cluster import private_folder


def process_group_config(*, timeout_s: float) -> TorchConfig:
    """How workers form their group; one that waits longer than `timeout_s` seconds for another gives up."""
    folder = private_folder()
    if folder is None:
        return TorchConfig(timeout_s=timeout_s)
    return _FileConfig(timeout_s=timeout_s, folder=str(folder))


@dataclass
class _FileConfig(TorchConfig):
    """Ray's own, except that PyTorch's store, which listens on all addresses of a machine, is a file."""

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
