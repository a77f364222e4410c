"""Settings of a stream ablation: those of a training, and which networks are trained besides."""

from __future__ import annotations

from dataclasses import dataclass

from twostream_ray import storage
from twostream_ray.errors import ConfigError
from twostream_ray.runs.experiment import ExperimentConfig, refuse_dry_run


@dataclass(frozen=True, kw_only=True)
class AblationConfig(ExperimentConfig):
    """Stream ablation: each stream alone, their late fusion and the recipe's network, trained on the same clips.

    Runs are called NAME-appearance, NAME-motion and NAME-fused; the same command again skips finished ones and resumes
    one that was killed. Late fusion averages the first two runs' scores (Simonyan and Zisserman 2014).
    """

    clip3d: bool = False
    """Also train the RGB-only 3D network that model.clip3d describes, as NAME-clip3d."""

    out: str | None = None
    """Directory or s3:// prefix for the table and the plot; by default NAME-streams in `storage`."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.model.architecture in ("late", "clip3d"):
            raise ConfigError(
                "compare-streams wants a network that joins both streams, model.architecture fused, st_resnet or stfn, "
                f"got {self.model.architecture}: the single streams and late fusion are added to it"
            )
        if self.init is not None:
            raise ConfigError(
                f"init starts one network from another, but compare-streams trains several, got {self.init}: leave it "
                "out"
            )
        refuse_dry_run(self)

    @property
    def folder(self) -> str:
        """Where the table and the plot are written."""
        return storage.join(self.storage, f"{self.name}-streams") if self.out is None else self.out
