"""Settings of worker processes that train and score: number, resources, checkpoints and restarts."""

from __future__ import annotations

from dataclasses import dataclass

from twostream_ray.errors import ConfigError
from twostream_ray.settings.bounds import require_within


@dataclass(frozen=True, kw_only=True)
class WorkersConfig:
    """Data-parallel training processes, each with its share of every batch."""

    num_workers: int | tuple[int, int] | None = None
    """Data-parallel workers; by default one per GPU of the cluster, or 2 without GPUs. [MIN, MAX] (elastic): as many
    as the cluster has room for, while it grows and shrinks; the samples of a step stay the same."""

    cpus_per_worker: float | None = None
    """CPUs that a worker reserves; by default its share of half the cluster's CPUs, as reading needs the rest."""

    max_failures: int = 3
    """Restarts from the last checkpoint after a worker or node is lost, before the run fails."""

    checkpoint_every_steps: int | None = None
    """Steps between checkpoints within an epoch; by default there is only one at the end of each epoch."""

    keep_checkpoints: int = 2
    """Checkpoints to keep besides the last: the best on the validation split, or without one the newest."""

    timeout_s: float = 600.0
    """Seconds that workers wait for one that does not answer before they restart from the last checkpoint; must exceed
    a step, the compilation before the first step, and a validation pass."""

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
