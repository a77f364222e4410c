"""Response schema: the JSON of every answer, as the service's OpenAPI document describes it."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field


class _Answer(BaseModel):
    model_config = ConfigDict(extra="forbid", populate_by_name=True)


class ModelName(_Answer):
    """The model version that produced the answer."""

    uri: str = Field(description="as given to the service; `local` for a directory")
    name: str
    version: str
    sha256: str = Field(description="of model.safetensors")


class VideoFacts(_Answer):
    """The decoded video."""

    frames: int
    fps: float
    seconds: float
    width: int = Field(description="px, at the resolution at which flow is computed")
    height: int
    notes: list[str] = Field(description="defects of the video that do not prevent its use")


class ClassScore(_Answer):
    """A class with its probability and logit."""

    class_name: str = Field(alias="class")
    probability: float
    logit: float


class HeadAnswer(_Answer):
    """Scores of one classification head, the classes of one data set."""

    name: str = Field(description="of the data set; empty if the model has only one")
    top: list[ClassScore] = Field(description="best first")
    scores: list[ClassScore] = Field(description="all classes, in the model's order")


class SpanHead(_Answer):
    """Probabilities of one classification head for a part of the video."""

    name: str
    probabilities: list[float] = Field(description="in the order of the head's scores")


class Span(_Answer):
    """Scores of the views of one part of the video."""

    start_seconds: float
    end_seconds: float
    heads: list[SpanHead]


class StreamShares(_Answer):
    """Each stream's share of the best class's logit, in [0, 1]."""

    appearance: float
    motion: float
    method: Literal["exact", "integrated gradients", "shapley"]


class Timed(_Answer):
    """Latency of the answer by stage, in seconds."""

    receive_seconds: float
    wait_seconds: float
    decode_seconds: float
    network_seconds: float
    total_seconds: float


class PredictionAnswer(_Answer):
    """Response of POST /predict."""

    model_config = ConfigDict(extra="forbid", protected_namespaces=())

    model: ModelName
    protocol: str
    video: VideoFacts
    heads: list[HeadAnswer]
    over_time: list[Span]
    streams: StreamShares | None
    timings: Timed


class ErrorWords(_Answer):
    """Why a request was refused: a machine-readable kind and a sentence."""

    kind: str
    message: str


class ErrorAnswer(_Answer):
    """Response of every refused request."""

    error: ErrorWords


class ReadyAnswer(_Answer):
    """Response of GET /readyz."""

    ready: bool
    model: ModelName | None


class ModelAnswer(_Answer):
    """Response of GET /model."""

    model: ModelName
    heads: list[dict[str, Any]]
    contract: dict[str, Any]
    protocol: dict[str, str]
    card: str | None
    limits: dict[str, Any]
    device: str


EXAMPLE: dict[str, Any] = {
    "model": {"uri": "models:/two-stream@champion", "name": "two-stream", "version": "3", "sha256": "9f2c" * 16},
    "protocol": "validation",
    "video": {"frames": 250, "fps": 25.0, "seconds": 10.0, "width": 340, "height": 256, "notes": []},
    "heads": [
        {
            "name": "",
            "top": [{"class": "jump", "probability": 0.93, "logit": 4.1}],
            "scores": [
                {"class": "jump", "probability": 0.93, "logit": 4.1},
                {"class": "walk", "probability": 0.07, "logit": 1.5},
            ],
        }
    ],
    "over_time": [{"start_seconds": 0.0, "end_seconds": 2.0, "heads": [{"name": "", "probabilities": [0.9, 0.1]}]}],
    "streams": {"appearance": 0.4, "motion": 0.6, "method": "exact"},
    "timings": {
        "receive_seconds": 0.01,
        "wait_seconds": 0.0,
        "decode_seconds": 1.2,
        "network_seconds": 0.4,
        "total_seconds": 1.61,
    },
}
"""An example response of POST /predict for the OpenAPI document."""
