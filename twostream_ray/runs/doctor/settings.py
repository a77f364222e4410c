"""Settings of `doctor`: those of the training to diagnose, and the cluster."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from twostream_ray.data.loading.settings import DataConfig
from twostream_ray.runs.experiment import ExperimentConfig
from twostream_ray.settings.bounds import require_within


@dataclass(frozen=True, kw_only=True)
class DoctorConfig(ExperimentConfig):
    """Checks whether a training with these settings works on a cluster, how fast it will be, and its bottleneck."""

    name: str = "doctor"
    """Name of the run; nothing is stored under it."""

    data: DataConfig = field(default_factory=lambda: DataConfig(shards=""))
    """Shards, splits and how samples are drawn; without data.shards only the nodes are checked."""

    address: str | None = None
    """The cluster's head, as HOST:PORT, or auto; by default RAY_ADDRESS, or else this machine."""

    speed: bool = True
    """Measure speed too, with as many workers as the training would have: takes minutes, on the training's GPUs. Needs
    data.shards."""

    probe_seconds: float = 3.0
    """Least seconds of each measurement; longer ones are more stable on a busy machine."""

    price: float | None = None
    """Price of one GPU for an hour, or of one worker without GPUs, in any currency, to show an epoch's cost."""

    format: Literal["text", "json"] = "text"
    """text: tables; json: one JSON object, for programs (--json for short)."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require_within(self, probe_seconds="(0, 600]", price="[0, 1e6]")
