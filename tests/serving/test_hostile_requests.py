"""Every kind of hostile request once, against the service in a process of its own with small limits."""

import asyncio
import http.server
import socketserver
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from foreign_videos import encoded, pictures
from hostile_requests import SECRET, Hostile, hostile_requests, leaks
from raw_http import Answer, Request, get, request, send
from running_service import stored_model
from service_process import Service, running

pytestmark = pytest.mark.slow

MAX_BODY_BYTES, SLOW_S = 4 << 20, 1.0
LIMITS = (
    *("--limits.body_bytes", str(MAX_BODY_BYTES)),
    *("--limits.receive_seconds", str(2 * SLOW_S)),
    *("--limits.silence_seconds", str(SLOW_S)),
)


@pytest.fixture(scope="module")
def asked() -> Iterator[list[str]]:
    """Address of a video elsewhere, and then whatever is asked for there."""
    paths: list[str] = []

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            paths.append(self.path)
            self.send_error(404)

    with socketserver.TCPServer(("127.0.0.1", 0), Handler) as server:
        paths.append(f"http://127.0.0.1:{server.server_address[1]}/video.mp4")
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield paths
        server.shutdown()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("servers-own")
    (folder / "secret.txt").write_text(SECRET)
    (folder / "video.mp4").write_bytes(encoded("mpeg4", pictures(12), container="mp4"))
    return folder


@pytest.fixture(scope="module")
def service(folder: Path) -> Iterator[Service]:
    with running(stored_model(folder / "model"), *LIMITS, environment={"PLANTED": SECRET}) as service:
        yield service


@pytest.fixture(scope="module")
def answers(service: Service, folder: Path, asked: list[str]) -> dict[str, tuple[Hostile, Answer]]:
    """Of all kinds, six at a time; a good request among them after each."""
    video = (folder / "video.mp4").read_bytes()
    kinds = hostile_requests(
        max_body_bytes=MAX_BODY_BYTES, slow_s=SLOW_S, folder=folder, elsewhere=asked[0], video=video
    )

    async def all_() -> list[Answer]:
        free = asyncio.Semaphore(6)

        async def one(sent: Request) -> Answer:
            async with free:
                return await send(service.port, sent, timeout_s=60)

        return list(await asyncio.gather(*(one(each.request) for each in kinds.values())))

    return {name: (each, answer) for (name, each), answer in zip(kinds.items(), asyncio.run(all_()), strict=True)}


def test_every_hostile_request_gets_the_answer_that_it_deserves(answers: dict[str, tuple[Hostile, Answer]]) -> None:
    wrong = {
        name: (answer.status, answer.body[:300])
        for name, (hostile, answer) in answers.items()
        if answer.status not in hostile.statuses
    }
    assert wrong == {}
    late = {name: answer.seconds for name, (hostile, answer) in answers.items() if answer.seconds > hostile.longest_s}
    assert late == {}


def test_every_refusal_has_its_kind_and_reason_in_words(answers: dict[str, tuple[Hostile, Answer]]) -> None:
    for name, (_, answer) in answers.items():
        if answer.status not in (None, 200) and answer.headers.get("content-type", "").startswith("application/json"):
            assert set(answer.json()) == {"error"}, name
            assert set(answer.json()["error"]) == {"kind", "message"}, name
            assert len(answer.json()["error"]["message"]) > 10, name


def test_no_answer_shows_files_or_environment_of_the_server(
    answers: dict[str, tuple[Hostile, Answer]], folder: Path
) -> None:
    for name, (_, answer) in answers.items():
        text = answer.body.decode(errors="replace") + str(answer.headers)
        assert leaks(text, folder=folder) == [], name


def test_nothing_else_was_opened_or_written(
    answers: dict[str, tuple[Hostile, Answer]], folder: Path, asked: list[str]
) -> None:
    assert asked[1:] == []
    assert sorted(path.name for path in folder.iterdir()) == ["model", "secret.txt", "video.mp4"]


def test_the_service_answers_as_before(
    answers: dict[str, tuple[Hostile, Answer]], service: Service, folder: Path
) -> None:
    video = (folder / "video.mp4").read_bytes()
    answer = asyncio.run(send(service.port, request("/predict?top_k=2", media="video/mp4", content=video)))
    assert answer.status == 200, answer.body
    assert len(answer.json()["heads"][0]["top"]) == 2
    assert asyncio.run(send(service.port, get("/healthz"))).status == 200
