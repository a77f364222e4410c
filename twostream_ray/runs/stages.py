"""Settings of staged training: each stream alone, then the network that fuses them (Feichtenhofer et al. 2016)."""

from __future__ import annotations

from dataclasses import dataclass, field

from twostream_ray.settings.bounds import require_within


@dataclass(frozen=True, kw_only=True)
class StageConfig:
    """Settings of one stream's training that differ from the fused network's."""

    epochs: int | None = None
    """Passes over the training split; by default training.epochs."""

    learning_rate: float | None = None
    """Highest learning rate; by default training.learning_rate."""

    step_epochs: tuple[int, ...] | None = None
    """Epochs at which the schedule `steps` divides the learning rate by 10; by default training.step_epochs."""

    num_snippets: int | None = None
    """Snippets of a sample; by default data.sampling.num_snippets. Without fusion over time one is enough."""

    def __post_init__(self) -> None:
        require_within(
            self,
            "stages' ",
            epochs="[1, 1_000_000]",
            learning_rate="(0, 1_000]",
            step_epochs="[0, 1_000_000]",
            num_snippets="[1, 1_000]",
        )


@dataclass(frozen=True, kw_only=True)
class StagesConfig:
    """Three runs one after the other: NAME-spatial, NAME-temporal, and NAME, initialised from both."""

    enabled: bool = False
    """Train each stream alone first. The fused network is initialised from both and is the only one registered; with
    model.freeze_below_fusion it is trained only above the fusion. Finished stages are skipped."""

    spatial: StageConfig = field(default_factory=StageConfig)
    """The spatial stream alone."""

    temporal: StageConfig = field(default_factory=StageConfig)
    """The temporal stream alone."""
