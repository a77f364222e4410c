"""Settings of the verbs that use trained models or their scores.

This module imports neither torch nor Ray, so that a command line is parsed at once, and it has no TYPE_CHECKING block,
which the settings parser would execute.
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass, field, replace
from typing import Literal

from twostream_ray import tracking
from twostream_ray.data.protocols import VALIDATION, ViewsConfig, resolve_protocol
from twostream_ray.errors import ConfigError
from twostream_ray.redaction import brief, redact
from twostream_ray.runs.workers import WorkersConfig
from twostream_ray.settings.arguments import RECIPE_KEY
from twostream_ray.settings.bounds import require_within
from twostream_ray.tracking import TrackingConfig

_LEAST_WINDOW_S = 2.0
"""Default window: about the shortest clip of UCF101; its 50 frames suffice for 5 snippets."""
_MOST_WINDOWS_AT_ONCE = 32
_DRAWN_EVERY_S = 1.0


@dataclass(frozen=True, kw_only=True)
class EvaluateConfig:
    """Evaluates a trained model on a split of shards."""

    model: str
    """models:/NAME@champion, models:/NAME/VERSION, runs:/ID/model, or a directory with model.safetensors. With
    `splits` one model per split, with commas between, or a name that contains {split}."""

    shards: str = field(metadata={RECIPE_KEY: "data.shards"})
    """Directory or s3:// prefix that `ingest` wrote; its flow contract must be the model's."""

    split: str = field(default="test", metadata={RECIPE_KEY: "data.test_split"})
    """Split to score."""

    splits: str = ""
    """Several splits instead of one, as test1,test2,test3: each is scored with the model trained on its training split,
    into a folder of its name below `out`; then the mean over them."""

    one_model: bool = False
    """Score all `splits` with the same model, one that was trained on none of their clips."""

    protocol: str = "validation"
    """Which views of a clip are scored, and what is averaged over them. validation: test_times samples of the centre
    crop, as training validates; fast: one sample; paper_2014: 25 frames x 10 crops, mean of softmax; fusion_2016: 20
    samples of the full frame and their mirror images, fully convolutional, mean of logits; st_resnet_2016: one sample
    of 25 snippets over the whole video, full frame and its mirror image, mean of logits; tsn: 25 frames x 10 crops,
    mean of logits; custom: validation, changed by views.*."""

    views: ViewsConfig = field(default_factory=ViewsConfig)
    """Changes to the protocol."""

    calibrate_on: str | None = None
    """Evaluation of the same model, protocol and shards on a validation split (folder of `evaluate`, or a run): a
    temperature is fitted to its scores, and the report has this split's calibration error with and without it. {split}
    in it stands for each of `splits`."""

    out: str = "evaluation"
    """Directory or s3:// prefix for the score table (scores/), report.json, results.html and confusion.png. Scores of
    an interrupted call are kept."""

    record: bool | None = None
    """Tag the registered version with the metrics, which `promote` compares; by default if the model is a models:/
    version and the protocol is `validation`. false also creates no MLflow run of the evaluation, which otherwise exists
    if the model is from the registry or a tracking URI is given."""

    workers: WorkersConfig = field(default_factory=WorkersConfig)
    """Workers, by default one per GPU, or per core without GPUs; scores do not depend on them."""

    tracking: TrackingConfig = field(default_factory=TrackingConfig)
    """MLflow, for a model from its registry."""

    def is_recorded(self) -> bool:
        """Whether the registered version is tagged with the metrics."""
        if self.record is None:
            return tracking.names_version(self.model) and self._compares()
        return self.record

    def _compares(self) -> bool:
        """Whether the protocol is the one by which champions are compared."""
        return resolve_protocol(self.protocol, self.views) == VALIDATION

    def is_logged(self) -> bool:
        """Whether the evaluation gets an MLflow run of its own: only if MLflow is configured."""
        given = self.tracking.uri or os.environ.get("MLFLOW_TRACKING_URI")
        return self.record is not False and bool(given or self.model.startswith(("models:/", "runs:/")))

    def __post_init__(self) -> None:
        if self.splits:
            self.for_each_split()
            return
        if self.record and not tracking.names_version(self.model):
            raise ConfigError(
                "record tags a version of the registry: model must be models:/NAME/VERSION or models:/NAME@ALIAS, got "
                f"{redact(self.model)}"
            )
        if self.record and not self._compares():
            raise ConfigError(
                "record tags a version with the metrics that champions are compared by, which are of protocol "
                f"{VALIDATION.name}, got {resolve_protocol(self.protocol, self.views).name}: leave record out"
            )
        resolve_protocol(self.protocol, self.views)

    def for_each_split(self) -> list[EvaluateConfig]:
        """The settings of each of `splits`."""
        splits = [split.strip() for split in self.splits.split(",")]
        if not all(splits) or len(set(splits)) < len(splits):
            raise ConfigError(f"splits must be different names with commas between, got {brief(self.splits)}")
        models = [model.strip() for model in self.model.split(",")]
        if len(models) == 1:
            models = [self.model.replace("{split}", split) for split in splits]
        if len(models) != len(splits):
            raise ConfigError(
                f"model must name one for each of {len(splits)} splits, with commas between, got {len(models)}: "
                f"{redact(self.model)}"
            )
        if len(set(models)) < len(models) and not self.one_model:
            raise ConfigError(
                f"each split wants the model trained on its training split, got {redact(self.model)} for "
                f"{self.splits}: a model of one split was trained on test clips of the others; name one per split "
                "(A,B,C, or a name with {split} in it), or --one_model true for one trained on none of them"
            )
        return [
            replace(
                self,
                splits="",
                split=split,
                model=model,
                calibrate_on=None if self.calibrate_on is None else self.calibrate_on.replace("{split}", split),
                out=f"{self.out.rstrip('/')}/{split}",
            )
            for split, model in zip(splits, models, strict=True)
        ]


@dataclass(frozen=True, kw_only=True)
class PredictConfig:
    """Classifies raw videos with a trained model."""

    videos: list[str]
    """Videos, folders, s3:// prefixes, globs (in quotes), and tables of URIs: .csv, .tsv or .parquet with a column uri,
    .txt with one a line."""

    model: str = "models:/two-stream@champion"
    """models:/NAME@champion, models:/NAME/VERSION, runs:/ID/model, or a directory with model.safetensors."""

    top_k: int = 5
    """Classes to show per video and data set."""

    head: str | None = None
    """Name of the data set to predict for, of a model that was trained on several (`ingest --more`); by default all."""

    protocol: str = "validation"
    """Which views of a video are scored, and what is averaged. validation: test_times samples of the centre
    crop, as training validates; fast: one sample; paper_2014: 25 frames x 10 crops, mean of softmax; fusion_2016: 20
    samples of the full frame and their mirror images, fully convolutional, mean of logits; st_resnet_2016: one sample
    of 25 snippets over the whole video, full frame and its mirror image, mean of logits; tsn: 25 frames x 10 crops,
    mean of logits; custom: validation, changed by views.*."""

    views: ViewsConfig = field(default_factory=ViewsConfig)
    """Changes to the protocol."""

    format: Literal["text", "json"] = "text"
    """text: a line for each video and data set; json: one JSON object per line for each video, whose `heads` have
    name, top, classes, probabilities and logits of each data set."""

    video: str | None = None
    """File (.mp4) to write, without sound: one video, annotated with its classes over time, of one data set. By default
    for windows of 2 s every second; every_seconds and window_seconds change that."""

    out: str | None = None
    """Directory or s3:// prefix for Parquet files with a row for each video, written by a job on all cores or GPUs of
    the Ray cluster; the same command resumes an interrupted job. By default lines are printed instead."""

    replace: bool = False
    """Delete predictions of another model or other settings in `out`."""

    num_actors: int | None = None
    """Ray actors that score, with `out`; by default one per GPU, or per CPU without GPUs."""

    max_frames: int = 10_000
    """Most frames of a video, with `out`; a longer one gets the status too_long. Videos that are predicted in windows
    have no such limit."""

    every_seconds: float | None = None
    """Predict windows of the video, starting every so many seconds, instead of the video as a whole: for long videos,
    which are decoded once and never kept in memory as a whole."""

    window_seconds: float | None = None
    """Length of a window in seconds; by default every_seconds but at least 2, so that windows cover the video."""

    tracking: TrackingConfig = field(default_factory=TrackingConfig)
    """MLflow, for a model from its registry."""

    def __post_init__(self) -> None:
        if not self.videos:
            raise ConfigError("at least one video is wanted, got none")
        require_within(self, top_k="[1, 1_000_000]", num_actors="[1, 100_000]", max_frames="[2, 10_000_000]")
        require_within(self, every_seconds="[0.01, 86_400]", window_seconds="[0.01, 3_600]")
        if self.video is not None and (self.out is not None or not self.video.lower().endswith(".mp4")):
            raise ConfigError(f"video must be a file NAME.mp4 and excludes out, got {redact(self.video)}")
        if self.window_seconds is not None and self.every_seconds is None:
            raise ConfigError("window_seconds needs every_seconds: give both, or neither")
        if self.windows is not None and self.windows[1] > _MOST_WINDOWS_AT_ONCE * self.windows[0]:
            raise ConfigError(
                f"at most {_MOST_WINDOWS_AT_ONCE} windows may overlap, as each is encoded, got a window of "
                f"{self.windows[1]:g} s every {self.windows[0]:g} s: raise every_seconds"
            )
        resolve_protocol(self.protocol, self.views)

    @property
    def windows(self) -> tuple[float, float] | None:
        """(seconds between starts of windows, seconds of a window); None if videos are scored as a whole."""
        if self.every_seconds is None:
            return None if self.video is None else (_DRAWN_EVERY_S, _LEAST_WINDOW_S)
        return self.every_seconds, self.window_seconds or max(self.every_seconds, _LEAST_WINDOW_S)


@dataclass(frozen=True, kw_only=True)
class PullConfig:
    """Download a registered model for use without MLflow: weights, settings and classes."""

    out: str
    """Directory for model.safetensors and model.json."""

    model: str = "models:/two-stream@champion"
    """models:/NAME@champion, models:/NAME/VERSION, or runs:/ID/model."""

    tracking: TrackingConfig = field(default_factory=TrackingConfig)
    """MLflow, whose registry has the model."""


@dataclass(frozen=True, kw_only=True)
class PromoteConfig:
    """Make a registered version champion if it beats the current one: twostream promote 7."""

    version: str = ""
    """Number of the version to promote; by default the newest."""

    split: str | None = None
    """Split to compare on; needed only if the version was measured on several."""

    manifest: str = ""
    """First digits of the data manifest's hash; needed only if the version was measured on several."""

    tracking: TrackingConfig = field(default_factory=TrackingConfig)
    """MLflow, whose registry has the model; `tracking.model_name` is the model's name."""

    def __post_init__(self) -> None:
        if self.version and not re.fullmatch(r"[1-9]\d{0,8}", self.version, flags=re.ASCII):
            raise ConfigError(f"version must be a version number of the registry, such as 7, got {brief(self.version)}")


@dataclass(frozen=True, kw_only=True)
class RollbackConfig:
    """Set the champion of a registered model back to the previous version, or to a named one."""

    to: int | None = None
    """Version to make champion; by default the previous champion; repeating it goes further back."""

    because: str = ""
    """The reason, stored as a tag of the version that is replaced."""

    tracking: TrackingConfig = field(default_factory=TrackingConfig)
    """MLflow, whose registry has the model; `tracking.model_name` is the model's name."""

    def __post_init__(self) -> None:
        require_within(self, to="[1, 2_147_483_647]")


@dataclass(frozen=True, kw_only=True)
class StreamScoresConfig:
    """Scores of the same clips by two streams: two evaluations, or one of a network with both towers."""

    spatial: str | None = None
    """The spatial network's evaluation, as path, file:// or s3:// URI of its folder; or an .npz with logits (N, K),
    labels (N,) and clip_ids (N,)."""

    temporal: str | None = None
    """The temporal network's evaluation, or an .npz."""

    both: str | None = None
    """The evaluation of a network with both towers instead; or an .npz with spatial (N, K), temporal (N, K), labels
    (N,) and clip_ids (N,)."""

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
    """Searches the best late fusion of two streams' scores: thousands of settings in seconds, without a network."""

    choose: StreamScoresConfig
    """Clips to choose the setting on, preferably a validation split."""

    quote: StreamScoresConfig = field(default_factory=StreamScoresConfig)
    """Other clips, such as the test split, to quote the chosen setting's accuracy on."""

    of: list[Literal["logits", "softmax"]] = field(default_factory=lambda: ["logits", "softmax"])
    """What to average: the logits, or their softmax as in Simonyan and Zisserman 2014."""

    weight_step: float = 0.005
    """Step between weights of the temporal stream, in (0, 1]; weights range from 0 to 1."""

    temperatures: list[float] = field(default_factory=lambda: [1.0, 4.0, 16.0, 64.0])
    """Temperatures to try, above 0: each stream's logits are divided by each of them before the softmax."""

    svm_penalties: list[float] = field(default_factory=list)
    """C of linear SVMs to try, compared by cross-validation on `choose` and fitted to all of it; needs `quote`."""

    head: str | None = None
    """Name of the data set to choose for, of networks that were trained on several; by default one setting is chosen
    for all of them together, and its accuracy is shown for each."""

    out: str = "tuned_scores"
    """Directory or s3:// prefix for fusion.json and fusion.png."""

    def __post_init__(self) -> None:
        if not self.choose.given():
            raise ConfigError(
                "choose.spatial and choose.temporal (folders of `evaluate`), or choose.both, are wanted, got none"
            )
        if not self.of:
            raise ConfigError("of must name logits, softmax or both, got none")
        require_within(self, weight_step="[0.0001, 1]", temperatures="(0, 1e6]", svm_penalties="(0, 1e9]")
        if not self.temperatures:
            raise ConfigError("temperatures must hold at least one, got none")
        if self.svm_penalties and not self.quote.given():
            raise ConfigError(
                "svm_penalties need quote.spatial and quote.temporal (or quote.both): an SVM must not be evaluated on "
                "clips that it was fitted to"
            )


@dataclass(frozen=True, kw_only=True)
class CompareConfig:
    """Compares two evaluations of the same clips by their cached scores: which model is better, with what confidence,
    and where.
    """

    first: str
    """A: folder or s3:// prefix that `evaluate` wrote, folder of a run, or a run's name below runs/."""

    second: str
    """B: the evaluation to compare with it, of the same split of the same shards."""

    shards: str | None = None
    """The shards, for pictures of clips; by default those that A was evaluated on, if they can be read."""

    num_clips: int = 12
    """Number of clips to show, those on which the two differ most."""

    out: str = "comparison"
    """Directory or s3:// prefix for compare.json and compare.html."""

    def __post_init__(self) -> None:
        require_within(self, num_clips="[0, 1_000]")
