"""Response schema: the JSON of every answer, as the service's OpenAPI document describes it."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field


class _Answer(BaseModel):
    model_config = ConfigDict(extra="forbid", populate_by_name=True)


class ModelName(_Answer):
    """The version that an answer was made by."""

    uri: str = Field(description="as the service was started with; local for a directory")
    name: str
    version: str
    sha256: str = Field(description="of model.safetensors")


class VideoFacts(_Answer):
    """The video as it was decoded."""

    frames: int
    fps: float
    seconds: float
    width: int = Field(description="px, at the size that flow is computed at")
    height: int
    notes: list[str] = Field(description="what is not as it should be, though the video is used")


class ClassScore(_Answer):
    """A class and how sure the model is of it."""

    class_name: str = Field(alias="class")
    probability: float
    logit: float


class HeadAnswer(_Answer):
    """The answer by the classes of one data set."""

    name: str = Field(description="of the data set; empty where there is one alone")
    top: list[ClassScore] = Field(description="best first")
    scores: list[ClassScore] = Field(description="all classes, in the model's order")


class SpanHead(_Answer):
    """What a part of the video says by the classes of one data set."""

    name: str
    probabilities: list[float] = Field(description="in the order of the head's scores")


class Span(_Answer):
    """What the views of one part of the video say."""

    start_seconds: float
    end_seconds: float
    heads: list[SpanHead]


class StreamShares(_Answer):
    """How much each stream moves the best class's logit, in [0, 1]."""

    appearance: float
    motion: float
    method: Literal["exact", "integrated gradients", "shapley"]


class Timed(_Answer):
    """Seconds that the answer took."""

    receive_seconds: float
    wait_seconds: float
    decode_seconds: float
    network_seconds: float
    total_seconds: float


class PredictionAnswer(_Answer):
    """Answer of POST /predict."""

    model_config = ConfigDict(extra="forbid", protected_namespaces=())

    model: ModelName
    protocol: str
    video: VideoFacts
    heads: list[HeadAnswer]
    over_time: list[Span]
    streams: StreamShares | None
    timings: Timed


class ErrorWords(_Answer):
    """Why there is no answer."""

    kind: str
    message: str


class ErrorAnswer(_Answer):
    """Answer of whatever is refused."""

    error: ErrorWords


class ReadyAnswer(_Answer):
    """Answer of GET /readyz."""

    ready: bool
    model: ModelName | None


class ModelAnswer(_Answer):
    """Answer of GET /model."""

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
"""Of an answer, for the OpenAPI document."""
