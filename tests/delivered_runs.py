"""What an MLflow store says of the runs that tests delivered to it."""

from typing import Any

from twostream_ray.tracking import (
    TrackingConfig,
)
from twostream_ray.tracking.connection import client_for


def runs_of(config: TrackingConfig) -> list[Any]:
    client = client_for(config.resolved_uri())
    experiment = client.get_experiment_by_name(config.experiment)
    return list(client.search_runs([experiment.experiment_id])) if experiment else []


def history(config: TrackingConfig, run_id: str, metric: str) -> list[Any]:
    return sorted(
        client_for(config.resolved_uri()).get_metric_history(run_id, metric), key=lambda row: (row.step, row.timestamp)
    )
