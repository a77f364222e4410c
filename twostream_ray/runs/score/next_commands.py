"""Summary of a finished training: where its results are, and the next commands to paste into the same shell."""

from __future__ import annotations

import shlex

from twostream_ray.redaction import redact
from twostream_ray.runs.experiment import ExperimentConfig
from twostream_ray.runs.run_folder import RunFolder
from twostream_ray.runs.score.publish import Published
from twostream_ray.runs.train.run import TrainReport
from twostream_ray.tracking import TrackingConfig
from twostream_ray.tracking.settings import SERVERS


def summary(config: ExperimentConfig, trained: TrainReport, published: Published) -> list[str]:
    """Text lines about a finished run: model, plots, MLflow page, and the next commands."""
    model = trained.checkpoint
    if published.version is not None:
        model = f"models:/{published.name}/{published.version}"
    option = config.tracking.uri_option()
    evaluate = ["twostream", "evaluate", "--model", model, "--shards", config.data.shards]
    evaluate += ["--split", published.evaluation.split, "--out", f"evaluation-{config.name}"]
    lines = [
        f"model: {trained.checkpoint}",
        f"pictures and scores: {RunFolder.of(config).evaluation}",
        f"MLflow: {mlflow_page(config.tracking, trained)}",
        "next:",
        f"  {shlex.join(evaluate)}{option}",
        f"  twostream predict VIDEO {shlex.join(['--model', model])}{option}",
    ]
    if published.version is not None:
        lines.append(f"  {shlex.join(['twostream', 'pull', f'model-{config.name}', '--model', model])}{option}")
    return lines


def mlflow_page(tracking: TrackingConfig, trained: TrainReport) -> str:
    """Where to see the run in a browser: the server's page, or the command that serves a database."""
    uri = redact(tracking.resolved_uri())
    page = f"#/experiments/{trained.run.experiment_id}/runs/{trained.run.run_id}"
    if uri.startswith(SERVERS):
        return f"{uri.rstrip('/')}/{page}"
    return f"mlflow ui --backend-store-uri {shlex.quote(uri)}, then http://127.0.0.1:5000/{page}"
