"""End-to-end demo on synthetic videos: ingest, train and evaluate four networks, and register the fused one."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from twostream_ray import storage
from twostream_ray.data.flow import FlowContract
from twostream_ray.data.sources.catalog import CatalogConfig
from twostream_ray.data.sources.synthetic import SyntheticConfig, synthesize
from twostream_ray.models.settings import ModelConfig
from twostream_ray.runs.experiment import ExperimentConfig
from twostream_ray.runs.ingest import IngestReport, ingest
from twostream_ray.runs.score.publish import Published, train_and_publish
from twostream_ray.runs.settings import IngestConfig
from twostream_ray.runs.train.events import Progress
from twostream_ray.runs.train.run import TrainReport


@dataclass(frozen=True, kw_only=True)
class DemoRow:
    """One network of the demo's table."""

    network: str
    """spatial, temporal, late or fused."""
    trained: TrainReport
    """Report of its training."""
    published: Published
    """Its evaluation on the test split."""


def variants(model: ModelConfig) -> dict[str, ModelConfig]:
    """The recipe's network, and three to compare it with: each stream alone, and late fusion."""
    return {
        "spatial": replace(model, architecture="late", streams="spatial"),
        "temporal": replace(model, architecture="late", streams="temporal"),
        "late": replace(model, architecture="late"),
        "fused": model,
    }


def prepare(
    clips: SyntheticConfig, *, shards: str, progress: Callable[[int, int, int], None] | None = None
) -> tuple[Path, IngestReport]:
    """Write synthetic videos beside the shards' folder and ingest them; returns the videos' directory and a report."""
    videos = Path(storage.absolute(shards)).parent / "videos"
    synthesize(clips, videos)
    report = ingest(
        IngestConfig(
            catalog=CatalogConfig(root=str(videos)),
            out=shards,
            flow=FlowContract(short_side_px=clips.size_px),
        ),
        progress=progress,
    )
    return videos, report


def run_variant(
    config: ExperimentConfig, *, network: str, model: ModelConfig, progress: Progress | None = None
) -> DemoRow:
    """Train and evaluate one variant with the recipe's budget; only the fused one is registered."""
    experiment = replace(
        config,
        name=f"{config.name}-{network}",
        model=model,
        tracking=replace(config.tracking, register=network == "fused"),
    )
    finished = train_and_publish(experiment, progress=progress, evaluate_again=True)
    assert finished.published is not None  # noqa: S101  (it is evaluated again)
    return DemoRow(network=network, trained=finished.trained, published=finished.published)
