import json
import pickle
from pathlib import Path

import matplotlib.figure
import pytest

from twostream_ray.tracking import (
    RunHandle,
    TrackingConfig,
    find_run,
    finish_run,
    log_artifacts,
    log_data,
    log_metrics,
    log_pictures,
    start_run,
    tag_run,
)
from twostream_ray.tracking.connection import client_for
from twostream_ray.tracking.outbox import FOLDER
from twostream_ray.tracking.record import flat_parameters


def steps_of(handle: RunHandle, metric: str) -> list[tuple[int, float]]:
    return [(row.step, row.value) for row in client_for(handle.tracking_uri).get_metric_history(handle.run_id, metric)]


def test_run_keeps_parameters_metrics_tags_and_files(tracking: TrackingConfig, tmp_path: Path) -> None:
    parameters = {"model": {"fusion": {"layers": ["relu5_3"], "method": "conv"}}, "epochs": 3}
    handle = start_run(
        tracking, run_name="whole", run_uri=str(tmp_path), parameters=parameters, tags={"git_commit": "abc dirty"}
    )
    handle = pickle.loads(pickle.dumps(handle))
    log_metrics(handle, {"train/loss": 1.5, "validation/top1": 0.25}, step=0)
    log_metrics(handle, {"train/loss": 1.25, "validation/top1": 0.5}, step=1)
    (tmp_path / "table.csv").write_text("a,b\n")
    log_artifacts(handle, [tmp_path / "table.csv"], folder="tables")
    figure = matplotlib.figure.Figure()
    figure.subplots().plot([0, 1])
    log_pictures(handle, {"curves": figure})
    finish_run(handle)

    client = client_for(handle.tracking_uri)
    run = client.get_run(handle.run_id)
    assert run.info.status == "FINISHED"
    assert run.info.run_name == "whole"
    assert run.data.params == {
        "model.fusion.layers": '["relu5_3"]',
        "model.fusion.method": "conv",
        "epochs": "3",
    }
    assert run.data.tags["git_commit"] == "abc dirty"
    assert run.data.tags["mlflow.source.git.commit"] == "abc"
    assert steps_of(handle, "train/loss") == [(0, 1.5), (1, 1.25)]
    assert [file.path for file in client.list_artifacts(handle.run_id, "tables")] == ["tables/table.csv"]
    assert [file.path for file in client.list_artifacts(handle.run_id, "pictures")] == ["pictures/curves.png"]


def test_files_lie_beside_the_database_whatever_the_working_directory(
    tracking: TrackingConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    handle = start_run(tracking, run_name="beside", run_uri=str(tmp_path / "run"), parameters={}, tags={})
    (tmp_path / "note.txt").write_text("here")
    log_artifacts(handle, [tmp_path / "note.txt"])
    beside = Path(tracking.resolved_uri().removeprefix("sqlite:///")).with_name("mlartifacts")
    assert (beside / handle.run_id / "artifacts" / "note.txt").read_text() == "here"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["note.txt", "run"]


def test_a_data_set_is_one_input_of_a_run_however_often_it_is_logged(tracking: TrackingConfig, tmp_path: Path) -> None:
    handle = start_run(tracking, run_name="fed", run_uri=str(tmp_path), parameters={}, tags={})
    for _ in range(2):
        log_data(
            handle,
            name="kitchen",
            manifest_hash="0a" * 32,
            source="s3://key:hush@bucket/shards",
            profile={"clips": {"train": 3}},
            context="training",
        )
    (given,) = client_for(handle.tracking_uri).get_run(handle.run_id).inputs.dataset_inputs
    assert (given.dataset.name, given.dataset.digest) == ("kitchen", ("0a" * 32)[:36])
    assert json.loads(given.dataset.profile) == {"clips": {"train": 3}, "manifest_hash": "0a" * 32}
    assert json.loads(given.dataset.source) == {"uri": "s3://(hidden)@bucket/shards"}
    assert [(tag.key, tag.value) for tag in given.tags] == [("mlflow.data.context", "training")]


def test_step_logged_before_a_crash_is_not_logged_again(tracking: TrackingConfig, tmp_path: Path) -> None:
    handle = start_run(tracking, run_name="crashing", run_uri=str(tmp_path), parameters={}, tags={})
    for step in range(4):
        log_metrics(handle, {"loss": 4.0 - step}, step=step)
    for step in range(2, 6):  # restarted from the checkpoint of epoch 1; sums differ in the last bit
        log_metrics(handle, {"loss": 4.0 - step + 1e-9, "late": 1.0}, step=step)
    assert steps_of(handle, "loss") == [(0, 4.0), (1, 3.0), (2, 2.0), (3, 1.0), (4, 1e-9), (5, -1.0 + 1e-9)]
    assert [step for step, _ in steps_of(handle, "late")] == [2, 3, 4, 5]


def test_step_that_was_left_out_can_be_logged_later(tracking: TrackingConfig, tmp_path: Path) -> None:
    handle = start_run(tracking, run_name="gap", run_uri=str(tmp_path), parameters={}, tags={})
    for step in (0, 2, 1, 1):
        log_metrics(handle, {"loss": float(step)}, step=step)
    assert sorted(steps_of(handle, "loss")) == [(0, 0.0), (1, 1.0), (2, 2.0)]


def test_restarted_training_goes_on_with_the_run_of_its_place(tracking: TrackingConfig, tmp_path: Path) -> None:
    name = "fused: Ann's run"

    def start(folder: str) -> RunHandle:
        return start_run(tracking, run_name=name, run_uri=str(tmp_path / folder), parameters={"from": folder}, tags={})

    started = start("ann")
    assert start("bob").run_id != started.run_id, "the same name in another folder is another run"
    assert start("ann") == started
    finish_run(started, "FAILED")
    assert client_for(started.tracking_uri).get_run(started.run_id).info.status == "FAILED"
    assert start("ann") == started
    assert client_for(started.tracking_uri).get_run(started.run_id).info.status == "RUNNING"


def test_parameters_of_any_length_and_alphabet_are_taken(tracking: TrackingConfig, tmp_path: Path) -> None:
    parameters = {
        "long": "x" * 10_000,
        "k" * 300: 1,
        "k" * 299 + "j": 2,
        "odd @ % name": None,
        "../up": 3,
        "towers": [{"name": "spatial"}, {"name": "temporal"}],
        **{f"many.{index}": index for index in range(150)},
    }
    tags = {"t@g": "y" * 10_000}
    handle = start_run(tracking, run_name="lengths", run_uri=str(tmp_path), parameters=parameters, tags=tags)
    kept = client_for(handle.tracking_uri).get_run(handle.run_id).data.params
    assert len(kept) == 6 + 1 + 150
    assert len(kept["long"]) == 6000
    assert kept["towers.1.name"] == "temporal"
    assert kept["many.149"] == "149"


def test_secrets_are_never_logged(tracking: TrackingConfig, tmp_path: Path) -> None:
    parameters = {
        "storage": {"uri": "s3://key:hush@bucket/x", "secret_key": "hush"},
        "servers": ["http://u:hush@h/", "plain"],
        "nested": [{"password": "hush"}],
    }
    tags = {"hub_token": "hush"}
    handle = start_run(tracking, run_name="secret", run_uri=str(tmp_path), parameters=parameters, tags=tags)
    assert handle.run_id
    stored = client_for(handle.tracking_uri).get_run(handle.run_id).data.to_dictionary()
    assert "hush" not in str(stored)
    assert "plain" in str(stored)
    assert "hush" not in repr(
        RunHandle(tracking_uri="http://u:hush@h", run_uri="runs/a", experiment_id="1", run_id="2")
    )


def test_flat_parameters_are_dotted() -> None:
    assert flat_parameters({"a": {"b": {"c": 1}, "d": []}, "e": True, "empty": {}}) == {
        "a.b.c": "1",
        "a.d": "[]",
        "e": "True",
        "empty": "{}",
    }


def test_store_that_cannot_be_opened_does_not_stop_training(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    config = TrackingConfig(uri=f"sqlite:///{tmp_path}/file/mlflow.db")
    assert start_run(config, run_name="r", run_uri=str(tmp_path / "run"), parameters={}, tags={}).run_id == ""


def test_a_trial_lies_below_its_search_and_is_tagged_when_it_is_over(tracking: TrackingConfig, tmp_path: Path) -> None:
    assert find_run(tracking, run_uri=str(tmp_path / "trial")) is None
    search = start_run(tracking, run_name="search", run_uri=str(tmp_path / "search"), parameters={}, tags={})
    begun = start_run(
        tracking, run_name="trial", run_uri=str(tmp_path / "trial"), parameters={}, tags={}, parent=search
    )
    trial = find_run(tracking, run_uri=str(tmp_path / "trial"))
    assert trial == begun
    tag_run(trial, {"twostream.status": "stopped early by asha after 2 of 6 epochs"})
    finish_run(trial, "KILLED")
    run = client_for(trial.tracking_uri).get_run(trial.run_id)
    assert run.data.tags["mlflow.parentRunId"] == search.run_id
    assert run.data.tags["twostream.status"] == "stopped early by asha after 2 of 6 epochs"
    assert run.info.status == "KILLED"


def test_a_failed_run_says_why_without_secrets_and_a_resumed_one_no_more(
    tracking: TrackingConfig, tmp_path: Path
) -> None:
    handle = start_run(tracking, run_name="a", run_uri=str(tmp_path), parameters={}, tags={})
    why = "cannot read https://me:pass-word-1@host/w.safetensors:\nit does not exist"
    finish_run(handle, "FAILED", failure=why)
    client = client_for(handle.tracking_uri)
    run = client.get_run(handle.run_id)
    assert run.info.status == "FAILED" and "pass-word-1" not in run.data.tags["failure"]
    assert run.data.tags["failure"].endswith("host/w.safetensors: it does not exist")
    again = start_run(tracking, run_name="a", run_uri=str(tmp_path), parameters={}, tags={})
    assert again.run_id == handle.run_id and "failure" not in client.get_run(handle.run_id).data.tags


def test_what_begins_anew_in_a_folder_is_another_run_and_the_failed_one_stays(
    tracking: TrackingConfig, tmp_path: Path
) -> None:
    failed = start_run(tracking, run_name="a", run_uri=str(tmp_path), parameters={"epochs": 1}, tags={})
    finish_run(failed, "FAILED", failure="no weights")
    made = start_run(tracking, run_name="a", run_uri=str(tmp_path), parameters={"epochs": 2}, tags={}, anew=True)
    client = client_for(made.tracking_uri)
    before, after = client.get_run(failed.run_id), client.get_run(made.run_id)
    assert (before.data.params, before.info.status, before.data.tags["failure"]) == (
        {"epochs": "1"},
        "FAILED",
        "no weights",
    )
    assert (after.data.params, after.info.status) == ({"epochs": "2"}, "RUNNING")


@pytest.mark.parametrize("room_again", [True, False])
def test_an_outbox_that_takes_no_event_is_told_once_with_how_many_are_missing(
    tracking: TrackingConfig, tmp_path: Path, caplog: pytest.LogCaptureFixture, room_again: bool
) -> None:
    handle = start_run(tracking, run_name="full", run_uri=str(tmp_path), parameters={}, tags={})
    events = tmp_path / FOLDER / "events"
    if events.exists():
        events.rmdir()
    events.write_text("")  # as little of a folder as one on a full disk
    for step in range(5):
        log_metrics(handle, {"loss": 1.0}, step=step)
    (first,) = caplog.messages
    assert f"cannot write to {tmp_path}" in first and "so metrics are not recorded" in first
    if room_again:
        events.unlink()
        log_metrics(handle, {"loss": 1.0}, step=5)
        assert caplog.messages[1:] == [f"{tmp_path}/{FOLDER} can be written again; 5 events are not recorded"]
        finish_run(handle)
        assert steps_of(handle, "loss") == [(5, 1.0)]
    else:
        finish_run(handle)
        assert f"6 events of {tmp_path} could not be written and are not recorded" in caplog.messages[1]
    assert len(caplog.messages) == 2
