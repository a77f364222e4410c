"""Why a model takes a video for a class: fetch it, explain its answer, draw the reasons as a page or a video."""

from __future__ import annotations

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


@dataclass(frozen=True, kw_only=True)
class ExplainConfig:
    """Why a trained model takes a video for a class: where it looked, in which stream, and when."""

    video: str
    """Path or URI of one video."""

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

    moments: int = 8
    """Snippets to draw on the page, evenly chosen among those of the views, 1..1000."""

    protocol: str = "validation"
    """Which views of the video are explained, one of those of `predict`."""

    views: ViewsConfig = field(default_factory=ViewsConfig)
    """What is changed of the protocol."""

    tracking: TrackingConfig = field(default_factory=TrackingConfig)
    """MLflow, where the model comes from its registry."""

    def __post_init__(self) -> None:
        require_within(self, moments="[1, 1_000]")
        if not self.out.lower().endswith((".html", ".mp4")):
            raise ConfigError(f"out must end in .html (a page) or .mp4 (a video), got {redact(self.out)}")
        resolve_protocol(self.protocol, self.views)


def explain(config: ExplainConfig) -> str:
    """Write the page or video; gives the answer and its reasons in a sentence.

    Raises:
        RegistryError, StorageError, CheckpointError: the model cannot be had, or the video or page not be read or
            written.
        VideoError: the video cannot be decoded whole.
        ConfigError: there is no such class, data set or layer, or the file is somebody else's.
    """
    from twostream_ray.runs.score.html_page import html_page

    location = storage.absolute(config.out)
    folder, _, name = location.rpartition("/")
    is_page = name.lower().endswith(".html")
    if is_page:
        refuse_foreign_files(folder, [name], begins=html_page("").partition(b"<title>")[0], verb="explain")
    else:
        refuse_unmarked_file(config.out, mark=_VIDEO_MARK, verb="explain", option="out")
    storage.require_writable(config.out)
    # They load torch, which refused settings and --help do without.
    from twostream_ray.data.video.isolation import prepare_in_subprocess
    from twostream_ray.explanation import Explainer
    from twostream_ray.heads import choose_heads
    from twostream_ray.inference import Classifier
    from twostream_ray.model_package import load_model
    from twostream_ray.runs.score import explanation_page

    protocol = resolve_protocol(config.protocol, config.views)
    with local_model(config.model, config=config.tracking) as directory:
        network, package = load_model(Path(directory))
    head = choose_heads(package.heads, config.head, of="the model")[0]
    explainer = Explainer(network, package, protocol=protocol, layers=config.layers)
    names = head.classes_of(package.classes)
    if config.label is not None and config.label not in names:
        raise ConfigError(f"label must be a class of the model, got {config.label!r}: it has {', '.join(names)}")
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
    if is_page:
        content = explanation_page.explanation_page(reasons, moments=config.moments)
    else:
        content = explanation_page.explanation_video(reasons, mark=_VIDEO_MARK)
    storage.write_bytes(location, content)
    return reasons.sentence()
