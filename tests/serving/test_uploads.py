import asyncio
import json
import shutil
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from running_service import RunningService, running_service
from starlette.requests import Request

from twostream_ray.serving.settings import LimitsConfig, ServeConfig
from twostream_ray.serving.uploads import Receiver

LIMITS = LimitsConfig(
    body_bytes=100_000, receiving=2, receive_seconds=2.0, silence_seconds=1.0, seconds=0.7, frames=1000, connections=8
)
BOUNDARY = "the-boundary"


@pytest.fixture(scope="module")
def bounded(model_folder: Path, tmp_path_factory: pytest.TempPathFactory, video: bytes) -> Iterator[RunningService]:
    """A service with small limits that may read one folder."""
    folder = tmp_path_factory.mktemp("allowed")
    (folder / "clip.mp4").write_bytes(video)
    (folder / "large.mp4").write_bytes(bytes(200_000))
    (folder / "out.mp4").symlink_to("/etc/hostname")
    with running_service(
        ServeConfig(model=str(model_folder), decoders=1, limits=LIMITS, uris=[str(folder)])
    ) as running:
        yield running


def form(*parts: tuple[str, bytes], end: bool = True) -> bytes:
    body = b""
    for disposition, content in parts:
        body += f"--{BOUNDARY}\r\nContent-Disposition: form-data; {disposition}\r\n\r\n".encode() + content + b"\r\n"
    return body + (f"--{BOUNDARY}--\r\n".encode() if end else b"")


def post_form(running: RunningService, body: bytes) -> Any:
    return running.post("/predict", body, media=f"multipart/form-data; boundary={BOUNDARY}")


def exchange(port: int, *parts: bytes, wait: float = 0.0) -> bytes:
    """What comes back for these bytes, sent so many seconds after one another."""
    with socket.create_connection(("127.0.0.1", port), timeout=60) as connection:
        for part in parts:
            try:
                connection.sendall(part)
            except OSError:
                break
            time.sleep(wait)
        received = b""
        while part := connection.recv(1 << 16):
            received += part
        return received


def head(*lines: str) -> bytes:
    return "\r\n".join(["POST /predict HTTP/1.1", "Host: x", "Content-Type: video/mp4", *lines, "", ""]).encode()


def test_the_same_video_gets_the_same_answer_however_it_comes(bounded: RunningService, video: bytes) -> None:
    raw = bounded.post("/predict", video)
    assert raw.status == 200, raw.content
    folder = bounded.service.config.uris[0]
    named = bounded.post("/predict", json.dumps({"uri": f"{folder}/clip.mp4"}), media="application/json")
    others = [
        bounded.post("/predict", video, media="application/octet-stream"),
        bounded.post("/predict", iter([video[:1000], video[1000:]])),
        post_form(bounded, form(('name="video"; filename="../../etc/passwd"', video))),
        named,
    ]
    for other in others:
        assert other.status == 200, other.content
        assert other.json["heads"] == raw.json["heads"]


@pytest.mark.slow
def test_a_body_beyond_the_limit_is_413_before_it_comes(bounded: RunningService) -> None:
    refused = exchange(bounded.port, head("Content-Length: 201000000"))
    assert refused.startswith(b"HTTP/1.1 413") and b'"too_large"' in refused and b"at most 100000 bytes" in refused
    assert b"connection: close" in refused.lower()
    asked = exchange(bounded.port, head("Content-Length: 201000000", "Expect: 100-continue"))
    assert asked.startswith(b"HTTP/1.1 413")


def test_a_body_without_an_end_is_413_while_it_comes_and_its_sender_reads_the_answer(bounded: RunningService) -> None:
    chunk = b"10000\r\n" + bytes(0x10000) + b"\r\n"
    answer = exchange(bounded.port, head("Transfer-Encoding: chunked"), *[chunk] * 20, b"0\r\n\r\n")
    assert answer.startswith(b"HTTP/1.1 413") and answer.count(b"HTTP/1.1") == 1
    answer = post_form(bounded, form(('name="video"', bytes(150_000))))
    assert (answer.status, answer.kind) == (413, "too_large")
    assert bounded.service.receiver.receiving == 0


@pytest.mark.parametrize(
    "media", ["text/plain", "application/vnd.apple.mpegurl", "", "application/x-www-form-urlencoded"]
)
def test_another_media_type_is_415_and_the_right_ones_are_named(bounded: RunningService, media: str) -> None:
    answer = bounded.post("/predict", b"x", media=media)
    assert (answer.status, answer.kind) == (415, "wrong_media")
    assert "video/*, application/octet-stream, multipart/form-data" in answer.message


def test_a_packed_body_is_415(bounded: RunningService, video: bytes) -> None:
    assert bounded.post("/predict", video, Content_Encoding="gzip").status == 415


@pytest.mark.parametrize(
    ("content", "kind", "said"),
    [
        (b"", "undecodable", "empty"),
        (b"not a video at all", "undecodable", "not a readable video, 18 bytes"),
        (b"#EXTM3U\n#EXTINF:1,\n/etc/passwd\n", "undecodable", "not a readable video"),
        (b"ffconcat version 1.0\nfile /etc/passwd\n", "undecodable", "not a readable video"),
        (None, "undecodable", "video"),
    ],
)
def test_what_is_no_video_is_422_in_words(
    bounded: RunningService, video: bytes, content: bytes | None, kind: str, said: str
) -> None:
    answer = bounded.post("/predict", video[: len(video) // 2] if content is None else content)
    assert (answer.status, answer.kind) == (422, kind)
    assert said in answer.message and "/tmp" not in answer.message and "root:" not in answer.message


@pytest.mark.slow
def test_a_video_that_plays_too_long_has_too_many_frames_or_too_few_is_422(model_folder: Path, video: bytes) -> None:
    limits = {"seconds": LimitsConfig(seconds=0.5), "frames": LimitsConfig(frames=10)}
    said = {
        "seconds": "at most 0.5 s, this takes 0.6 s",
        "frames": "at most 10 frames, this has 16",
    }
    for name, bounds in limits.items():
        with running_service(ServeConfig(model=str(model_folder), limits=bounds)) as running:
            answer = running.post("/predict", video)
            assert (answer.status, answer.kind) == (422, "too_long")
            assert said[name] in answer.message and "send a shorter one" in answer.message


@pytest.mark.parametrize(
    "body",
    [
        form(("name=video2", b"x")),
        form(("name=other", b"x"), ("name=video", b"x")),
        form(("name=video", b"x"), ("name=video", b"y")),
        form(("name=video", b"x"), end=False),
        form(("name=video; x=" + "y" * 20_000, b"x")),
        b"no form",
        form(),
    ],
    ids=["another name", "another field", "two files", "cut off", "an endless header", "no form", "empty"],
)
def test_another_form_than_one_with_a_video_is_400(bounded: RunningService, body: bytes) -> None:
    answer = post_form(bounded, body)
    assert (answer.status, answer.kind) == (400, "bad_parameter")


def test_only_uris_below_those_allowed_are_read(bounded: RunningService, service: RunningService) -> None:
    folder = bounded.service.config.uris[0]

    def ask(running: RunningService, body: Any) -> tuple[int, str]:
        answer = running.post("/predict", json.dumps(body), media="application/json")
        assert "hostname" not in answer.message and folder not in answer.message
        return answer.status, answer.kind

    for uri in ("/etc/hostname", f"{folder}/../../etc/hostname", f"{folder}/out.mp4", "s3://b/x", "http://x/y", "\0"):
        assert ask(bounded, {"uri": uri}) == (422, "uri_unreadable")
    for name in ("missing.mp4", "large.mp4", ""):
        assert ask(bounded, {"uri": f"{folder}/{name}"}) == (422, "uri_unreadable")
    bodies: list[Any] = [{"uri": 3}, {"url": "x"}, {"uri": "x", "more": 1}, [], None]
    for body in bodies:
        assert ask(bounded, body) == (400, "bad_parameter")
    assert ask(service, {"uri": "/etc/hostname"}) == (415, "wrong_media")


@pytest.mark.slow
def test_a_sender_that_is_slow_is_408(bounded: RunningService) -> None:
    silent = exchange(bounded.port, head("Content-Length: 1000"), b"some", wait=0.01)
    assert silent.startswith(b"HTTP/1.1 408") and b'"slow_sender"' in silent
    drips = exchange(bounded.port, head("Content-Length: 1000"), *[b"x"] * 9, wait=0.4)
    assert drips.startswith(b"HTTP/1.1 408")


@pytest.mark.slow
def test_a_head_that_does_not_come_is_408_and_one_without_an_end_is_no_request(bounded: RunningService) -> None:
    started = time.monotonic()
    assert exchange(bounded.port, b"POST /pre").startswith(b"HTTP/1.1 408")
    assert exchange(bounded.port).startswith(b"HTTP/1.1 408")
    assert time.monotonic() - started < 30
    endless = exchange(bounded.port, b"GET / HTTP/1.1\r\n", *[b"X: " + b"y" * 10_000 + b"\r\n"] * 10)
    assert endless.startswith(b"HTTP/1.1 400") and b'"bad_parameter"' in endless


@pytest.mark.slow
def test_so_many_bodies_and_connections_are_taken_and_no_more(bounded: RunningService, video: bytes) -> None:
    answers: list[bytes] = []
    slow = [
        threading.Thread(target=lambda: answers.append(exchange(bounded.port, head("Content-Length: 1000"), b"x")))
        for _ in range(2)
    ]
    for thread in slow:
        thread.start()
    while bounded.service.receiver.receiving < 2:
        time.sleep(0.01)
    answer = bounded.post("/predict", video)
    assert (answer.status, answer.kind, answer.headers["retry-after"]) == (429, "busy", "5")
    for thread in slow:
        thread.join()
    opened = [socket.create_connection(("127.0.0.1", bounded.port), timeout=30) for _ in range(12)]
    refused = [connection.recv(1000) for connection in opened[8:]]
    assert all(answer.startswith(b"HTTP/1.1 503") for answer in refused)
    for connection in opened:
        connection.close()


def test_no_file_of_an_upload_is_left(bounded: RunningService, video: bytes) -> None:
    bounded.post("/predict", video)
    folder = Path(bounded.service._folder.name)
    deadline = time.monotonic() + 20
    while list(folder.iterdir()) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert list(folder.iterdir()) == []


def test_a_body_that_is_given_up_when_its_folder_is_gone_already_is_no_other_error(tmp_path: Path) -> None:
    folder = tmp_path / "bodies"
    folder.mkdir()
    receiver = Receiver(folder, limits=LIMITS, uris=())

    async def nothing_comes() -> Any:
        await asyncio.sleep(60)

    async def take() -> None:
        scope = {"type": "http", "method": "POST", "headers": [(b"content-type", b"video/mp4")]}
        async with receiver.received(Request(scope, nothing_comes)):
            pass

    async def give_up() -> None:
        task = asyncio.create_task(take())
        await asyncio.sleep(0.1)
        assert len(list(folder.iterdir())) == 1
        shutil.rmtree(folder)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(give_up())
