"""Settings of an ablation of the streams: those of a training, and what is trained besides."""

from __future__ import annotations

from dataclasses import dataclass

from twostream_ray import storage
from twostream_ray.errors import ConfigError
from twostream_ray.runs.experiment import ExperimentConfig, refuse_dry_run


@dataclass(frozen=True, kw_only=True)
class AblationConfig(ExperimentConfig):
    """Each stream alone, their late fusion and the recipe's network, trained on the same clips: what motion adds.

    Runs are called NAME-appearance, NAME-motion and NAME-fused; the same command again skips those that are finished
    and resumes one that was killed. Late fusion averages the first two runs' scores (Simonyan and Zisserman 2014).
    """

    clip3d: bool = False
    """Train the network over RGB frames alone that model.clip3d describes as well, as NAME-clip3d."""

    out: str | None = None
    """Directory or s3:// prefix for the table and the picture; None: NAME-streams in `storage`."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.model.architecture in ("late", "clip3d"):
            raise ConfigError(
                "compare-streams wants a network that joins both streams, model.architecture fused, st_resnet or stfn, "
                f"got {self.model.architecture}: its streams alone and their late fusion are trained beside it"
            )
        if self.init is not None:
            raise ConfigError(
                f"init starts one network from another, here several are compared, got {self.init}: leave it out"
            )
        refuse_dry_run(self)

    @property
    def folder(self) -> str:
        """Where table and picture are written."""
        return storage.join(self.storage, f"{self.name}-streams") if self.out is None else self.out
