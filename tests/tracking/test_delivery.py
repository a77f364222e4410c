import json
import logging
import re
import shlex
import socket
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import matplotlib.figure
import pytest
from delivered_runs import history, runs_of

from twostream_ray.cli import main
from twostream_ray.errors import TrackingError
from twostream_ray.storage.locks import process_lock
from twostream_ray.tracking import (
    RunHandle,
    TrackingConfig,
    delivery,
    finish_run,
    log_artifacts,
    log_history,
    log_metrics,
    log_pictures,
    replay,
    send,
    start_run,
)
from twostream_ray.tracking.connection import client_for
from twostream_ray.tracking.outbox import Outbox

NOBODY = "http://ann:hush@127.0.0.1:9"  # the discard port: connections are refused


def start(config: TrackingConfig, folder: Path | str, **more: Any) -> RunHandle:
    return start_run(config, run_name="run", run_uri=str(folder), parameters={"lr": 0.1}, tags={}, **more)


@pytest.fixture
def away_and_back(tracking: TrackingConfig, tmp_path: Path) -> tuple[TrackingConfig, TrackingConfig]:
    """An experiment at a server that is away, and the same where it can be reached."""
    back = replace(tracking, experiment=f"of {tmp_path.name}")
    return replace(back, uri=NOBODY), back


def test_a_run_whose_server_was_always_away_is_made_at_replay_with_its_times(
    away_and_back: tuple[TrackingConfig, TrackingConfig], tmp_path: Path
) -> None:
    away, back = away_and_back
    began_ms = int(time.time() * 1000)
    handle = start(away, tmp_path)
    assert handle.run_id == ""
    for step in range(3):
        log_metrics(handle, {"loss": 3.0 - step, "odd": float("nan")}, step=step)
        time.sleep(0.01)
    (tmp_path / "tables").mkdir()
    (tmp_path / "tables" / "a.csv").write_text("a,b\n")
    log_artifacts(handle, [tmp_path / "tables"], folder="kept")
    figure = matplotlib.figure.Figure()
    figure.subplots().plot([0, 1])
    log_pictures(handle, {"curves": figure})
    finish_run(handle)
    ended_ms = int(time.time() * 1000)
    assert not runs_of(back)
    time.sleep(0.05)

    delivered = replay(str(tmp_path), config=back)
    assert (delivered.metrics, delivered.files, delivered.statuses, delivered.refused) == (6, 2, 1, 0)
    (run,) = runs_of(back)
    assert (run.info.run_id, run.info.run_name, run.info.status) == (delivered.run_id, "run", "FINISHED")
    assert run.data.params == {"lr": "0.1"}
    losses = history(back, run.info.run_id, "loss")
    assert [(row.step, row.value) for row in losses] == [(0, 3.0), (1, 2.0), (2, 1.0)]
    times = [run.info.start_time, *(row.timestamp for row in losses), run.info.end_time]
    assert sorted(times) == times and began_ms <= times[0] and times[-1] <= ended_ms
    assert len({row.timestamp for row in losses}) == 3
    client = client_for(back.resolved_uri())
    assert [file.path for file in client.list_artifacts(run.info.run_id, "kept/tables")] == ["kept/tables/a.csv"]
    assert [file.path for file in client.list_artifacts(run.info.run_id, "pictures")] == ["pictures/curves.png"]

    again = replay(str(tmp_path), config=back)
    assert (again.metrics, again.files, again.statuses) == (0, 0, 0)
    assert len(runs_of(back)) == 1 and len(history(back, run.info.run_id, "loss")) == 3


def test_one_run_comes_of_all_restarts_while_the_server_is_away(
    away_and_back: tuple[TrackingConfig, TrackingConfig], tmp_path: Path
) -> None:
    away, back = away_and_back
    first = start(away, tmp_path)
    log_metrics(first, {"loss": 1.0}, step=0)
    finish_run(first, "FAILED")
    delivery._outages.clear()  # another process
    second = start(away, tmp_path)
    log_history(second, {0: {"loss": 1.5}, 1: {"loss": 0.5}})  # step 0 again, as after a crash
    delivery._outages.clear()
    third = start(back, tmp_path)  # and now MLflow is there: what waited is delivered
    (run,) = runs_of(back)
    assert third.run_id == run.info.run_id and run.info.status == "RUNNING"
    assert [(row.step, row.value) for row in history(back, run.info.run_id, "loss")] == [(0, 1.0), (1, 0.5)]
    assert Outbox(run_uri=str(tmp_path)).count() == 0


KILLED_AFTER = {"log_batch": 1, "write_ids": 0, "remove": 1, "delete": 1}
"""What is called in a replay, and how many of its calls are survived."""


@pytest.mark.slow
def test_a_replay_killed_at_any_point_leaves_nothing_twice(
    away_and_back: tuple[TrackingConfig, TrackingConfig], tmp_path: Path
) -> None:
    away, back = away_and_back
    for point in KILLED_AFTER:
        handle = start(away, tmp_path / point)
        for step in range(3):
            log_metrics(handle, {"loss": float(step)}, step=step)
        (tmp_path / point / "note.txt").write_text("kept")
        log_artifacts(handle, [tmp_path / point / "note.txt"])
        finish_run(handle)
    # MLflow is imported once; each replay is a process of its own.
    script = (
        "import os, sys\n"
        "from mlflow import MlflowClient\n"
        "from mlflow.store.tracking import sqlalchemy_store\n"
        "from twostream_ray import storage\n"
        "from twostream_ray.tracking import TrackingConfig, replay\n"
        "from twostream_ray.tracking.outbox import Outbox\n"
        f"for point, survived in {KILLED_AFTER}.items():\n"
        "    process = os.fork()\n"
        "    if process:\n"
        "        assert os.waitstatus_to_exitcode(os.waitpid(process, 0)[1]) == 9, point\n"
        "        continue\n"
        "    owner = {'log_batch': MlflowClient, 'delete': storage}.get(point, Outbox)\n"
        "    original, calls = getattr(owner, point), []\n"
        "    def killed(*arguments, **named):\n"
        "        calls.append(1)\n"
        "        if len(calls) > survived:\n"
        "            os._exit(9)\n"
        "        return original(*arguments, **named)\n"
        "    setattr(owner, point, killed)\n"
        "    replay(f'{sys.argv[1]}/{point}', config=TrackingConfig(uri=sys.argv[2]))\n"
        "    os._exit(0)\n"
    )
    subprocess.run([sys.executable, "-c", script, str(tmp_path), back.resolved_uri()], check=True)

    client = client_for(back.resolved_uri())
    for point in KILLED_AFTER:
        assert Outbox(run_uri=str(tmp_path / point)).count() > 0
    ids = {point: replay(str(tmp_path / point), config=back).run_id for point in KILLED_AFTER}
    assert sorted(run.info.run_id for run in runs_of(back)) == sorted(ids.values()) and len(set(ids.values())) == 4
    for point, run_id in ids.items():
        run = client.get_run(run_id)
        losses = [(row.step, row.value) for row in history(back, run.info.run_id, "loss")]
        assert losses == [(0, 0.0), (1, 1.0), (2, 2.0)], point
        assert run.data.params == {"lr": "0.1"} and run.info.status == "FINISHED"
        assert [file.path for file in client.list_artifacts(run.info.run_id)] == ["note.txt"]
        left = [path.name for path in (tmp_path / point / "tracking-journal").rglob("*") if path.is_file()]
        assert sorted(left) == ["mlflow.json", "run.json"]


def test_the_command_that_delivers_what_waits_names_the_server_and_works_as_it_is(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    finish_run(start(TrackingConfig(uri="http://127.0.0.1:9"), tmp_path / "a run"))
    (command,) = re.findall(r"`(twostream track replay .*?)`", caplog.text)
    assert command.endswith("/a run' --tracking.uri http://127.0.0.1:9")
    assert main([*shlex.split(command)[1:-1], f"sqlite:///{tmp_path}/back.db"]) == 0
    assert [run.info.status for run in runs_of(TrackingConfig(uri=f"sqlite:///{tmp_path}/back.db"))] == ["FINISHED"]


def test_an_absent_server_is_reported_once_and_holds_up_no_epoch(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[float] = []
    original = delivery._deliver

    def counted(*arguments: Any, **settings: Any) -> delivery.Delivery:
        asked.append(time.monotonic())
        return original(*arguments, **settings)

    monkeypatch.setattr(delivery, "_deliver", counted)
    clock = [0.0]
    monkeypatch.setattr(time, "monotonic", lambda: clock[0])
    with caplog.at_level(logging.WARNING, "twostream_ray"):
        handle = start(TrackingConfig(uri=NOBODY), tmp_path)
        tried = []
        began = time.process_time()
        for step in range(200):  # an epoch every 5 seconds
            log_metrics(handle, {"loss": 1.0}, step=step)
            clock[0] += 5.0
            tried.append(len(asked))
    spent = time.process_time() - began
    waits = [step for step in range(1, 200) if tried[step] > tried[step - 1]]
    assert waits == [3, 9, 21, 45, 93, 153], "after 15, 30, 60, 120, 240, 300, 300 s"
    assert spent < 2
    messages = [record.getMessage() for record in caplog.records if "cannot be reached" in record.getMessage()]
    assert len(messages) == 1 and f"events are kept in {tmp_path}/tracking-journal; training continues" in messages[0]
    assert "hush" not in caplog.text
    assert Outbox(run_uri=str(tmp_path)).count() == 200


@pytest.mark.slow
def test_a_server_that_accepts_and_says_nothing_costs_one_request(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "2")  # instead of ours of 10 s
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "7")  # has no say in what may not be done twice
    client_for("http://127.0.0.1:9")  # imports MLflow, which takes seconds
    with socket.create_server(("127.0.0.1", 0)) as silent:
        silent.listen()
        began = time.monotonic()
        handle = start(TrackingConfig(uri=f"http://127.0.0.1:{silent.getsockname()[1]}"), tmp_path)
        assert 2 <= time.monotonic() - began < 6
        began = time.monotonic()
        log_metrics(handle, {"loss": 1.0}, step=0)
        assert time.monotonic() - began < 1
    assert Outbox(run_uri=str(tmp_path)).count() == 1


def test_what_mlflow_itself_refuses_is_set_aside_and_holds_up_nothing(
    tracking: TrackingConfig, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    handle = start(tracking, tmp_path)
    outbox = Outbox(run_uri=str(tmp_path))
    outbox.append("metrics", {"rows": [["loss", 0, 1.0]]})
    outbox.append("metrics", {"rows": [["a\nkey", 0, 1.0]]})
    log_metrics(handle, {"loss": 2.0}, step=1)
    assert [row.step for row in history(tracking, handle.run_id, "loss")] == [0, 1]
    (refused,) = (tmp_path / "tracking-journal" / "refused").iterdir()
    assert json.loads(refused.read_text())["values"] == {"rows": [["a\nkey", 0, 1.0]]}
    assert "MLflow rejected an event" in caplog.text
    assert outbox.count() == 0


def test_what_one_process_only_writes_down_another_sends(tracking: TrackingConfig, tmp_path: Path) -> None:
    handle = start(tracking, tmp_path)
    script = (
        "import sys\n"
        "from twostream_ray.tracking import write_history\n"
        "print(write_history(sys.argv[1], {0: {'loss': 1.0}}), 'mlflow' in sys.modules)"
    )
    printed = subprocess.run([sys.executable, "-c", script, handle.run_uri], capture_output=True, text=True, check=True)
    assert printed.stdout.split() == ["True", "False"]
    assert history(tracking, handle.run_id, "loss") == []
    send(handle)
    assert [(row.step, row.value) for row in history(tracking, handle.run_id, "loss")] == [(0, 1.0)]


def test_a_run_that_a_person_deleted_is_made_anew(tracking: TrackingConfig, tmp_path: Path) -> None:
    handle = start(tracking, tmp_path)
    client_for(handle.tracking_uri).delete_run(handle.run_id)
    anew = start(tracking, tmp_path)
    assert anew.run_id not in ("", handle.run_id)
    log_metrics(handle, {"loss": 1.0}, step=0)  # by a process whose handle is older
    assert [row.step for row in history(tracking, anew.run_id, "loss")] == [0]


def test_a_run_moves_to_another_server_with_its_parameters(tracking: TrackingConfig, tmp_path: Path) -> None:
    start(tracking, tmp_path / "run")
    other = TrackingConfig(uri=f"sqlite:///{tmp_path}/other.db")
    moved = start(other, tmp_path / "run")
    assert client_for(moved.tracking_uri).get_run(moved.run_id).data.params == {"lr": "0.1"}


@pytest.mark.slow
def test_many_processes_that_log_into_one_journal_lose_and_double_nothing(
    tracking: TrackingConfig, tmp_path: Path
) -> None:
    handle = start(tracking, tmp_path)
    script = (
        "import sys\n"
        "from twostream_ray.tracking import RunHandle, log_metrics\n"
        "handle = RunHandle(tracking_uri=sys.argv[1], run_uri=sys.argv[2], experiment_id='', run_id='')\n"
        "for step in range(10):\n"
        "    log_metrics(handle, {f'loss{sys.argv[3]}': step / 2, 'shared': 1.0}, step=step)\n"
    )
    processes = [
        subprocess.Popen([sys.executable, "-c", script, handle.tracking_uri, handle.run_uri, str(number)])
        for number in range(2)
    ]
    assert [process.wait() for process in processes] == [0, 0]
    finish_run(handle)
    for metric in ("loss0", "loss1", "shared"):
        assert [row.step for row in history(tracking, handle.run_id, metric)] == list(range(10))


def test_while_another_process_delivers_a_training_only_writes_down(tracking: TrackingConfig, tmp_path: Path) -> None:
    handle = start(tracking, tmp_path)
    outbox = Outbox(run_uri=str(tmp_path))
    with process_lock(outbox.uri, wait_s=0):
        began = time.monotonic()
        log_metrics(handle, {"loss": 1.0}, step=0)
        assert time.monotonic() - began < 2
        assert outbox.count() == 1
    log_metrics(handle, {"loss": 0.5}, step=1)
    assert [row.step for row in history(tracking, handle.run_id, "loss")] == [0, 1]


def test_replay_on_the_command_line_finds_all_runs_and_says_what_it_did(
    away_and_back: tuple[TrackingConfig, TrackingConfig],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    away, back = away_and_back
    for name in ("one", "deep/two"):
        handle = start(away, tmp_path / name)
        log_metrics(handle, {"loss": 1.0}, step=0)
        finish_run(handle)
    monkeypatch.chdir(tmp_path)
    assert main(["track", "replay", "one", "--tracking.uri", NOBODY]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "127.0.0.1:9 did not accept the outbox" in line and "2 events are pending" in line and "hush" not in line
    assert main(["track", "replay", "--storage", ".", "--tracking.uri", back.resolved_uri()]) == 0
    printed = capsys.readouterr().out
    assert (
        f"{tmp_path}/one: metric values 1, statuses 1" in printed and f"{tmp_path}/deep/two: metric values 1" in printed
    )
    assert len(runs_of(back)) == 2
    assert main(["track", "replay", "one", "deep/two", "--tracking.uri", back.resolved_uri()]) == 0
    assert capsys.readouterr().out.count("nothing was waiting") == 2
    assert len(runs_of(back)) == 2
    for wrong in (["track", "replay", "nowhere"], ["track", "replay", "--storage", "one/tracking-journal"], ["track"]):
        assert main(wrong) == 2
        assert len(capsys.readouterr().err.splitlines()) == 1


def test_a_place_without_a_journal_is_named(tracking: TrackingConfig, tmp_path: Path) -> None:
    with pytest.raises(TrackingError, match=rf"a run's directory .* was wanted, {tmp_path} has none"):
        replay(str(tmp_path), config=tracking)


def test_a_journal_lives_on_an_object_store(
    away_and_back: tuple[TrackingConfig, TrackingConfig],
    object_store: int,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from s3 import ENVIRONMENT

    for name, value in (ENVIRONMENT | {"AWS_ENDPOINT_URL": f"http://127.0.0.1:{object_store}"}).items():
        monkeypatch.setenv(name, value)
    away, back = away_and_back
    handle = start(away, "s3://archive/runs/first")
    log_metrics(handle, {"loss": 1.0}, step=0)
    (tmp_path / "note.txt").write_text("kept")
    log_artifacts(handle, [tmp_path / "note.txt"])
    log_metrics(handle, {"loss": 0.5}, step=1)
    finish_run(handle)
    assert main(["track", "replay", "--storage", "s3://archive/runs", "--tracking.uri", back.resolved_uri()]) == 0
    (run,) = runs_of(back)
    assert [row.value for row in history(back, run.info.run_id, "loss")] == [1.0, 0.5]
    client = client_for(back.resolved_uri())
    assert [file.path for file in client.list_artifacts(run.info.run_id)] == ["note.txt"]
    assert Outbox(run_uri=handle.run_uri).count() == 0
