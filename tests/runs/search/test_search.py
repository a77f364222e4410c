import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from noise_shards import noise_shards

from twostream_ray import storage, tracking
from twostream_ray.data.loading.settings import DataConfig
from twostream_ray.data.shards.shards import ShardSet
from twostream_ray.runs.experiment import ExperimentConfig, with_absolute_uris
from twostream_ray.runs.run_folder import RunFolder
from twostream_ray.runs.score import publish
from twostream_ray.runs.score.publish import Published, kept_publication
from twostream_ray.runs.search import search as search_module
from twostream_ray.runs.search.ray_tune import BudgetStopper, ResultRecorder
from twostream_ray.runs.search.records import TrialRecord
from twostream_ray.runs.search.report import STATUS_TAG, SearchReport
from twostream_ray.runs.search.search import Search
from twostream_ray.runs.search.settings import SearchConfig, TuneConfig
from twostream_ray.runs.train.run import TrainReport
from twostream_ray.tracking import TrackingConfig
from twostream_ray.tracking.connection import client_for

TRAINED = {0: [0.1, 0.5, 0.4], 1: [0.2, 0.6], 2: [], 3: [0.3]}
"""What each trial has trained, by its own folder and MLflow run."""
TOLD = {
    0: ("finished", 3),
    1: ("stopped early", 1),
    2: ("failed", 0),
    3: ("running", 0),
}
"""How each trial ended, and of how many epochs Ray Tune was told."""


def epochs(scores: list[float]) -> list[dict[str, float]]:
    return [{"epoch": epoch, "val_top1": score} for epoch, score in enumerate(scores)]


@pytest.fixture
def shards(tmp_path: Path) -> ShardSet:
    return noise_shards(str(tmp_path / "shards"), rows=(12,), num_fields=2)


@pytest.fixture
def config(shards: ShardSet, tmp_path: Path) -> TuneConfig:
    tracking_config = TrackingConfig(uri=f"sqlite:///{tmp_path}/mlflow.db", model_name="best")
    return with_absolute_uris(
        TuneConfig(
            name="search",
            data=DataConfig(shards=shards.uri, validation_fraction=0.25),
            search=SearchConfig(space={"training.learning_rate": {"low": 1e-4, "high": 1e-1, "log": True}}, trials=4),
            storage=str(tmp_path / "runs"),
            tracking=tracking_config,
        )
    )


def number_of(experiment: ExperimentConfig) -> int:
    return int(experiment.name.rpartition("-")[2])


@pytest.fixture
def published(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The trials that were evaluated and registered; training and scoring are left out."""

    def report(experiment: ExperimentConfig, record: TrialRecord) -> TrainReport:
        best = max(record.history, key=lambda metrics: metrics["val_top1"])
        run = tracking.RunHandle(tracking_uri="", run_uri="", experiment_id="", run_id="")
        return TrainReport(
            name=record.name,
            checkpoint=f"{RunFolder.of(experiment).uri}/epoch-{int(best['epoch']):04d}",
            history=record.history,
            parameters=record.parameters,
            seconds=1.0,
            run=run,
            done_before=False,
        )

    calls: list[str] = []

    def publish_run(experiment: ExperimentConfig, trained: TrainReport, *, shard_set: ShardSet) -> Published:
        calls.append(f"{experiment.name} {trained.checkpoint.rpartition('/')[2]} {experiment.data.test_split}")
        stored = {"version": len(calls), "verdict": f"verdict {len(calls)}"}
        uri = RunFolder.of(experiment).published
        storage.write_json(uri, stored | publish._publication_of(experiment, trained.checkpoint))
        return Published(evaluation=None, name="m", version=len(calls), verdict=f"verdict {len(calls)}")

    monkeypatch.setattr(search_module, "trial_report", report)
    monkeypatch.setattr(search_module, "publish_run", publish_run)
    monkeypatch.setattr(search_module, "epochs_so_far", lambda experiment: epochs(TRAINED[number_of(experiment)]))
    return calls


def ended(config: TuneConfig, shards: ShardSet) -> Search:
    """A search whose trials have trained on while Ray Tune was stopping them."""
    search = Search(config, shards)
    search.start()
    for number, (status, told) in TOLD.items():
        name = search.trial_name(number)
        record = TrialRecord(
            number=number,
            name=name,
            settings={"training.learning_rate": 0.01 / (number + 1)},
            parameters=10,
            status=status,
            reason="by asha after 1 of 30 epochs" if status == "stopped early" else "",
            history=epochs(TRAINED[number])[:told],
        )
        search.trials.put(record)
        child = tracking.start_run(
            config.tracking, run_name=name, run_uri=search.folder.trial(name).uri, parameters={}, tags={}
        )
        history = {epoch: {"val_top1": score} for epoch, score in enumerate(TRAINED[number])}
        tracking.log_history(child, history)
        tracking.finish_run(child, "KILLED")
    return search


def rows(report: SearchReport) -> dict[str, tuple[int, float | None]]:
    return {record.name: (len(record.history), record.score) for record in report.records}


@pytest.mark.slow
def test_the_table_and_mlflow_have_the_same_epochs_and_best_score_of_every_trial(
    config: TuneConfig, shards: ShardSet, published: list[str]
) -> None:
    search = ended(config, shards)
    report = search.finish()
    table = json.loads(Path(search.folder.uri, "trials.json").read_text())
    client = client_for(config.tracking.resolved_uri())
    runs = client.search_runs([client.get_experiment_by_name(config.tracking.experiment).experiment_id])
    by_name = {run.info.run_name: run for run in runs}
    for row in table:
        run = by_name[row["trial"]]
        values = [metric.value for metric in client.get_metric_history(run.info.run_id, "val_top1")]
        assert row["epochs"] == len(values), row
        assert row["score"] == max(values, default=None) == run.data.metrics.get("best_val_top1")
    assert by_name["search"].data.metrics["best_val_top1"] == 0.6
    stopped = by_name["search-0001"]
    assert stopped.data.tags[STATUS_TAG] == "stopped early by asha after 2 of 30 epochs"
    assert table[1]["reason"] == "by asha after 2 of 30 epochs"
    # The best checkpoint is of an epoch that Tune was never told of.
    assert report.best.name == "search-0001" and published == [
        f"search-0001 epoch-0001 {config.data.split_to_validate}"
    ]
    assert rows(report) == rows(Search(config, shards).finish()), "nothing is counted twice"


@pytest.mark.soak
def test_what_was_registered_and_has_not_changed_is_not_registered_again(
    config: TuneConfig, shards: ShardSet, published: list[str]
) -> None:
    first = ended(config, shards).finish()
    assert first.published is not None and first.verdict == "verdict 1" and len(published) == 1
    again = Search(replace(config, search=replace(config.search, trials=5)), shards).finish()
    assert (again.published, again.verdict, again.done_before) == (None, "verdict 1", False)
    assert len(published) == 1
    elsewhere = replace(config, tracking=replace(config.tracking, model_name="another"))
    assert Search(elsewhere, shards).finish().verdict == "verdict 2"
    best = Search(elsewhere, shards)
    best.trials.put(replace(best.trials.records[0], history=epochs([0.1, 0.9])))
    assert best.finish().verdict == "verdict 3" and published[-1].startswith("search-0000 epoch-0001 ")


@pytest.mark.slow
def test_a_search_leaves_the_recipe_of_its_best_trial_and_the_command_that_trains_it_longer(
    config: TuneConfig, shards: ShardSet, published: list[str]
) -> None:
    report = ended(config, shards).finish()
    assert report.longer.endswith("/search/best.yaml --name search-0001-longer --training.epochs 60")
    text = Path(config.storage, config.name, "best.yaml").read_text()
    assert "learning_rate: 0.005" in text and report.longer in text


def test_a_run_that_an_earlier_version_published_is_published_again(config: TuneConfig) -> None:
    experiment = ExperimentConfig(name="run", data=config.data, storage=config.storage, tracking=config.tracking)
    trained: Any = type("Trained", (), {"checkpoint": "runs/search/epoch-0001"})
    assert kept_publication(experiment, trained) is None
    storage.write_json(RunFolder.of(experiment).published, {"version": 1, "verdict": "v", "split": "test"})
    assert kept_publication(experiment, trained) is None
    stored = {"version": 1, "verdict": "v"} | publish._publication_of(experiment, trained.checkpoint)
    storage.write_json(RunFolder.of(experiment).published, stored)
    kept = kept_publication(experiment, trained)
    assert kept is not None and (kept.version, kept.verdict) == (1, "v")
    trained.checkpoint = "runs/search/epoch-0002"
    assert kept_publication(experiment, trained) is None


def test_a_search_whose_output_is_closed_stops_without_blaming_a_trial(config: TuneConfig, shards: ShardSet) -> None:
    search = Search(config, shards)
    stopper = BudgetStopper(search, lambda: False)
    assert not stopper.stop_all()

    def closed(*_: Any) -> None:
        raise BrokenPipeError

    ResultRecorder(search, closed).on_trial_start(0, [], SimpleNamespace(config={"number": 0}))
    assert stopper.stop_all() and isinstance(search.closed_output, BrokenPipeError)
