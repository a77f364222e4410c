import http.client
import threading
import time
from concurrent.futures import CancelledError, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from running_service import Answer, RunningService, running_service

from twostream_ray.serving import jobs
from twostream_ray.serving.settings import LimitsConfig, ServeConfig
from twostream_ray.serving.uploads import Upload


def held(monkeypatch: pytest.MonkeyPatch) -> threading.Event:
    """Videos decode no sooner than this is set, or nobody waits for them."""
    free, prepare = threading.Event(), jobs.Job.clip

    def clip(job: jobs.Job) -> Any:
        while not free.wait(0.02):
            job.require_wanted()
        return prepare(job)

    monkeypatch.setattr(jobs.Job, "clip", clip)
    return free


def until(true: Any) -> None:
    deadline = time.monotonic() + 60
    while not true():
        assert time.monotonic() < deadline
        time.sleep(0.01)


@pytest.mark.slow
def test_one_video_more_than_may_wait_is_429_at_once_and_the_others_are_answered(
    model_folder: Path, video: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    free = held(monkeypatch)
    config = ServeConfig(model=str(model_folder), decoders=1, limits=LimitsConfig(queue=2))
    with running_service(config) as running, ThreadPoolExecutor(3) as threads:
        waiting = [threads.submit(running.post, "/predict", video) for _ in range(3)]
        until(lambda: running.service.queue.begun == 3)
        assert running.service.queue.running == 1
        refused = running.post("/predict", video)
        assert (refused.status, refused.kind) == (429, "busy") and 1 <= int(refused.headers["retry-after"]) <= 60
        assert "twostream_waiting 2.0" in running.get("/metrics").content.decode()
        assert running.get("/healthz").status == running.get("/readyz").status == 200
        free.set()
        assert [answer.result().status for answer in waiting] == [200] * 3
        assert running.post("/predict", video).status == 200
        assert (running.service.queue.begun, running.service.queue.running) == (0, 0)


@pytest.mark.slow
def test_what_takes_too_long_is_504_and_its_work_ends(
    model_folder: Path, video: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    free = held(monkeypatch)
    config = ServeConfig(model=str(model_folder), decoders=1, limits=LimitsConfig(answer_seconds=0.5))
    with running_service(config) as running:
        with ThreadPoolExecutor(2) as threads:
            answers = list(threads.map(lambda _: running.post("/predict", video), range(2)))
        assert {(answer.status, answer.kind) for answer in answers} == {(504, "took_too_long")}
        until(lambda: running.service.queue.begun == 0)
        free.set()


def test_what_a_client_that_goes_away_asked_for_is_ended_with_the_child_that_decoded_it(
    model_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with running_service(ServeConfig(model=str(model_folder), decoders=1)) as running:
        free = held(monkeypatch)
        connection = http.client.HTTPConnection("127.0.0.1", running.port)
        connection.request("POST", "/predict", body=b"x" * 1000, headers={"Content-Type": "video/mp4"})
        until(lambda: running.service.queue.running == 1)
        connection.close()
        until(lambda: running.service.queue.begun == 0)
        assert 'status="499"' in running.get("/metrics").content.decode()
        free.set()


def test_a_video_that_was_just_answered_is_not_decoded_again(service: RunningService, video: bytes) -> None:
    service.service.clips.clear()
    first, second = service.post("/predict", video).json, service.post("/predict", video).json
    assert first["timings"]["decode_seconds"] > 0 == second["timings"]["decode_seconds"]
    assert first["heads"] == second["heads"]


def test_what_fails_for_no_fault_of_the_video_is_500_with_a_number_of_the_log_and_nothing_else(
    model_folder: Path, video: bytes, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(job: jobs.Job) -> Any:
        raise OSError(f"no room at {job.upload.path}")

    with running_service(ServeConfig(model=str(model_folder), decoders=1)) as running:
        monkeypatch.setattr(jobs.Job, "clip", fail)
        answer: Answer = running.post("/predict", video)
        assert (answer.status, answer.kind) == (500, "internal") and "/" not in answer.message
        number = answer.message.rpartition(" ")[2]
        assert number in caplog.text and "no room at" in caplog.text
        monkeypatch.undo()
        assert running.post("/predict", video).status == 200


def test_a_job_that_nobody_waits_for_takes_no_turn_at_the_network(service: RunningService, tmp_path: Path) -> None:
    model = service.service.current.loaded
    assert model is not None
    cancelled = threading.Event()
    upload = Upload(path=tmp_path / "x", sha256="", size_bytes=0, seconds=0)
    job = jobs.Job(upload=upload, model=model, cancelled=cancelled, clips=service.service.clips)
    with model.network_lock:
        threading.Timer(0.2, cancelled.set).start()
        with pytest.raises(CancelledError), job.network():
            pass
