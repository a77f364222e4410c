"""Servers that are half dead: whatever they do, a training begins in time and nothing that it logs is lost."""

import contextlib
import itertools
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from twostream_ray.errors import RegistryError, TrackingError
from twostream_ray.tracking import (
    RunHandle,
    TrackingConfig,
    delivery,
    finish_run,
    log_metrics,
    promote,
    record_measurement,
    register,
    replay,
    rollback,
    start_run,
)
from twostream_ray.tracking.connection import client_for, with_deadline
from twostream_ray.tracking.outbox import Outbox
from twostream_ray.tracking.timeouts import call_with_deadline

pytestmark = pytest.mark.slow

OK = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n"


def drip(connection: socket.socket, content: Iterator[bytes] | bytes) -> None:
    for byte in content:
        connection.sendall(byte if isinstance(byte, bytes) else bytes([byte]))
        time.sleep(0.1)


def answer(connection: socket.socket, text: bytes) -> None:
    connection.sendall(OK + b"Content-Length: %d\r\n\r\n" % len(text) + text)


def drip_answer(connection: socket.socket) -> None:
    connection.sendall(OK + b"Content-Length: 1000000\r\n\r\n")
    drip(connection, b"{" * 1000)


def flood(connection: socket.socket) -> None:
    connection.sendall(OK + b"Transfer-Encoding: chunked\r\n\r\n")
    while True:
        connection.sendall(b"10000\r\n" + b"{" * 0x10000 + b"\r\n")
        time.sleep(0.005)


HALF_DEAD: dict[str, Callable[[socket.socket], object]] = {
    "says nothing": lambda connection: time.sleep(60),
    "hangs up": lambda connection: connection.close(),
    "drips its headers": lambda connection: drip(connection, itertools.chain(OK, itertools.repeat(b"X-More: 1\r\n"))),
    "drips its answer": drip_answer,
    "answers without end": flood,
    "redirects for ever": lambda connection: connection.sendall(
        b"HTTP/1.1 302 Found\r\nLocation: /x\r\nContent-Length: 0\r\n\r\n"
    ),
    "fails": lambda connection: connection.sendall(b"HTTP/1.1 500 Oops\r\nContent-Length: 0\r\n\r\n"),
    "is too busy": lambda connection: connection.sendall(
        b"HTTP/1.1 429 Slow\r\nRetry-After: 3600\r\nContent-Length: 0\r\n\r\n"
    ),
    "speaks another language": lambda connection: connection.sendall(b"SSH-2.0-OpenSSH_9.6\r\n"),
    "answers with a page": lambda connection: answer(connection, b"<html>Sign in</html>"),
    "answers with a list": lambda connection: answer(connection, b"[]"),
    "answers with another shape": lambda connection: answer(connection, b'{"experiment": "x"}'),
    "answers deeply": lambda connection: answer(connection, b"[" * 100_000),
}


@contextmanager
def serving(behave: Callable[[socket.socket], object]) -> Iterator[str]:
    """A server that does this with each request."""
    listener = socket.create_server(("127.0.0.1", 0))
    open_ones: list[socket.socket] = []

    def serve(connection: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while connection.recv(65536):
                behave(connection)

    def accept() -> None:
        with contextlib.suppress(OSError):
            while True:
                connection, _ = listener.accept()
                open_ones.append(connection)
                threading.Thread(target=serve, args=(connection,), daemon=True).start()

    threading.Thread(target=accept, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
    finally:
        for one in [listener, *open_ones]:
            with contextlib.suppress(OSError):
                one.shutdown(socket.SHUT_RDWR)
            one.close()


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """As in earnest, with shorter limits."""
    monkeypatch.setattr(delivery, "_LIMIT_S", 1.0)
    monkeypatch.setattr(delivery, "_EVENT_LIMIT_S", 1.0)
    monkeypatch.setattr(delivery, "_PATIENT_EVENT_LIMIT_S", 1.0)
    monkeypatch.setattr(delivery, "_PATIENCE_S", 1.0)
    monkeypatch.setattr(delivery, "_GRACE_S", 0.2)
    monkeypatch.setattr(delivery, "_REQUEST_S", 3)
    monkeypatch.setattr(delivery, "_PATIENT_REQUEST_S", 3)
    client_for("http://127.0.0.1:9")  # imports MLflow, which takes seconds


@pytest.mark.usefixtures("impatient")
@pytest.mark.parametrize("what", HALF_DEAD)
def test_a_half_dead_server_holds_up_no_training_and_what_is_logged_waits(
    what: str, tracking: TrackingConfig, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with serving(HALF_DEAD[what]) as uri:
        config = TrackingConfig(uri=uri, experiment=tmp_path.name)
        began = time.monotonic()
        handle = start_run(config, run_name="run", run_uri=str(tmp_path / "run"), parameters={"lr": 1}, tags={})
        started = time.monotonic()
        assert handle.run_id == ""
        for step in range(50):
            log_metrics(handle, {"loss": 1.0}, step=step)
        logged = time.monotonic()
        with pytest.raises(
            TrackingError, match=r"did not accept the outbox|is delivering the outbox|something else answers"
        ):
            replay(str(tmp_path / "run"), config=config)
    assert started - began < 4, "1 s, and the machine's own"
    assert logged - started < 4
    assert Outbox(run_uri=str(tmp_path / "run")).count() == 50
    records = [record for record in caplog.records if "training continues" in record.getMessage()]
    assert len(records) == 1 and "\n" not in records[0].getMessage() and len(records[0].getMessage()) < 1000
    deadline = time.monotonic() + 20
    while any(thread.name == "mlflow" for thread in threading.enumerate()):
        assert time.monotonic() < deadline, "nobody asks any more"
        time.sleep(0.1)
    delivery._outages.clear()
    finish_run(
        start_run(
            TrackingConfig(uri=tracking.uri), run_name="run", run_uri=str(tmp_path / "run"), parameters={}, tags={}
        )
    )
    assert Outbox(run_uri=str(tmp_path / "run")).count() == 0


def test_work_that_gets_on_may_take_longer_than_the_limit() -> None:
    def work(progressed: Callable[[], None]) -> str:
        for _ in range(8):
            time.sleep(0.1)
            progressed()
        return "done"

    assert call_with_deadline(work, limit_s=0.5, grace_s=0.0) == "done"


def test_what_goes_wrong_in_limited_work_is_raised_where_it_is_waited_for() -> None:
    def work(progressed: Callable[[], None]) -> None:
        raise KeyError("this")

    with pytest.raises(KeyError, match="this"):
        call_with_deadline(work, limit_s=5, grace_s=0)


@pytest.mark.parametrize("what", ["drips its headers", "drips its answer", "answers without end"])
def test_a_registry_that_does_not_get_on_is_given_up_in_one_line(what: str, monkeypatch: pytest.MonkeyPatch) -> None:
    client_for("http://127.0.0.1:9")

    @with_deadline(1.0)
    def ask(*, config: TrackingConfig) -> object:
        return client_for(config.resolved_uri()).get_registered_model("two-stream")

    @with_deadline(1.0)
    def ask_by_handle(handle: RunHandle) -> object:
        return client_for(handle.tracking_uri).get_registered_model("two-stream")

    with serving(HALF_DEAD[what]) as uri:
        began = time.monotonic()
        with pytest.raises(RegistryError, match=r"but did not \(no end within 1 s\): check the server"):
            ask(config=TrackingConfig(uri=uri))
        assert time.monotonic() - began < 4
        with_password = uri.replace("http://", "http://me:pass-word-1@")
        handle = RunHandle(tracking_uri=with_password, run_uri="runs/x", experiment_id="", run_id="")
        with pytest.raises(RegistryError, match=r"MLflow at http://.*@127\.0\.0\.1:\d+ should answer") as refused:
            ask_by_handle(handle)
        assert "pass-word-1" not in str(refused.value)
    for function in (promote, rollback, record_measurement, register):
        assert hasattr(function, "__wrapped__"), f"{function.__name__} has a limit"
