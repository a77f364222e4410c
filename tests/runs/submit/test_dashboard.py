import http.server
import json
import platform
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from twostream_ray.errors import ClusterError, ConfigError
from twostream_ray.runs.submit.dashboard import Dashboard, dashboard_url
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


def test_what_is_no_dashboard_is_said_to_be_none() -> None:
    for content in ("<html>", [1], {"version": 1}):
        with answering({"/api/version": (200, content)}) as url, pytest.raises(ClusterError, match="something else"):
            Dashboard(url).versions()
    with answering({}) as url, pytest.raises(ClusterError, match="something else"):
        Dashboard(url).versions()


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
    [(401, "", "wants its token, there is none here"), (403, "mine", "takes another token than the one here")],
)
def test_a_missing_and_a_wrong_token_are_told_apart(
    status: int, token: str, said: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("RAY_AUTH_TOKEN", token)
    with answering({"/api/version": (status, "")}) as url, pytest.raises(ClusterError, match=said) as refused:
        Dashboard(url).versions()
    assert "mine" not in str(refused.value)
