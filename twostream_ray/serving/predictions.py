"""Handler of `POST /predict`: class scores of a video, in total and over time, and the streams' contributions."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

import numpy as np

from twostream_ray.data.encoded_clip import EncodedClip
from twostream_ray.errors import ConfigError
from twostream_ray.heads import ClassScores, Head, choose_heads
from twostream_ray.serving.jobs import Job
from twostream_ray.serving.refusals import Refusal
from twostream_ray.stream_contributions import Sample, mean_contributions, stream_contributions


def predict(job: Job, *, top_k: int = 5, streams: bool = False, head: str | None = None) -> dict[str, Any]:
    """The response body, a `PredictionAnswer` as a dictionary.

    Raises:
        Refusal: the model has no head of this name.
        VideoError: the video cannot be used.
        CheckpointError: the network's output is not finite.
        CancelledError: the request was cancelled.
    """
    started = time.perf_counter() - job.timings.receive_seconds - job.timings.wait_seconds
    classifier = job.model.classifier
    try:
        heads = choose_heads(classifier.heads, head, of="the model")
    except ConfigError as error:
        raise Refusal("bad_parameter", str(error)) from None
    clip = job.clip()
    with job.network():
        scores, spans = classifier.score_over_time(clip, on_batch=job.require_wanted)
        shares = None
        if streams:
            best = heads[0].start + int(scores.logits[heads[0].columns].argmax())
            shares = stream_shares(job, clip, class_index=best)
    job.timings.total_seconds = time.perf_counter() - started
    return {
        "model": job.model.identity(),
        "protocol": classifier.protocol.name,
        "video": {
            "frames": clip.num_frames,
            "fps": clip.fps,
            "seconds": clip.num_frames / clip.fps,
            "width": clip.width,
            "height": clip.height,
            "notes": list(clip.notes),
        },
        "heads": [_answer(head, scores, classes=classifier.classes, top_k=top_k) for head in heads],
        "over_time": [
            {
                "start_seconds": span.start_seconds,
                "end_seconds": span.end_seconds,
                "heads": [
                    {"name": head.name, "probabilities": span.scores.probabilities[head.columns].tolist()}
                    for head in heads
                ],
            }
            for span in spans
        ],
        "streams": shares,
        "timings": asdict(job.timings),
    }


def stream_shares(job: Job, clip: EncodedClip, *, class_index: int) -> dict[str, Any]:
    """How much appearance and motion each move a class's logit, mean over the views, in [0, 1].

    Raises:
        CheckpointError: the network's output is not finite.
        CancelledError: the request was cancelled.
    """
    classifier, parts = job.model.classifier, []
    for rgb, flow in classifier.samples(clip):
        job.require_wanted()
        parts.append(stream_contributions(classifier.network, Sample(rgb, flow), class_index=class_index))
    mean = mean_contributions(parts)
    shares = mean.shares
    return {
        "appearance": shares.get("spatial", 0.0),
        "motion": shares.get("temporal", 0.0),
        "method": mean.method,
    }


def _answer(head: Head, scores: ClassScores, *, classes: Sequence[str], top_k: int) -> dict[str, Any]:
    logits, probabilities = (values[head.columns].tolist() for values in scores)
    table = [
        {"class": name, "probability": probability, "logit": logit}
        for name, probability, logit in zip(head.classes_of(classes), probabilities, logits, strict=True)
    ]
    best = np.argsort(-scores.logits[head.columns], kind="stable")[:top_k]
    return {"name": head.name, "top": [table[index] for index in best], "scores": table}
