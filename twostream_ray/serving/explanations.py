"""Reasons for an answer as JSON: streams' shares, importance of seconds, class activations as data URIs (RFC 2397).

What is explained are views of the protocol that an answer is made by, of which there are few here: gradients and
occlusions take many passes of the network for each.
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
"""Of one answer: each has up to five pictures, 10 to 20 kB apiece at 224 px."""

_MOST_TIMES = 4
_SHOWN_OVER = {"spatial": ("frame", "motion"), "temporal": ("motion", "frame"), "fused": ("frame", "motion")}
"""The picture that a layer lights, the second where the network was not shown the first."""
_QUALITY = 90
_GIVE_WAY_S = 0.001
"""Between two passes, for whoever waits for the network: without it the lock goes to who has just let go of it."""


class AddedByStreams(BaseModel):
    """What the streams add to the class's relative logit, from mean RGB and no motion to the video."""

    appearance: float | None = Field(description="Share of what moves the logit, in [0, 1]; null: no such stream.")
    motion: float | None = Field(description="Share of what moves the logit, in [0, 1]; null: no such stream.")
    method: Literal["exact", "integrated gradients", "shapley"]
    gap: float = Field(description="How far the parts are from the whole, as a share of it; above 0.01 they are rough.")
    baseline: float = Field(description="Relative logit of mean RGB and no motion.")
    logit: float = Field(description="Relative logit of the video.")
    added: dict[str, float] = Field(description="What `appearance` and `motion` add, in logits; signed.")


class ImportantSeconds(BaseModel):
    """How much the class depends on a part of the video."""

    start_seconds: float
    end_seconds: float
    importance: float = Field(description="By how much the relative logit falls when the part is hidden.")


class Moment(BaseModel):
    """Pictures of one snippet; each is a JPEG as a data URI, as the network is shown it."""

    seconds: float = Field(description="From the start of the video.")
    rgb: str | None
    flow: str | None = Field(description="Motion as colours: the hue is the direction, white is none.")
    overlays: dict[str, str] = Field(
        description="Class activation of `spatial` over the frame, `temporal` over the motion, `fused` over the frame."
    )


class Reasons(BaseModel):
    """Why a video gets a class, or what speaks for one that it does not get."""

    label: str
    views: int = Field(description="Views that were looked at: at most four, centre crops where an answer has several.")
    streams: AddedByStreams
    seconds: list[ImportantSeconds]
    moments: list[Moment]
    missing: dict[str, str] = Field(description="Overlays that the network cannot have, and why.")
    fastest_px: float = Field(description="Displacement from one frame to the next that gets the full colour.")
    clip: str | None = Field(
        default=None, description="With clip=true the video as it was prepared, an MP4 (H.264) as a data URI."
    )


class ExplanationAnswer(PredictionAnswer):
    """Answer of POST /explain: that of /predict, and why."""

    reasons: Reasons


def explain(
    job: Job, *, label: str | None = None, moments: int = 8, with_clip: bool = False, top_k: int = 5
) -> dict[str, Any]:
    """The whole answer, of the best class of the first data set where no label is given.

    Others get the network between two passes: an explanation takes a hundred times what an answer does.

    Raises:
        Refusal: the model has no such class.
        VideoError: the video cannot be used.
        CheckpointError: the network's answer is no number.
        CancelledError: nobody waits any more.
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
    """The few of a protocol's views that are explained: at most four times, one crop, none mirrored."""
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
    """Why a clip gets a class.

    Args:
        network: of the package.
        package: classes, sampling and flow contract.
        clip: prepared as the contract says.
        label: the class to explain.
        protocol: what the answer was made by.
        moments: snippets to draw, 1..MOST_MOMENTS.
        device: where the network computes.
        with_clip: whether the prepared video is part of the answer.
        on_progress: called before every pass of the network; what it raises ends the work.

    Raises:
        ConfigError: the model has no such class, or the network cannot take the protocol's samples.
        DecodeError: the clip lacks a stream that the network needs, or is damaged.
        CheckpointError: the network's answer is no number.
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
    """Each time with the part of the video that is nearer to it than to any other."""
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
    # Colours mean directions: none are averaged over pixels.
    options = [cv2.IMWRITE_JPEG_QUALITY, _QUALITY]
    options += [cv2.IMWRITE_JPEG_SAMPLING_FACTOR, cv2.IMWRITE_JPEG_SAMPLING_FACTOR_444]
    return _data_uri("image/jpeg", cv2.imencode(".jpg", picture[..., ::-1], options)[1].tobytes())


def _data_uri(media_type: str, content: bytes) -> str:
    return f"data:{media_type};base64,{base64.b64encode(content).decode('ascii')}"
