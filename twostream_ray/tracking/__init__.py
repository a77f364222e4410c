"""Experiment tracking and model registry; the only package that uses MLflow, which is imported at the first call."""

from twostream_ray.tracking.champion import Rollback, Verdict, promote, rollback
from twostream_ray.tracking.comparison import (
    comparable_measurement,
    find_version,
    logged_shards,
    names_version,
    newest_version,
    unmeasured_champion,
    version_card,
)
from twostream_ray.tracking.connection import answer_seconds
from twostream_ray.tracking.delivery import Delivery, replay
from twostream_ray.tracking.download import pull, registered_classes
from twostream_ray.tracking.lineage import TRAIN_SPLIT, lineage_tags
from twostream_ray.tracking.measurement import Measurement
from twostream_ray.tracking.outbox import list_outboxes
from twostream_ray.tracking.record import (
    DESCRIPTION,
    RunHandle,
    deliver,
    find_run,
    finish_run,
    log_artifacts,
    log_data,
    log_history,
    log_metrics,
    log_pictures,
    parent_tags,
    send,
    start_run,
    tag_run,
    write_history,
)
from twostream_ray.tracking.registry import PACKAGE_FILES, record_measurement, register
from twostream_ray.tracking.settings import UNNAMED_DATA, TrackingConfig

__all__ = [
    "DESCRIPTION",
    "PACKAGE_FILES",
    "TRAIN_SPLIT",
    "UNNAMED_DATA",
    "Delivery",
    "Measurement",
    "Rollback",
    "RunHandle",
    "TrackingConfig",
    "Verdict",
    "answer_seconds",
    "comparable_measurement",
    "deliver",
    "find_run",
    "find_version",
    "finish_run",
    "lineage_tags",
    "list_outboxes",
    "log_artifacts",
    "log_data",
    "log_history",
    "log_metrics",
    "log_pictures",
    "logged_shards",
    "names_version",
    "newest_version",
    "parent_tags",
    "promote",
    "pull",
    "record_measurement",
    "register",
    "registered_classes",
    "replay",
    "rollback",
    "send",
    "start_run",
    "tag_run",
    "unmeasured_champion",
    "version_card",
    "write_history",
]
