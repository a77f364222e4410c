"""Runs, metrics, artefacts, model registry, champion: the only door of MLflow; importing it does not load MLflow."""

from twostream_ray.tracking.champion import Verdict, promote
from twostream_ray.tracking.connection import TrackingConfig
from twostream_ray.tracking.lineage import lineage_tags
from twostream_ray.tracking.measurement import Measurement
from twostream_ray.tracking.record import (
    RunHandle,
    finish_run,
    log_artifacts,
    log_metrics,
    log_pictures,
    resume_run,
    start_run,
)
from twostream_ray.tracking.registry import pull, record_measurement, register

__all__ = [
    "Measurement",
    "RunHandle",
    "TrackingConfig",
    "Verdict",
    "finish_run",
    "lineage_tags",
    "log_artifacts",
    "log_metrics",
    "log_pictures",
    "promote",
    "pull",
    "record_measurement",
    "register",
    "resume_run",
    "start_run",
]
