import asyncio
import http.server
import json
import platform
import socket
import threading
import time
from collections.abc import Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from aiohttp import web

from twostream_ray.errors import ClusterError, ConfigError
from twostream_ray.runs.submit.dashboard import Dashboard, UnreachableError, dashboard_url
from twostream_ray.runs.submit.job_logs import JobLog
from twostream_ray.runs.submit.submission import require_versions


@contextmanager
def answering(answers: dict[str, tuple[int, object]]) -> Iterator[str]:
    """A server of other versions than are installed here, which no real cluster can be."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            status, content = answers.get(self.path, (404, "nothing"))
            body = (content if isinstance(content, str) else json.dumps(content)).encode()
            self.send_response(status)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            """Silent."""

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        try:
            yield f"http://127.0.0.1:{server.server_port}"
        finally:
            server.shutdown()


def versions(ray: str, python: str) -> dict[str, tuple[int, object]]:
    return {
        "/api/version": (200, {"ray_version": ray}),
        "/api/v0/cluster_metadata": (200, {"data": {"pythonVersion": python}}),
    }


def test_an_address_is_one_of_a_dashboard(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RAY_API_SERVER_ADDRESS", raising=False)
    assert dashboard_url(None) == "http://127.0.0.1:8265"
    assert dashboard_url("head:8265") == "http://head:8265"
    assert dashboard_url("https://head/ray/") == "https://head/ray"
    monkeypatch.setenv("RAY_API_SERVER_ADDRESS", "http://tunnel:9000")
    assert dashboard_url(None) == "http://tunnel:9000"
    # Ray's own client lets the variable override what was given.
    assert dashboard_url("head:8265") == "http://head:8265"
    for wrong in ("ray://head:10001", "http://head:port", "http://me:hush@head:8265", "http://head:6379"):
        with pytest.raises(ConfigError, match="address wants the dashboard of a cluster as") as refused:
            dashboard_url(wrong)
        assert "hush" not in str(refused.value)


def test_no_cluster_is_one_line_that_names_the_ways_to_one() -> None:
    with pytest.raises(ClusterError, match=r"no Ray cluster answers at http://127\.0\.0\.1:1 \(.*refused"):
        Dashboard("127.0.0.1:1").versions()


@pytest.mark.slow
def test_what_is_no_dashboard_is_said_to_be_none() -> None:
    for content in ("<html>", [1], {"version": 1}):
        with answering({"/api/version": (200, content)}) as url, pytest.raises(ClusterError, match="something else"):
            Dashboard(url).versions()
    with answering({}) as url, pytest.raises(ClusterError, match="something else"):
        Dashboard(url).versions()


@pytest.mark.slow
@pytest.mark.parametrize("content", [{}, [], "jobs", 3, ["x"], {"result": True}])
def test_an_answer_of_another_shape_is_no_list_of_jobs_and_no_job(content: object) -> None:
    answers: dict[str, tuple[int, object]] = {"/api/jobs/": (200, content), "/api/jobs/a": (200, content)}
    with answering(answers) as url:
        if content != []:
            with pytest.raises(ClusterError, match="something else answers"):
                Dashboard(url).jobs()
        with pytest.raises(ClusterError, match="something else answers"):
            Dashboard(url).job("a")


@pytest.mark.slow
def test_a_dashboard_that_has_just_started_is_asked_for_its_nodes_until_it_knows_one() -> None:
    path = "/api/v0/nodes?detail=1&limit=1000"

    def listed(*nodes: dict[str, str]) -> tuple[int, object]:
        return 200, {"data": {"result": {"result": list(nodes)}}}

    answers = {path: listed()}
    with answering(answers) as url:
        threading.Timer(0.7, answers.update, [{path: listed({"state": "ALIVE"}, {"state": "DEAD"})}]).start()
        assert Dashboard(url).nodes() == [{"state": "ALIVE"}]


@pytest.mark.slow
def test_another_ray_or_python_is_refused_unless_it_is_wanted() -> None:
    with answering(versions("2.9.0", platform.python_version())) as url:
        with pytest.raises(ClusterError, match=r"other versions \(Ray 2\.9\.0 there, 2\..* here\): build"):
            require_versions(Dashboard(url), other_versions=False)
        require_versions(Dashboard(url), other_versions=True)
    from importlib.metadata import version

    with (
        answering(versions(version("ray"), "3.9.1")) as url,
        pytest.raises(ClusterError, match=r"Python 3\.9\.1 there"),
    ):
        require_versions(Dashboard(url), other_versions=False)


@pytest.mark.parametrize(
    ("status", "token", "said"),
    [(401, "", "requires a token, and none is set"), (403, "mine", "rejects the token of")],
)
def test_a_missing_and_a_wrong_token_are_told_apart(
    status: int, token: str, said: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("RAY_AUTH_TOKEN", token)
    with answering({"/api/version": (status, "")}) as url, pytest.raises(ClusterError, match=said) as refused:
        Dashboard(url).versions()
    assert "mine" not in str(refused.value)


@contextmanager
def telling(*said: str, silent_s: float, breaks: bool = False) -> Iterator[str]:
    """A dashboard as Ray's: it sends a job's log, silent before each piece but the first, and never reads."""

    async def log(request: web.Request) -> web.WebSocketResponse:
        told = web.WebSocketResponse()
        await told.prepare(request)
        for number, text in enumerate(said):
            await asyncio.sleep(silent_s * (number > 0))
            await told.send_str(text)
        if breaks:
            assert request.transport is not None
            request.transport.abort()
        return told

    async def job(_: web.Request) -> web.Response:
        return web.json_response({"status": "SUCCEEDED"})

    answer: Future[tuple[str, asyncio.AbstractEventLoop, asyncio.Event]] = Future()

    async def serve() -> None:
        app = web.Application()
        app.add_routes([web.get("/api/jobs/a/logs/tail", log), web.get("/api/jobs/a", job)])
        runner = web.AppRunner(app, shutdown_timeout=0.1)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        done = asyncio.Event()
        answer.set_result((f"http://127.0.0.1:{runner.addresses[0][1]}", asyncio.get_running_loop(), done))
        await done.wait()
        await runner.cleanup()

    thread = threading.Thread(target=lambda: asyncio.run(serve()))
    thread.start()
    url, loop, done = answer.result(10)
    try:
        yield url
    finally:
        loop.call_soon_threadsafe(done.set)
        thread.join(10)


@pytest.fixture
def hasty(monkeypatch: pytest.MonkeyPatch) -> None:
    """Seconds that nobody has to wait for: a heartbeat, where one is asked for, comes each tenth of a second."""
    connect = aiohttp.ClientSession.ws_connect

    def at_once(self: aiohttp.ClientSession, url: str, *, heartbeat: float | None = None, **options: Any) -> Any:
        return connect(self, url, heartbeat=None if heartbeat is None else 0.1, **options)

    monkeypatch.setattr(aiohttp.ClientSession, "ws_connect", at_once)


@pytest.mark.slow
@pytest.mark.usefixtures("hasty")
def test_a_job_that_is_silent_is_followed_to_its_end_by_one_connection() -> None:
    lines: list[str] = []
    said: list[str] = []
    with telling("begins\n", "ends\n", silent_s=1.0) as url:
        JobLog(Dashboard(url), "a", write=lines.append, notify=said.append).follow()
    assert (lines, said) == (["begins", "ends"], [])


def test_a_log_that_breaks_off_is_a_lost_connection() -> None:
    async def read(url: str) -> list[str]:
        return [text async for text in Dashboard(url).log("a")]

    with telling("begins\n", silent_s=0.0, breaks=True) as url, pytest.raises(UnreachableError, match="ended the log"):
        asyncio.run(read(url))


def test_nobody_waits_for_a_goodbye_of_a_dashboard_that_does_not_read() -> None:
    async def read_a_line(url: str) -> float:
        log = Dashboard(url).log("a")
        assert await anext(log) == "begins\n"
        left = time.monotonic()
        await log.aclose()  # type: ignore[attr-defined]
        return time.monotonic() - left

    with telling("begins\n", "ends\n", silent_s=5.0) as url:
        assert asyncio.run(read_a_line(url)) < 2


def test_a_log_s_connection_is_probed_while_it_is_silent(monkeypatch: pytest.MonkeyPatch) -> None:
    opened: list[socket.socket] = []

    class Noted(socket.socket):
        def connect(self, address: Any) -> None:
            opened.append(self)
            super().connect(address)

    monkeypatch.setattr(socket, "socket", Noted)

    async def read(url: str) -> list[list[int]]:
        wanted = (
            (socket.SOL_SOCKET, socket.SO_KEEPALIVE),
            (socket.IPPROTO_TCP, socket.TCP_KEEPINTVL),
            (socket.IPPROTO_TCP, socket.TCP_KEEPCNT),
        )
        async for _ in Dashboard(url).log("a"):
            return [[min(one.getsockopt(*option), 10) for option in wanted] for one in opened if one.fileno() >= 0]
        return []

    with telling("begins\n", "ends\n", silent_s=1.0) as url:
        assert asyncio.run(read(url)) == [[1, 10, 3]]
