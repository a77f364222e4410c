"""Settings of the worker processes that train and score: how many, their checkpoints and restarts."""

from __future__ import annotations

from dataclasses import dataclass

from twostream_ray.errors import ConfigError
from twostream_ray.settings.bounds import require_within


@dataclass(frozen=True, kw_only=True)
class WorkersConfig:
    """The processes that train, each with its share of every batch."""

    num_workers: int | tuple[int, int] | None = None
    """Data-parallel workers; by default one per GPU of the cluster, or 2 where there is none. [MIN, MAX]: as many as
    the cluster has room for, while it grows and shrinks; the samples of a step stay the same."""

    cpus_per_worker: float | None = None
    """CPUs a worker reserves; by default its share of half the cluster's CPUs: reading needs the rest."""

    max_failures: int = 3
    """Restarts from the last checkpoint after a worker or node is lost, before the run fails."""

    checkpoint_every_steps: int | None = None
    """Steps from one checkpoint to the next within an epoch; by default there is one at the end of each epoch."""

    keep_checkpoints: int = 2
    """The best on the validation split (without one the newest) that are kept, besides the last."""

    timeout_s: float = 600.0
    """Seconds that workers wait for one that has stopped answering before they start again from the last checkpoint;
    more than a step, the compilation before the first and a validation pass take."""

    def __post_init__(self) -> None:
        require_within(
            self,
            "workers.",
            num_workers="[1, 100_000]",
            cpus_per_worker="(0, 10_000]",
            max_failures="[0, 1_000_000]",
            checkpoint_every_steps="[1, 1_000_000_000]",
            keep_checkpoints="[1, 1_000_000]",
            timeout_s="(0, 1e7]",
        )
        if isinstance(self.num_workers, tuple) and self.num_workers[0] > self.num_workers[1]:
            raise ConfigError(f"workers.num_workers as [MIN, MAX] wants MIN at most MAX, got {self.num_workers}")

    def most_workers(self, *, gpus: int) -> int:
        """Workers to plan for on a cluster with so many GPUs."""
        return max(self.num_workers) if isinstance(self.num_workers, tuple) else self.num_workers or gpus or 2
