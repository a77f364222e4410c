"""Settings of the benchmarks: of ingest, the loader, the training step, training, and batch prediction."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal, get_args

from twostream_ray.data.flow import FlowContract
from twostream_ray.data.loading.settings import DataConfig
from twostream_ray.data.sources.catalog import CatalogConfig
from twostream_ray.errors import ConfigError
from twostream_ray.models.settings import ModelConfig
from twostream_ray.settings.arguments import RECIPE_KEY
from twostream_ray.settings.bounds import require_within
from twostream_ray.tracking import TrackingConfig
from twostream_ray.training.settings import TrainingConfig

StepWay = Literal["eager", "channels_last", "compiled", "frozen"]


@dataclass(frozen=True, kw_only=True)
class BenchmarkLoaderConfig:
    """Measure how fast shards become batches, beside the ways people read two-stream data today."""

    data: DataConfig
    """Shards, their training split, and how samples are drawn."""

    videos: str | None = None
    """Directory of the videos that were ingested (catalog.root): also measure torch's DataLoader over them and over
    folders of JPEG files, which are written below `out`."""

    out: str = "benchmark"
    """Directory for those folders; they take about ten times the shards' bytes."""

    num_clips: int = 96
    """Clips of the split that are read, at most."""

    rounds: int = 3
    """Times that every way is measured; medians are shown."""

    workers: int = 1
    """Training workers that are fed, with the cores shared among them; a GPU node has one for each GPU."""

    cores: int | None = None
    """CPU cores that every way may use; by default all that this machine has. What runs on a cluster that is there
    already is not held to them."""

    def __post_init__(self) -> None:
        require_within(
            self, num_clips="[1, 1_000_000]", rounds="[1, 1_000]", workers="[1, 10_000]", cores="[1, 10_000]"
        )


@dataclass(frozen=True, kw_only=True)
class BenchmarkStepConfig:
    """Measure training steps on random samples: speed, memory, and floating-point operations a second."""

    model: ModelConfig = field(default_factory=ModelConfig)
    """The network; it begins without pretrained weights."""

    training: TrainingConfig = field(default_factory=TrainingConfig)
    """Precision and all else that costs time; layout and compilation are those of each of the ways."""

    ways: tuple[StepWay, ...] | None = None
    """Ways to measure, each in a process of its own: eager (NCHW), channels_last, compiled (and channels_last), frozen
    (as fast as it goes, learning only above the first fusion layer). By default all on a GPU, eager and frozen on a
    CPU."""

    profile: bool = False
    """Also print the largest kernels of each way, by torch's profiler."""

    batch: int = 1
    """Samples of a step."""

    num_snippets: int = field(default=5, metadata={RECIPE_KEY: "data.sampling.num_snippets"})
    """T: snippets per sample."""

    flow_length: int = field(default=10, metadata={RECIPE_KEY: "data.sampling.flow_length"})
    """L: flow fields per snippet."""

    size_px: int = field(default=224, metadata={RECIPE_KEY: "data.transforms.crop_px"})
    """Height and width of the network's input in px."""

    num_classes: int = 101
    """K."""

    steps: int = 3
    """Steps that are measured, after one to warm up; three on a GPU."""

    def __post_init__(self) -> None:
        if self.ways is not None and (not self.ways or not set(self.ways) <= set(get_args(StepWay))):
            raise ConfigError(f"ways must be some of {', '.join(get_args(StepWay))}, got {list(self.ways)}")
        require_within(
            self,
            batch="[1, 100_000]",
            num_snippets="[1, 1_000]",
            flow_length="[1, 1_000]",
            size_px="[1, 8_192]",
            num_classes="[1, 1_000_000]",
            steps="[1, 1_000_000]",
        )


@dataclass(frozen=True, kw_only=True)
class BenchmarkIngestConfig:
    """Measure how fast raw videos become shards, beside bare loops of the same work; keeps nothing."""

    catalog: CatalogConfig
    """Where the videos and their labels are; 64 clips or more give steady numbers."""

    flow: FlowContract = field(default_factory=FlowContract)
    """How optical flow is computed and coded."""

    rounds: int = 3
    """Times that everything is measured; medians are shown."""

    cores: int | None = None
    """Bare loops at once; by default as many as this machine has cores."""

    def __post_init__(self) -> None:
        require_within(self, rounds="[1, 1_000]", cores="[1, 10_000]")


@dataclass(frozen=True, kw_only=True)
class BenchmarkTrainConfig:
    """Measure training: a bare process group, the same inside Ray Train, and fed from shards, one after the other."""

    data: DataConfig
    """Shards, their training split, and how samples are drawn."""

    model: ModelConfig = field(default_factory=ModelConfig)
    """The network; it begins without pretrained weights."""

    training: TrainingConfig = field(default_factory=TrainingConfig)
    """Global batch, precision, layout and all else that costs time."""

    num_workers: int | None = None
    """Processes that train; by default one per GPU, or 2 where there is none."""

    steps: int = 20
    """Steps that are measured, after two to warm up."""

    rounds: int = 3
    """Times that every way is measured; medians are shown."""

    memory_batches: int = 2
    """Different batches that each worker holds in memory for the ways without shards."""

    def __post_init__(self) -> None:
        require_within(
            self, num_workers="[1, 100_000]", steps="[1, 1_000_000]", rounds="[1, 1_000]", memory_batches="[1, 1_000]"
        )


@dataclass(frozen=True, kw_only=True)
class BenchmarkPredictConfig:
    """Measure how fast raw videos become rows of predictions, beside bare loops of the same work; keeps nothing."""

    videos: list[str]
    """Videos, folders, globs or tables, as `predict` takes them; 64 videos or more give steady numbers."""

    model: str = "models:/two-stream@champion"
    """models:/NAME@champion, models:/NAME/VERSION, runs:/ID/model, or a directory with model.safetensors."""

    rounds: int = 3
    """Times that everything is measured; medians are shown."""

    cores: int | None = None
    """Actors and bare loops at once; by default as many as this machine has cores."""

    tracking: TrackingConfig = field(default_factory=TrackingConfig)
    """MLflow, where the model comes from its registry."""

    def __post_init__(self) -> None:
        if not self.videos:
            raise ConfigError("at least one video is wanted, got none")
        require_within(self, rounds="[1, 1_000]", cores="[1, 10_000]")
