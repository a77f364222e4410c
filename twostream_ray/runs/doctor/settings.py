"""Settings of `doctor`: those of the training that it is asked about, and where it looks."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from twostream_ray.data.loading.settings import DataConfig
from twostream_ray.runs.experiment import ExperimentConfig
from twostream_ray.settings.bounds import require_within


@dataclass(frozen=True, kw_only=True)
class DoctorConfig(ExperimentConfig):
    """Whether a training of these settings can work on a cluster, how fast it will be, and what holds it back."""

    name: str = "doctor"
    """Name of the logical run; nothing is kept under it."""

    data: DataConfig = field(default_factory=lambda: DataConfig(shards=""))
    """Shards, splits and how samples are drawn; without data.shards only the nodes are looked at."""

    address: str | None = None
    """The cluster's head, as HOST:PORT, or auto; by default what RAY_ADDRESS names, and without that this machine."""

    speed: bool = True
    """Measure speed too, with as many workers as the training would have: minutes, on the GPUs that it would take. It
    wants data.shards."""

    probe_seconds: float = 3.0
    """Seconds of each measurement, at least; longer ones are steadier on a busy machine."""

    price: float | None = None
    """What one GPU costs an hour, or one worker where there is none, in any currency: an epoch's cost is shown."""

    format: Literal["text", "json"] = "text"
    """text: tables; json: one JSON object, for programs (--json for short)."""

    def __post_init__(self) -> None:
        # Without super(): a slot of a frozen dataclass's parent is found by its name.
        ExperimentConfig.__post_init__(self)
        require_within(self, probe_seconds="(0, 600]", price="[0, 1e6]")
