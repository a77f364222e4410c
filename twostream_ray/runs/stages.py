"""Settings of training in stages: each stream alone, then the network that fuses them (Feichtenhofer et al. 2016)."""

from __future__ import annotations

from dataclasses import dataclass, field

from twostream_ray.settings.bounds import require_within


@dataclass(frozen=True, kw_only=True)
class StageConfig:
    """What one stream's own training has otherwise than that of the fused network."""

    epochs: int | None = None
    """Passes over the training split; None: training.epochs."""

    learning_rate: float | None = None
    """Highest learning rate; None: training.learning_rate."""

    step_epochs: tuple[int, ...] | None = None
    """Epochs at which the schedule `steps` divides the learning rate by 10; None: training.step_epochs."""

    num_snippets: int | None = None
    """Snippets of a sample; None: data.sampling.num_snippets. Without fusion over time one is enough."""

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
    """Three runs after each other: NAME-spatial, NAME-temporal, and NAME, which starts from both."""

    enabled: bool = False
    """Train each stream alone first. The fused network, which alone is registered, starts from both; with
    model.freeze_below_fusion it learns above the fusion only. Finished stages are skipped."""

    spatial: StageConfig = field(default_factory=StageConfig)
    """The spatial stream alone."""

    temporal: StageConfig = field(default_factory=StageConfig)
    """The temporal stream alone."""
