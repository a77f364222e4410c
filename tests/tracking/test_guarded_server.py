import time
from dataclasses import asdict
from pathlib import Path

import pytest
from delivered_runs import history, runs_of
from mlflow_server import PASSWORD, USER, MlflowServer

from twostream_ray.tracking import (
    TrackingConfig,
    delivery,
    finish_run,
    log_metrics,
    start_run,
)
from twostream_ray.tracking.outbox import Outbox


def files_below(folder: Path) -> str:
    return "\n".join(f"{path} {path.read_bytes()!r}" for path in sorted(folder.rglob("*")) if path.is_file())


def test_a_guarded_server_killed_and_started_again_has_everything_once_and_no_password_is_seen(
    guarded: MlflowServer,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    capfd: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name in ("_REQUEST_S", "_LIMIT_S"):  # a busy machine's server is slow, not away
        monkeypatch.setattr(delivery, name, 60)
    monkeypatch.setenv("MLFLOW_TRACKING_USERNAME", USER)
    monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", PASSWORD)
    by_environment = TrackingConfig(uri=guarded.uri)
    by_uri = TrackingConfig(uri=f"http://{USER}:{PASSWORD}@127.0.0.1:{guarded.port}")
    handles = [
        start_run(
            config,
            run_name=name,
            run_uri=str(tmp_path / name),
            parameters={"tracking": asdict(config), "server": {"password": PASSWORD}},
            tags={"token": PASSWORD},
        )
        for name, config in {"environment": by_environment, "uri": by_uri}.items()
    ]
    outboxes = [Outbox(run_uri=handle.run_uri) for handle in handles]
    assert all(handle.run_id for handle in handles)
    logged_ms = {}
    for step in range(12):
        if step == 4:
            guarded.kill()
        if step == 8:
            guarded.start()
            monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", "another")  # refused is as good as away
        if step == 10:
            monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", PASSWORD)
        if step in (6, 8, 10):
            delivery._outages.clear()  # the pause is over
        before = int(time.time() * 1000)
        for handle in handles:
            log_metrics(handle, {"loss": 12.0 - step, "top1": step / 12}, step=step)
        logged_ms[step] = (before, int(time.time() * 1000))
        waiting = {4: 1, 5: 2, 6: 3, 7: 4, 8: 5, 9: 6}.get(step, 0)
        assert outboxes[0].count() == waiting
        assert outboxes[1].count() == (waiting if step < 8 else 0), "its password stood in the URI"
    for handle, config in zip(handles, (by_environment, by_uri), strict=True):
        finish_run(handle)
        for metric in ("loss", "top1"):
            rows = history(config, handle.run_id, metric)
            assert [row.step for row in rows] == list(range(12))
            assert all(logged_ms[row.step][0] <= row.timestamp <= logged_ms[row.step][1] for row in rows)
    runs = runs_of(by_environment)
    assert [run.info.status for run in runs] == ["FINISHED", "FINISHED"]
    stored = "".join(str(run.to_dictionary()) for run in runs)
    assert "tracking.uri" in stored and "hidden" in stored
    assert PASSWORD not in stored + files_below(tmp_path) + caplog.text + "".join(capfd.readouterr())
    assert "401" in caplog.text and "cannot be reached" in caplog.text
