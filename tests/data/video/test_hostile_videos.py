"""Uploads that are no videos, or more than that: each is refused in words, in bounds, and nothing else is opened."""

import http.server
import socketserver
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from foreign_videos import encoded, pictures
from hostile_videos import LISTS, endless, large_gif, large_jpeg, large_raw, million_frames

from twostream_ray.data.flow import FlowContract
from twostream_ray.data.video import isolation
from twostream_ray.data.video.isolation import prepare_in_subprocess
from twostream_ray.data.video.prepare import Source
from twostream_ray.errors import DecodeError, TooLongError

CONTRACT = FlowContract(short_side_px=64)
SECRET = "planted-secret"


@pytest.fixture(scope="module")
def requests() -> Iterator[list[str]]:
    """What a server on this machine is asked for, after its address."""
    asked: list[str] = []

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asked.append(self.path)
            self.send_error(404)

    with socketserver.TCPServer(("127.0.0.1", 0), Handler) as server:
        asked.append(f"http://127.0.0.1:{server.server_address[1]}/video.mp4")
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield asked
        server.shutdown()


@pytest.mark.timeout(60)
@pytest.mark.parametrize("way", ["bytes", "path", "image"])
@pytest.mark.parametrize("kind", LISTS)
def test_lists_of_other_places_open_none(kind: str, way: str, requests: list[str], tmp_path: Path) -> None:
    (tmp_path / "secret.txt").write_text(SECRET)
    (tmp_path / "video.mp4").write_bytes(encoded("mpeg4", pictures(4), container="mp4"))
    for place in (f"{tmp_path}/video.mp4", f"file://{tmp_path}/video.mp4", f"{tmp_path}/secret.txt", requests[0]):
        content = LISTS[kind](place).encode()
        upload = tmp_path / f"upload.{kind}"
        upload.write_bytes(content)
        sources = {"bytes": content, "path": Source(video=upload), "image": Source(frames=(content, content))}
        with pytest.raises(DecodeError, match=r"x.*: not a readable (video|image), \d+ bytes") as error:
            prepare_in_subprocess(sources[way], CONTRACT, name="x")
        assert SECRET not in str(error.value) and str(tmp_path) not in str(error.value)
    assert requests[1:] == []


FILES: dict[str, Callable[[], bytes]] = {
    "empty": lambda: b"",
    "text": lambda: b"not a video\n" * 1000,
    "zeros": lambda: bytes(1 << 20),
    "a page": lambda: b"<!doctype html><html><body>" + b"x" * 9000,
    "truncated": lambda: encoded("mpeg4", pictures(10), container="mp4")[:900],
    "16k x 16k JPEG frames": lambda: large_jpeg() * 5,
    "16k x 16k GIF": large_gif,
    "16k x 16k raw frames": large_raw,
    "a million frames": million_frames,
    "endless": endless,
}


@pytest.mark.slow
@pytest.mark.timeout(60)
@pytest.mark.parametrize("kind", FILES)
def test_files_that_are_no_whole_videos_are_refused_in_little_time_and_memory(kind: str) -> None:
    isolation._pool.end_idle()
    content = FILES[kind]()
    started = time.monotonic()
    error = TooLongError if kind == "endless" else DecodeError
    with pytest.raises(
        error, match=r"^x: (not a readable|decoding failed|a clip may|expected) |^x: the file announces"
    ):
        prepare_in_subprocess(content, CONTRACT, name="x", max_frames=3000)
    assert time.monotonic() - started < 30
    status = Path(f"/proc/{isolation._pool.ids[-1]}/status").read_text()
    assert int(status.split("VmHWM:")[1].split()[0]) < 200_000


@pytest.mark.timeout(60)
def test_a_large_picture_is_no_image() -> None:
    with pytest.raises(DecodeError, match="an image may have at most 64000000 pixels, this has 268435456"):
        prepare_in_subprocess(Source(frames=(large_jpeg(),) * 2), CONTRACT, name="x")
