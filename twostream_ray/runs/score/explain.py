"""Explanations of predictions (Grad-CAM, stream contributions, occlusion): of a video, or of the worst mistakes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from twostream_ray import storage
from twostream_ray.data.protocols import ViewsConfig, resolve_protocol
from twostream_ray.errors import ConfigError
from twostream_ray.model_source import local_model
from twostream_ray.redaction import redact
from twostream_ray.runs.outputs import refuse_foreign_files, refuse_unmarked_file
from twostream_ray.settings.bounds import require_within
from twostream_ray.tracking import TrackingConfig

_VIDEO_MARK = "made by twostream_ray explain"
_MOMENTS = 8
_MOMENTS_OF_A_MISTAKE = 1


@dataclass(frozen=True, kw_only=True)
class ExplainConfig:
    """Explains why a model predicts a class for a video: where it looked, in which stream, and when."""

    video: str | None = None
    """Path or URI of one video; None if `worst` is given."""

    model: str = "models:/two-stream@champion"
    """models:/NAME@champion, models:/NAME/VERSION, runs:/ID/model, or a directory with model.safetensors."""

    out: str = "explanation.html"
    """File to write. .html: a self-contained page with pictures, shares of the streams and seconds; .mp4: the pictures
    one after the other, two per second."""

    label: str | None = None
    """Class to explain, such as the true one where the model is wrong; by default the predicted class."""

    head: str | None = None
    """Name of the data set to predict for, of a model that was trained on several; by default the first."""

    layers: list[str] = field(default_factory=list)
    """Layers whose activations are shown: spatial and temporal, the last maps of either tower, and fused, the last maps
    after the fusion; by default all that the network has."""

    worst: int | None = None
    """Instead of a video, explain this many clips of an evaluation, 1..1000: those where the model is most confident of
    another class than the label, which is often a wrong label. Both classes are explained."""

    scores: str = "evaluation"
    """Evaluation to take the `worst` from: folder or s3:// prefix that `evaluate` wrote, folder of a run, or a run's
    name below runs/. The model must be the evaluated one."""

    shards: str | None = None
    """The shards of the `worst`; by default where they were when they were evaluated. For a video: shards whose clips
    are the baseline of the streams' shares; by default mean RGB and no motion, which is cheaper."""

    split: str | None = None
    """The split of the `scores`, by default any; for a video, the split of the `shards`, by default train."""

    moments: int | None = None
    """Snippets to draw on the page, 1..1000. For a video by default 8, evenly spaced among those of the views; for each
    class of the `worst` 1, the one without which the class's logit falls most."""

    protocol: str = "validation"
    """Protocol, as of `predict`, whose views of the video are explained."""

    views: ViewsConfig = field(default_factory=ViewsConfig)
    """Changes to the protocol."""

    tracking: TrackingConfig = field(default_factory=TrackingConfig)
    """MLflow, for a model from its registry."""

    def __post_init__(self) -> None:
        require_within(self, moments="[1, 1_000]", worst="[1, 1_000]")
        if (self.video is None) == (self.worst is None):
            raise ConfigError("explain wants one video, or --worst N to explain the worst mistakes of an evaluation")
        if self.worst is not None and (self.label is not None or not self.is_page):
            raise ConfigError(
                "the worst mistakes are written to a page that explains label and prediction: give --out NAME.html and "
                "no --label"
            )
        if not self.out.lower().endswith((".html", ".mp4")):
            raise ConfigError(f"out must end in .html (a page) or .mp4 (a video), got {redact(self.out)}")
        resolve_protocol(self.protocol, self.views)

    @property
    def is_page(self) -> bool:
        """Whether a page is written, not a video."""
        return self.out.lower().endswith(".html")


def explain(config: ExplainConfig, *, progress: Callable[[int, int], object] = lambda _done, _total: None) -> str:
    """Write the page or video; returns the prediction and its reasons in a sentence.

    `progress` is called with (clips done, clips in all) if there are several.

    Raises:
        RegistryError, StorageError, CheckpointError: the model or video cannot be read, or the file not be written.
        VideoError: the video cannot be decoded completely.
        ConfigError: there is no such class, data set or layer, or the file exists and was not written by this verb.
    """
    location = storage.absolute(config.out)
    _refuse_foreign_file(config, location)
    storage.require_writable(config.out)
    if config.worst is not None:
        return _explain_worst(config, location, progress=progress)
    # Imported late: they import torch, which --help and refused settings do not need.
    from twostream_ray.data.video.isolation import prepare_in_subprocess
    from twostream_ray.explanation import Explainer
    from twostream_ray.heads import choose_heads
    from twostream_ray.inference import Classifier
    from twostream_ray.model_package import load_model
    from twostream_ray.runs.score import explanation_page
    from twostream_ray.runs.score.worst_mistakes import references_of

    protocol = resolve_protocol(config.protocol, config.views)
    with local_model(config.model, config=config.tracking) as directory:
        network, package = load_model(Path(directory))
    head = choose_heads(package.heads, config.head, of="the model")[0]
    explainer = Explainer(
        network, package, protocol=protocol, layers=config.layers, references=references_of(config, network, package)
    )
    names = head.classes_of(package.classes)
    if config.label is not None and config.label not in names:
        raise ConfigError(f"label must be a class of the model, got {config.label!r}: it has {', '.join(names)}")
    assert config.video is not None  # noqa: S101  (checked by the settings)
    clip = prepare_in_subprocess(
        storage.read_bytes(storage.absolute(config.video)), package.contract, name=config.video
    )
    scores = Classifier(network, package, protocol=protocol).score_clip(clip, name=config.video)
    best = head.start + int(scores.logits[head.columns].argmax())
    wanted = best if config.label is None else head.start + names.index(config.label)
    explanation = explainer.explain(clip, class_index=wanted)
    reasons = explanation_page.Reasons(
        video=config.video,
        model=config.model,
        label=package.classes[wanted],
        best=package.classes[best],
        probability=float(scores.probabilities[wanted]),
        duration_seconds=clip.num_frames / clip.fps,
        explanation=explanation,
    )
    if config.is_page:
        content = explanation_page.explanation_page(reasons, moments=config.moments or _MOMENTS)
    else:
        content = explanation_page.explanation_video(reasons, mark=_VIDEO_MARK)
    storage.write_bytes(location, content)
    return reasons.sentence()


def _refuse_foreign_file(config: ExplainConfig, location: str) -> None:
    from twostream_ray.runs.score.html_page import html_page

    folder, _, name = location.rpartition("/")
    if config.is_page:
        refuse_foreign_files(folder, [name], begins=html_page("").partition(b"<title>")[0], verb="explain")
    else:
        refuse_unmarked_file(config.out, mark=_VIDEO_MARK, verb="explain", option="out")


def _explain_worst(config: ExplainConfig, location: str, *, progress: Callable[[int, int], object]) -> str:
    from twostream_ray.runs.score.worst_mistakes import explain_mistakes
    from twostream_ray.runs.score.worst_page import worst_page

    found = explain_mistakes(config, progress=progress)
    storage.write_bytes(location, worst_page(found, moments=config.moments or _MOMENTS_OF_A_MISTAKE))
    return (
        f"{found.num_mistakes} of {len(found.scores.labels)} clips of split {found.scores.about.split} are predicted "
        f"as another class than their label; the {len(found.worst)} most confident are explained"
    )
