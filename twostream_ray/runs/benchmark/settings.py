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
    """Measure how fast shards become batches, compared with other ways to read two-stream data."""

    data: DataConfig
    """Shards, their training split, and how samples are drawn."""

    videos: str | None = None
    """Directory of the ingested videos (catalog.root): also measure torch's DataLoader on them and on folders of JPEG
    files, which are written below `out`."""

    out: str = "benchmark"
    """Directory for those folders, which take about ten times the shards' bytes."""

    num_clips: int = 96
    """Most clips of the split to read."""

    rounds: int = 3
    """How often every way is measured; medians are shown."""

    workers: int = 1
    """Training workers to feed, which share the cores; a GPU node has one per GPU."""

    cores: int | None = None
    """CPU cores that every way may use; by default all of this machine. An existing cluster is not restricted to
    them."""

    def __post_init__(self) -> None:
        require_within(
            self, num_clips="[1, 1_000_000]", rounds="[1, 1_000]", workers="[1, 10_000]", cores="[1, 10_000]"
        )


@dataclass(frozen=True, kw_only=True)
class BenchmarkStepConfig:
    """Measure training steps on random samples: speed, memory, and floating-point operations per second."""

    model: ModelConfig = field(default_factory=ModelConfig)
    """The network, without pretrained weights."""

    training: TrainingConfig = field(default_factory=TrainingConfig)
    """Precision and other settings that affect speed; layout and compilation are set by each of `ways`."""

    ways: tuple[StepWay, ...] | None = None
    """Ways to measure, each in a process of its own: eager (NCHW), channels_last, compiled (and channels_last), frozen
    (the fastest of these, training only above the first fusion layer). By default all on a GPU, eager and frozen on
    a CPU."""

    profile: bool = False
    """Also print the slowest kernels of each way, by torch's profiler."""

    batch: int = 1
    """Samples per step."""

    num_snippets: int = field(default=5, metadata={RECIPE_KEY: "data.sampling.num_snippets"})
    """T: snippets per sample."""

    flow_length: int = field(default=10, metadata={RECIPE_KEY: "data.sampling.flow_length"})
    """L: flow fields per snippet."""

    size_px: int = field(default=224, metadata={RECIPE_KEY: "data.transforms.crop_px"})
    """Height and width of the network's input in px."""

    num_classes: int = 101
    """K."""

    steps: int = 3
    """Measured steps, after one to warm up, or three on a GPU."""

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
    """Measure how fast raw videos become shards, compared with bare loops of the same work; nothing is kept."""

    catalog: CatalogConfig
    """Where the videos and their labels are; 64 clips or more give steady numbers."""

    flow: FlowContract = field(default_factory=FlowContract)
    """How optical flow is computed and coded."""

    rounds: int = 3
    """How often everything is measured; medians are shown."""

    cores: int | None = None
    """Bare loops at once; by default as many as this machine has cores."""

    def __post_init__(self) -> None:
        require_within(self, rounds="[1, 1_000]", cores="[1, 10_000]")


@dataclass(frozen=True, kw_only=True)
class BenchmarkTrainConfig:
    """Measure training in a bare torch process group, in Ray Train, and in Ray Train fed from shards."""

    data: DataConfig
    """Shards, their training split, and how samples are drawn."""

    model: ModelConfig = field(default_factory=ModelConfig)
    """The network, without pretrained weights."""

    training: TrainingConfig = field(default_factory=TrainingConfig)
    """Global batch, precision, layout and other settings that affect speed."""

    num_workers: int | None = None
    """Training processes; by default one per GPU, or 2 without GPUs."""

    steps: int = 20
    """Measured steps, after two to warm up."""

    rounds: int = 3
    """How often every way is measured; medians are shown."""

    memory_batches: int = 2
    """Different batches that each worker keeps in memory for the ways without shards."""

    def __post_init__(self) -> None:
        require_within(
            self, num_workers="[1, 100_000]", steps="[1, 1_000_000]", rounds="[1, 1_000]", memory_batches="[1, 1_000]"
        )


@dataclass(frozen=True, kw_only=True)
class BenchmarkPredictConfig:
    """Measure how fast raw videos become predictions, compared with bare loops of the same work; nothing is kept."""

    videos: list[str]
    """Videos, folders, globs or tables, as `predict` takes them; 64 videos or more give steady numbers."""

    model: str = "models:/two-stream@champion"
    """models:/NAME@champion, models:/NAME/VERSION, runs:/ID/model, or a directory with model.safetensors."""

    rounds: int = 3
    """How often everything is measured; medians are shown."""

    cores: int | None = None
    """Actors and bare loops at once; by default as many as this machine has cores."""

    tracking: TrackingConfig = field(default_factory=TrackingConfig)
    """MLflow, for a model from its registry."""

    def __post_init__(self) -> None:
        if not self.videos:
            raise ConfigError("at least one video is wanted, got none")
        require_within(self, rounds="[1, 1_000]", cores="[1, 10_000]")
