"""Handler of `POST /explain`: attribution to streams and seconds, Grad-CAM overlays as data URIs (RFC 2397).

Only a few of the protocol's views are explained: gradients and occlusions take many forward passes per view.
"""

from __future__ import annotations

import base64
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, Literal

import cv2
import torch
from pydantic import BaseModel, Field

from twostream_ray.data.encoded_clip import EncodedClip
from twostream_ray.data.protocols import Crops, Protocol
from twostream_ray.errors import ConfigError
from twostream_ray.explanation import ExplainedSnippet, Explainer, Explanation
from twostream_ray.explanation_pictures import Picture, chosen_snippets, fastest_px, lit_pictures, plain_pictures
from twostream_ray.model_package import ModelPackage
from twostream_ray.models.build import Network
from twostream_ray.serving.answers import PredictionAnswer
from twostream_ray.serving.jobs import Job
from twostream_ray.serving.predictions import predict
from twostream_ray.serving.refusals import Refusal

MOST_MOMENTS = 32
"""Snippets drawn per answer: each has up to five pictures of 10 to 20 kB at 224 px."""

_MOST_TIMES = 4
_SHOWN_OVER = {"spatial": ("frame", "motion"), "temporal": ("motion", "frame"), "fused": ("frame", "motion")}
"""Layer -> the picture under its overlay; the second if the network was not given the first."""
_QUALITY = 90
_GIVE_WAY_S = 0.001
"""Pause between two forward passes: without it the thread that released the lock takes it again at once."""


class AddedByStreams(BaseModel):
    """Contributions of the streams to the class's relative logit, from a baseline of mean RGB and no motion."""

    appearance: float | None = Field(description="Share of the change of the logit, in [0, 1]; null: no such stream.")
    motion: float | None = Field(description="Share of the change of the logit, in [0, 1]; null: no such stream.")
    method: Literal["exact", "integrated gradients", "shapley"]
    gap: float = Field(
        description="Completeness error of the contributions relative to their sum; above 0.01 they are rough."
    )
    baseline: float = Field(description="Relative logit of mean RGB and no motion.")
    logit: float = Field(description="Relative logit of the video.")
    added: dict[str, float] = Field(description="Contributions of `appearance` and `motion` in logits; signed.")


class ImportantSeconds(BaseModel):
    """Occlusion importance of one part of the video for the class."""

    start_seconds: float
    end_seconds: float
    importance: float = Field(description="Fall of the relative logit when this part is occluded.")


class Moment(BaseModel):
    """Pictures of one snippet as the network receives it, each a JPEG in a data URI."""

    seconds: float = Field(description="From the start of the video.")
    rgb: str | None
    flow: str | None = Field(description="Optical flow as colours: the hue is the direction, white is no motion.")
    overlays: dict[str, str] = Field(
        description="Class activation of `spatial` over the frame, `temporal` over the motion, `fused` over the frame."
    )


class Reasons(BaseModel):
    """Evidence for a class, predicted or not."""

    label: str
    views: int = Field(description="Views that are explained: at most four, centre crops only.")
    streams: AddedByStreams
    seconds: list[ImportantSeconds]
    moments: list[Moment]
    missing: dict[str, str] = Field(description="Overlays that the network does not support, and why.")
    fastest_px: float = Field(description="Displacement between two frames, px, drawn in the full colour.")
    clip: str | None = Field(
        default=None, description="With clip=true the prepared video, an MP4 (H.264) in a data URI."
    )


class ExplanationAnswer(PredictionAnswer):
    """Response of POST /explain: that of /predict and the evidence for one class."""

    reasons: Reasons


def explain(
    job: Job, *, label: str | None = None, moments: int = 8, with_clip: bool = False, top_k: int = 5
) -> dict[str, Any]:
    """The response body, by default for the best class of the first head.

    An explanation takes about a hundred times as long as a prediction, so it yields the network between passes.

    Raises:
        Refusal: the model has no such class.
        VideoError: the video cannot be used.
        CheckpointError: the network's output is not finite.
        CancelledError: the request was cancelled.
    """
    started = time.perf_counter() - job.timings.receive_seconds - job.timings.wait_seconds
    classifier, lock = job.model.classifier, job.model.network_lock
    if label is not None and label not in classifier.classes:
        raise Refusal("bad_parameter", f"label must be a class of the model, got {label[:60]!r}: GET /model lists them")
    answer = predict(job, top_k=top_k)

    def give_way() -> None:
        lock.release()
        time.sleep(_GIVE_WAY_S)
        lock.acquire()
        job.require_wanted()

    with job.network():
        reasons = explain_clip(
            classifier.network,
            classifier.package,
            job.clip(),
            label=label or answer["heads"][0]["top"][0]["class"],
            protocol=classifier.protocol,
            moments=moments,
            device=classifier.device,
            with_clip=with_clip,
            on_progress=give_way,
        )
    answer["timings"] |= {
        "network_seconds": job.timings.network_seconds,
        "wait_seconds": job.timings.wait_seconds,
        "total_seconds": time.perf_counter() - started,
    }
    return {**answer, "reasons": reasons.model_dump()}


def explained_protocol(protocol: Protocol, package: ModelPackage) -> Protocol:
    """The protocol reduced for explanations: at most four temporal positions, one crop, no mirrored views."""
    times = min(protocol.times or package.sampling.test_times, _MOST_TIMES)
    crops: Crops = "full" if protocol.crops == "full" else "centre"
    return replace(protocol, times=times, crops=crops, mirrored=False)


def explain_clip(
    network: Network,
    package: ModelPackage,
    clip: EncodedClip,
    *,
    label: str,
    protocol: Protocol,
    moments: int = 8,
    device: torch.device | str = "cpu",
    with_clip: bool = False,
    on_progress: Callable[[], object] | None = None,
) -> Reasons:
    """Explain the score of a class for a clip.

    Args:
        network: built from the package.
        package: classes, sampling and flow contract.
        clip: prepared according to the contract.
        label: the class to explain.
        protocol: the evaluation protocol of the prediction.
        moments: snippets to draw, 1..MOST_MOMENTS.
        device: PyTorch device of the network.
        with_clip: whether the prepared video is part of the answer.
        on_progress: called before every forward pass; an exception from it aborts the explanation.

    Raises:
        ConfigError: the model has no such class, or the network does not accept the protocol's samples.
        DecodeError: the clip lacks a stream that the network needs, or is damaged.
        CheckpointError: the network's output is not finite.
    """
    if label not in package.classes:
        raise ConfigError(f"label must be a class of the model, got {label!r}: GET /model lists them")
    chosen = explained_protocol(protocol, package)
    found = Explainer(network, package, protocol=chosen, device=device).explain(
        clip, class_index=package.classes.index(label), on_progress=on_progress
    )
    fastest = fastest_px(found.snippets)
    return Reasons(
        label=label,
        views=chosen.times or 1,
        streams=_shares(found),
        seconds=_important_seconds(found, duration_seconds=clip.num_frames / clip.fps),
        moments=[_moment(snippet, max_px=fastest) for snippet in chosen_snippets(found.snippets, moments)],
        missing=found.missing,
        fastest_px=fastest,
        clip=_data_uri("video/mp4", bytes(clip.video)) if with_clip and clip.video is not None else None,
    )


def _shares(found: Explanation) -> AddedByStreams:
    streams = found.streams
    names = {"spatial": "appearance", "temporal": "motion"}
    return AddedByStreams(
        appearance=streams.shares.get("spatial"),
        motion=streams.shares.get("temporal"),
        method=streams.method,
        gap=streams.gap,
        baseline=streams.baseline,
        logit=streams.logit,
        added={names[stream]: value for stream, value in streams.by_stream.items()},
    )


def _important_seconds(found: Explanation, *, duration_seconds: float) -> list[ImportantSeconds]:
    """The explained times, each with the part of the video nearest to it."""
    middles = [(a + b) / 2 for a, b in zip(found.seconds, found.seconds[1:], strict=False)]
    starts, ends = [0.0, *middles], [*middles, duration_seconds]
    return [
        ImportantSeconds(start_seconds=start, end_seconds=end, importance=fall)
        for start, end, fall in zip(starts, ends, found.falls, strict=True)
    ]


def _moment(snippet: ExplainedSnippet, *, max_px: float) -> Moment:
    plain = plain_pictures(snippet, max_px=max_px)
    overlays = {}
    for layer in snippet.activations:
        lit = lit_pictures(snippet, layer, max_px=max_px)
        overlays[layer] = _jpeg(_first(lit, _SHOWN_OVER[layer]))
    return Moment(
        seconds=snippet.seconds,
        rgb=_jpeg(plain["frame"]) if "frame" in plain else None,
        flow=_jpeg(plain["motion"]) if "motion" in plain else None,
        overlays=overlays,
    )


def _first(shown: dict[str, Picture], wanted: Sequence[str]) -> Picture:
    return next(shown[what] for what in wanted if what in shown)


def _jpeg(picture: Picture) -> str:
    # Hues encode directions, so chroma must not be subsampled.
    options = [cv2.IMWRITE_JPEG_QUALITY, _QUALITY]
    options += [cv2.IMWRITE_JPEG_SAMPLING_FACTOR, cv2.IMWRITE_JPEG_SAMPLING_FACTOR_444]
    return _data_uri("image/jpeg", cv2.imencode(".jpg", picture[..., ::-1], options)[1].tobytes())


def _data_uri(media_type: str, content: bytes) -> str:
    return f"data:{media_type};base64,{base64.b64encode(content).decode('ascii')}"
