"""Why a model takes videos for classes: one of them, as a page or a video; or an evaluation's worst mistakes."""

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
    """Why a trained model takes a video for a class: where it looked, in which stream, and when."""

    video: str | None = None
    """Path or URI of one video; None where `worst` is given."""

    model: str = "models:/two-stream@champion"
    """models:/NAME@champion, models:/NAME/VERSION, runs:/ID/model, or a directory with model.safetensors."""

    out: str = "explanation.html"
    """File to write. .html: a page with pictures, shares of the streams and seconds, which needs nothing else; .mp4:
    the pictures one after the other, two a second."""

    label: str | None = None
    """Class to explain, such as the right one where the model is wrong; by default the best class."""

    head: str | None = None
    """Name of the one data set to answer for, of a model that was trained on several; by default the first."""

    layers: list[str] = field(default_factory=list)
    """Where activations are looked at: spatial and temporal, the last maps of either tower, and fused, the last maps
    behind the fusion; by default all that the network has."""

    worst: int | None = None
    """In place of a video, explain so many clips of an evaluation, 1..1000: those where the model is surest of another
    class than the label's, which is often wrong there. Both classes are explained."""

    scores: str = "evaluation"
    """Where the `worst` are looked for: folder or s3:// prefix that `evaluate` wrote, folder of a run, or a run's name
    below runs/. The model must be the one that was evaluated."""

    shards: str | None = None
    """The shards that the `worst` are in; by default where they were when they were evaluated. Of a video: shards
    whose clips the streams' shares are counted from; by default from mean RGB and no motion, which is cheaper."""

    split: str | None = None
    """The split that the `scores` must be of, by default any; of a video, that of the `shards`, by default train."""

    moments: int | None = None
    """Snippets to draw on the page, 1..1000. Of a video by default 8, evenly chosen among those of the views; of each
    class of the `worst` 1, that without which the class's logit falls most."""

    protocol: str = "validation"
    """Which views of the video are explained, one of those of `predict`."""

    views: ViewsConfig = field(default_factory=ViewsConfig)
    """What is changed of the protocol."""

    tracking: TrackingConfig = field(default_factory=TrackingConfig)
    """MLflow, where the model comes from its registry."""

    def __post_init__(self) -> None:
        require_within(self, moments="[1, 1_000]", worst="[1, 1_000]")
        if (self.video is None) == (self.worst is None):
            raise ConfigError("explain wants one video, or --worst N to explain the worst mistakes of an evaluation")
        if self.worst is not None and (self.label is not None or not self.is_page):
            raise ConfigError("the worst mistakes go on a page (--out NAME.html), label and answer both: no --label")
        if not self.out.lower().endswith((".html", ".mp4")):
            raise ConfigError(f"out must end in .html (a page) or .mp4 (a video), got {redact(self.out)}")
        resolve_protocol(self.protocol, self.views)

    @property
    def is_page(self) -> bool:
        """Whether a page is written, and no video."""
        return self.out.lower().endswith(".html")


def explain(config: ExplainConfig, *, progress: Callable[[int, int], object] = lambda _done, _total: None) -> str:
    """Write the page or video; gives the answer and its reasons in a sentence.

    `progress` gets the clips done and to do, where there are several.

    Raises:
        RegistryError, StorageError, CheckpointError: the model cannot be had, or the video or page not be read or
            written.
        VideoError: the video cannot be decoded whole.
        ConfigError: there is no such class, data set or layer, or the file is somebody else's.
    """
    location = storage.absolute(config.out)
    _refuse_foreign_file(config, location)
    storage.require_writable(config.out)
    if config.worst is not None:
        return _explain_worst(config, location, progress=progress)
    # They load torch, which refused settings and --help do without.
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
    assert config.video is not None  # noqa: S101  (the settings have looked)
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
        f"{found.num_mistakes} of {len(found.scores.labels)} clips of split {found.scores.about.split} are taken for "
        f"another class than their label says; the {len(found.worst)} surest are explained"
    )
