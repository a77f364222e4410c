"""The settings of every verb, composed from the parts' own."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Literal, TypeVar

from twostream_ray import storage
from twostream_ray.bounds import require_within
from twostream_ray.data.catalog import CatalogConfig
from twostream_ray.data.flow import FlowContract
from twostream_ray.data.settings import DataConfig
from twostream_ray.data.synthetic import SyntheticConfig
from twostream_ray.errors import ConfigError
from twostream_ray.models.networks import ModelConfig
from twostream_ray.models.streams import TowerConfig
from twostream_ray.names import require_name
from twostream_ray.tracking import TrackingConfig
from twostream_ray.training.recipe import TrainingConfig

# They change neither samples nor their order.
_OF_THE_MACHINE = (
    "read_tasks",
    "decode_threads",
    "decode_at",
    "cache",
    "cache_gb",
    "sample_cache",
    "sample_cache_gb",
)


@dataclass(frozen=True, kw_only=True)
class SynthesizeConfig:
    """Make a small labelled data set of moving shapes, as real mp4 and avi files."""

    out: str
    """Directory for split/class/video."""

    clips: SyntheticConfig = field(default_factory=SyntheticConfig)
    """What the videos show, and how many there are."""


@dataclass(frozen=True, kw_only=True)
class IngestConfig:
    """Labelled raw videos -> shards with optical flow."""

    catalog: CatalogConfig
    """Where the videos and their labels are."""

    out: str
    """Directory or s3:// prefix of the shard set."""

    replace: bool = False
    """Delete the finished shards at `out` once the new ones are there, though they are of another data set, or of
    folders of this one that hold nothing now; without it such an ingest is refused. Other files stay in any case."""

    more: list[CatalogConfig] = field(default_factory=list)
    """Further data sets for multi-task training, each with its name: a network gets a head for each."""

    flow: FlowContract = field(default_factory=FlowContract)
    """How optical flow is computed and coded."""

    max_bad_fraction: float = 0.05
    """Fail when more than this fraction of the videos had to be quarantined, in [0, 1]."""

    max_frames: int = 10_000
    """Longer videos are quarantined: a clip is one row, and a task takes about 40 kB of memory for every frame."""

    rows_per_shard: int = 128
    """Clips per shard file at most; small sets get smaller shards, so that every core has work."""

    def __post_init__(self) -> None:
        require_within(self, max_bad_fraction="[0, 1]", max_frames="[2, 1_000_000]", rows_per_shard="[1, 1_000_000]")
        if self.flow.coding == "signed127" and any(one.flow_images for one in (self.catalog, *self.more)):
            raise ConfigError(
                "flow.coding must be legacy255 where catalog.flow_images are taken in, as the usual tools write them, "
                "got signed127"
            )


@dataclass(frozen=True, kw_only=True)
class WorkersConfig:
    """The processes that train, each with its share of every batch."""

    num_workers: int | tuple[int, int] | None = None
    """Data-parallel workers; by default one per GPU of the cluster, or 2 where there is none. [MIN, MAX]: as many as
    the cluster has room for, while it grows and shrinks; the samples of a step stay the same."""

    cpus_per_worker: float | None = None
    """CPUs a worker reserves; by default its share of half the cluster's CPUs: reading needs the rest."""

    max_failures: int = 3
    """Restarts from the last checkpoint after a worker or node is lost, before the run fails."""

    checkpoint_every_steps: int | None = None
    """Steps from one checkpoint to the next within an epoch; by default there is one at the end of each epoch."""

    keep_checkpoints: int = 2
    """The best on the validation split (without one the newest) that are kept, besides the last."""

    timeout_s: float = 600.0
    """Seconds that workers wait for one that has stopped answering before they start again from the last checkpoint;
    more than a step, the compilation before the first and a validation pass take."""

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


@dataclass(frozen=True, kw_only=True)
class ExperimentConfig:
    """Shards -> a trained, evaluated and registered network."""

    name: str
    """Name of the logical run: running the same name again resumes it."""

    data: DataConfig
    """Shards, splits and how samples are drawn."""

    model: ModelConfig = field(default_factory=ModelConfig)
    """The network."""

    training: TrainingConfig = field(default_factory=TrainingConfig)
    """Optimisation."""

    workers: WorkersConfig = field(default_factory=WorkersConfig)
    """The cluster's share."""

    tracking: TrackingConfig = field(default_factory=TrackingConfig)
    """MLflow."""

    storage: str = "runs"
    """Directory or s3:// prefix of checkpoints and reports, in a folder per run; on a cluster all nodes must see it."""

    seed: int = 0
    """Fixes initial weights, order and every draw."""

    def __post_init__(self) -> None:
        require_name(self.name, setting="name")
        require_within(self, seed="[0, 9_223_372_036_854_775_807]")
        if self.training.patience_epochs is not None and self.data.validation_split is None:
            raise ConfigError(
                "training.patience_epochs wants a split to watch: set data.validation_split, or leave patience out"
            )


_Experiment = TypeVar("_Experiment", bound=ExperimentConfig)


def with_absolute_places(config: _Experiment) -> _Experiment:
    """The same settings for processes that run in other directories than this one."""

    def tower(one: TowerConfig) -> TowerConfig:
        named = one.weights not in (None, "imagenet")
        return replace(one, weights=storage.absolute(str(one.weights))) if named else one

    def directory(path: str | None) -> str | None:
        return None if path is None else storage.absolute(path)

    data, model = config.data, config.model
    return replace(
        config,
        data=replace(
            data,
            shards=storage.absolute(data.shards),
            cache=directory(data.cache),
            sample_cache=directory(data.sample_cache),
        ),
        model=replace(model, spatial=tower(model.spatial), temporal=tower(model.temporal)),
        tracking=replace(config.tracking, uri=config.tracking.resolved_uri()),
        storage=storage.absolute(config.storage),
    )


def fixed_settings(config: ExperimentConfig) -> dict[str, Any]:
    """The settings that a resumed run must share, in JSON's types.

    Where it runs, who hears of it and what it is evaluated on when it is trained may change.
    """
    return without_free_settings(json.loads(json.dumps(asdict(config))))


def without_free_settings(values: dict[str, Any]) -> dict[str, Any]:
    """The settings of a run without those that a resumed one may have otherwise; earlier versions wrote more down."""
    fixed = {name: value for name, value in values.items() if name not in ("workers", "tracking", "storage")}
    # Which data they are is asked of their manifest.
    free = (*_OF_THE_MACHINE, "test_split", "shards")
    return fixed | {"data": {name: value for name, value in values.get("data", {}).items() if name not in free}}


@dataclass(frozen=True, kw_only=True)
class FindingsConfig:
    """Train every network of the papers' comparisons on synthetic videos: under an hour on 2 cores, resumable."""

    out: str = "findings"
    """Directory for videos, shards, results, table and picture."""

    num_seeds: int = 3
    """Trainings of each network, with seeds 0, 1, ..."""

    def __post_init__(self) -> None:
        require_within(self, num_seeds="[1, 1_000]")


@dataclass(frozen=True, kw_only=True)
class InspectConfig:
    """What is in a shard set: counts, classes, flow contract, and a picture of frames over their flow."""

    shards: str
    """Directory or s3:// prefix that `ingest` wrote."""

    out: str = "inspect.png"
    """File of the picture, a PNG; one that is there is written over only if `inspect` drew it."""

    num_clips: int = 6
    """Clips to draw, spread over the set; a row each."""

    clip: str | None = None
    """One clip to draw instead, by its id: its path below the root that was ingested."""

    verify: bool = False
    """Read every byte and hold it against the checksums."""

    def __post_init__(self) -> None:
        if not self.out.lower().endswith(".png"):
            raise ConfigError(f"out must name a file that ends in .png, got {self.out!r}")
        require_within(self, num_clips="[1, 200]")


@dataclass(frozen=True, kw_only=True)
class DescribeConfig:
    """Parts, sizes and costs of a network for one training sample; builds nothing and takes seconds."""

    model: ModelConfig = field(default_factory=ModelConfig)
    """The network."""

    num_classes: int = 101
    """K, where the model's own settings leave it to the data."""

    flow_length: int = 10
    """L: flow fields per snippet."""

    num_snippets: int = 5
    """T: snippets per sample."""

    size_px: int = 224
    """Height and width of the network's input in px."""

    format: Literal["text", "json"] = "text"
    """text: tables; json: one JSON object, for programs (--json for short)."""

    def __post_init__(self) -> None:
        require_within(
            self,
            num_classes="[1, 1_000_000]",
            flow_length="[1, 1_000]",
            num_snippets="[1, 1_000]",
            size_px="[1, 8_192]",
        )


@dataclass(frozen=True, kw_only=True)
class EvaluateConfig:
    """A trained model on a split of shards."""

    model: str
    """models:/NAME@champion, models:/NAME/VERSION, runs:/ID/model, or a directory with model.safetensors."""

    shards: str
    """Directory or s3:// prefix that `ingest` wrote; its flow must be of the model's kind."""

    split: str = "test"
    """Split to score."""

    out: str = "evaluation"
    """Directory for report.json, scores.npz and confusion.png."""

    workers: WorkersConfig = field(default_factory=WorkersConfig)
    """The cluster's share; scores do not depend on it."""

    tracking: TrackingConfig = field(default_factory=TrackingConfig)
    """MLflow, where the model comes from its registry."""


@dataclass(frozen=True, kw_only=True)
class StreamScoresConfig:
    """Scores of the same clips by two streams: a file of each that `evaluate` wrote, or one file with both."""

    spatial: str | None = None
    """The spatial network's scores.npz: path, file:// or s3:// URI."""

    temporal: str | None = None
    """The temporal network's scores.npz."""

    both: str | None = None
    """An .npz with spatial (N, K), temporal (N, K), labels (N,) and clip_ids (N,) instead."""

    def given(self) -> bool:
        """Whether any file is named."""
        return any(file is not None for file in (self.spatial, self.temporal, self.both))

    def __post_init__(self) -> None:
        if (self.spatial is None) != (self.temporal is None) or (self.both is not None and self.spatial is not None):
            raise ConfigError(
                f"scores are wanted as spatial and temporal, or as both, got spatial {self.spatial}, temporal "
                f"{self.temporal} and both {self.both}"
            )


@dataclass(frozen=True, kw_only=True)
class TuneScoresConfig:
    """The best late fusion of two streams' scores: thousands of settings in seconds, without a network."""

    choose: StreamScoresConfig
    """The clips that the setting is chosen on; best of a validation split."""

    quote: StreamScoresConfig = field(default_factory=StreamScoresConfig)
    """Other clips, such as the test split, on which the chosen setting's accuracy may be quoted."""

    of: list[Literal["logits", "softmax"]] = field(default_factory=lambda: ["logits", "softmax"])
    """What is averaged: the logits, or their softmax as in Simonyan and Zisserman 2014."""

    weight_step: float = 0.005
    """From one weight of the temporal stream to the next, in (0, 1]; weights go from 0 to 1."""

    temperatures: list[float] = field(default_factory=lambda: [1.0, 4.0, 16.0, 64.0])
    """Each stream's logits are divided by each of these, above 0, before the softmax."""

    svm_penalties: list[float] = field(default_factory=list)
    """C of linear SVMs to try, judged by cross-validation on `choose` and fitted to all of it; wants `quote`."""

    out: str = "tuned_scores"
    """Directory or s3:// prefix for fusion.json and fusion.png."""

    def __post_init__(self) -> None:
        if not self.choose.given():
            raise ConfigError(
                "choose.spatial and choose.temporal (scores.npz of `evaluate`), or choose.both, are wanted, got none"
            )
        if not self.of:
            raise ConfigError("of must name logits, softmax or both, got none")
        require_within(self, weight_step="[0.0001, 1]", temperatures="(0, 1e6]", svm_penalties="(0, 1e9]")
        if not self.temperatures:
            raise ConfigError("temperatures must hold at least one, got none")
        if self.svm_penalties and not self.quote.given():
            raise ConfigError(
                "svm_penalties want quote.spatial and quote.temporal (or quote.both): an SVM is not judged by clips "
                "that it was fitted to"
            )


@dataclass(frozen=True, kw_only=True)
class PullConfig:
    """Download a registered model for use without MLflow: weights, settings and classes."""

    out: str
    """Directory for model.safetensors and model.json."""

    model: str = "models:/two-stream@champion"
    """models:/NAME@champion, models:/NAME/VERSION, or runs:/ID/model."""

    tracking: TrackingConfig = field(default_factory=TrackingConfig)
    """MLflow, whose registry holds the model."""


@dataclass(frozen=True, kw_only=True)
class ReplayConfig:
    """Deliver to MLflow what was logged while it was away; running it twice leaves nothing twice."""

    runs: list[str] = field(default_factory=list)
    """Directories or s3:// prefixes of runs, as runs/NAME; none: every run below `storage`."""

    storage: str = "runs"
    """Directory or s3:// prefix of all runs."""

    tracking: TrackingConfig = field(default_factory=TrackingConfig)
    """MLflow; each run goes to the experiment that it was started for."""


@dataclass(frozen=True, kw_only=True)
class RollbackConfig:
    """Put the champion of a registered model back to the version before, or to a named one."""

    to: int | None = None
    """Version to make champion; by default the one that was so before; doing it again goes further back."""

    because: str = ""
    """Why, for the record: a tag of the version that is taken back."""

    tracking: TrackingConfig = field(default_factory=TrackingConfig)
    """MLflow, whose registry holds the model; `tracking.model_name` is the model's."""

    def __post_init__(self) -> None:
        require_within(self, to="[1, 2_147_483_647]")


@dataclass(frozen=True, kw_only=True)
class PredictConfig:
    """A trained model on raw videos."""

    videos: list[str]
    """Paths or URIs of videos."""

    model: str = "models:/two-stream@champion"
    """models:/NAME@champion, models:/NAME/VERSION, runs:/ID/model, or a directory with model.safetensors."""

    top_k: int = 5
    """Classes to show per video."""

    format: Literal["text", "json"] = "text"
    """text: a table; json: one JSON object a line, for programs."""

    tracking: TrackingConfig = field(default_factory=TrackingConfig)
    """MLflow, where the model comes from its registry."""

    def __post_init__(self) -> None:
        if not self.videos:
            raise ConfigError("at least one video is wanted, got none")
        require_within(self, top_k="[1, 1_000_000]")
