"""Requests that no friend sends, each with the answers that are right."""

from __future__ import annotations

import gzip
import json
import urllib.parse
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from foreign_videos import encoded, pictures
from hostile_videos import LISTS, large_gif, large_jpeg, large_raw, million_frames
from raw_http import BOUNDARY, Request, chunked, endless, get, multipart, request

SECRET = "planted-secret-7f3a"
"""Stands in files and in the environment of the server; no answer may have it."""
PIECE = bytes(1 << 16)
MIB = 1 << 20
PLAYLISTS = ("m3u8", "ffconcat", "concat", "dash")
DISPOSITION = 'Content-Disposition: form-data; name="video"; filename="clip.mp4"\r\nContent-Type: video/mp4'


@dataclass(frozen=True, kw_only=True)
class Hostile:
    """A request and what it deserves."""

    request: Request
    statuses: tuple[int | None, ...]
    """Right answers; None: the connection is closed without one."""
    longest_s: float = 60.0
    """Time that the answer may take."""


def hostile_requests(
    *, max_body_bytes: int, slow_s: float, folder: Path, elsewhere: str, video: bytes
) -> dict[str, Hostile]:
    """The kinds by name.

    Args:
        max_body_bytes: the server's limit.
        slow_s: time after which it gives a slow sender up.
        folder: has a `secret.txt` with the secret and a `video.mp4`, on the server's machine.
        elsewhere: address of a video on a server that notes who asks.
        video: one that is fine.
    """
    kinds = _no_videos(folder, elsewhere=elsewhere)
    kinds |= _too_large(max_body_bytes)
    kinds |= _slow(slow_s, video)
    kinds |= _malformed(video)
    kinds |= _other_places(folder, elsewhere=elsewhere, video=video)
    return kinds


def _no_videos(folder: Path, *, elsewhere: str) -> dict[str, Hostile]:
    content = {
        "empty": b"",
        "truncated": encoded("mpeg4", pictures(10), container="mp4")[:900],
        "text": b"not a video\n" * 1000,
        "zeros": bytes(MIB // 4),
        "a million frames announced": million_frames(),
        "16k x 16k, JPEG": large_jpeg() * 5,
        "16k x 16k, GIF": large_gif(),
        "16k x 16k, raw": large_raw(),
    }
    for place in (f"{folder}/video.mp4", f"file://{folder}/secret.txt", elsewhere):
        where = "address" if place == elsewhere else Path(place).name
        content |= {f"{kind} naming a {where}": LISTS[kind](place).encode() for kind in PLAYLISTS}
    kinds = {
        name: Hostile(request=request("/predict", media="video/mp4", content=each), statuses=(422,))
        for name, each in content.items()
    }
    playlist = LISTS["m3u8"](elsewhere).encode()
    kinds["m3u8 that says so"] = Hostile(
        request=request("/predict", media="application/vnd.apple.mpegurl", content=playlist), statuses=(415,)
    )
    kinds["text that says so"] = Hostile(
        request=request("/predict", media="text/plain", content=b"hello"), statuses=(415,)
    )
    kinds["of no kind"] = Hostile(request=request("/predict", media=None, content=b"hello"), statuses=(415,))
    kinds["packed"] = Hostile(
        request=request(
            "/predict", media="video/mp4", content=gzip.compress(bytes(MIB)), headers={"Content-Encoding": "gzip"}
        ),
        statuses=(415,),
    )
    return kinds


def _too_large(max_body_bytes: int) -> dict[str, Hostile]:
    too_many = max_body_bytes + MIB

    def pieces() -> Iterator[bytes]:
        for _ in range(-(-too_many // len(PIECE))):
            yield PIECE

    form = f"--{BOUNDARY}\r\n{DISPOSITION}\r\n\r\n".encode()

    def endless_part() -> Iterator[bytes]:
        yield form
        yield from endless(PIECE)

    whole = request("/predict", length=too_many, body=pieces)
    announced = {"Expect": "100-continue"}
    media = f"multipart/form-data; boundary={BOUNDARY}"
    kinds = {
        "1 MB too large, announced": request("/predict", length=too_many, body=tuple),
        "1 MB too large, announced and sent": whole,
        "1 MB too large, asked for first": request("/predict", length=too_many, body=tuple, headers=announced),
        "1 MB too large, not announced": chunked("/predict", pieces),
        "an endless stream": chunked("/predict", lambda: endless(PIECE)),
        "an endless part of a form": chunked("/predict", endless_part, media=media),
        "an endless preamble of a form": chunked("/predict", lambda: endless(b"x" * 65536), media=media),
        "2^63 bytes announced": request("/predict", length=2**63, body=tuple),
    }
    return {name: Hostile(request=each, statuses=(413,)) for name, each in kinds.items()} | {
        # The endless may also be cut off as no form.
        "an endless preamble of a form": Hostile(request=kinds["an endless preamble of a form"], statuses=(400, 413)),
        "2^63 bytes announced": Hostile(request=kinds["2^63 bytes announced"], statuses=(400, 413)),
    }


def _slow(slow_s: float, video: bytes) -> dict[str, Hostile]:
    drops = chunked("/predict", lambda: endless(b"x"), pause_s=slow_s / 20)
    starts = request("/predict", length=len(video), body=lambda: (video[:100],))
    header = Request(head=b"POST /predict HTTP/1.1\r\nHost: service\r\nX: " + b"x" * 10_000, head_pause_s=slow_s / 20)
    return {
        "a slow sender": Hostile(request=drops, statuses=(408,), longest_s=3 * slow_s + 5),
        "a sender who stops": Hostile(request=starts, statuses=(408,), longest_s=3 * slow_s + 5),
        "a slow head": Hostile(request=header, statuses=(408, None), longest_s=3 * slow_s + 5),
        "a client who says nothing": Hostile(request=Request(head=b""), statuses=(408, None), longest_s=3 * slow_s + 5),
        "a client who leaves while it sends": Hostile(
            request=chunked("/predict", lambda: endless(PIECE), pause_s=0.05, leaves_after_s=0.3), statuses=(None,)
        ),
        "a client who leaves while it waits": Hostile(
            # The answer may be there before it leaves.
            request=request("/predict", media="video/mp4", content=video, leaves_after_s=0.1),
            statuses=(None, 200),
        ),
        "a body that ends early": Hostile(
            request=request("/predict", length=len(video), body=lambda: (video[:100],), ends=True),
            statuses=(None, 400, 408),
            longest_s=3 * slow_s + 5,
        ),
    }


def _malformed(video: bytes) -> dict[str, Hostile]:
    def raw(text: bytes) -> Request:
        return Request(head=text)

    first = b"POST /predict HTTP/1.1\r\nHost: service\r\nConnection: close\r\nContent-Type: video/mp4\r\n"
    many = [(f'Content-Disposition: form-data; name="x{number}"', b"x") for number in range(5000)]
    long = DISPOSITION + "\r\nX-Long: " + "x" * (2 * MIB)
    kinds: dict[str, tuple[Request, tuple[int | None, ...]]] = {
        "no HTTP": (raw(b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n"), (400, None)),
        "a negative length": (raw(first + b"Content-Length: -1\r\n\r\n"), (400, None)),
        "a length in words": (raw(first + b"Content-Length: many\r\n\r\n"), (400, None)),
        "two lengths": (raw(first + b"Content-Length: 3\r\nContent-Length: 4\r\n\r\nabcd"), (400, None)),
        "length and chunks": (
            raw(first + b"Content-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n"),
            (400, 422, None),
        ),
        "a chunk without a size": (raw(first + b"Transfer-Encoding: chunked\r\n\r\nzzz\r\n"), (400, None)),
        "a head without end": (
            Request(head=first + b"X: ", body=lambda: endless(b"x" * 65536)),
            (400, 431, None),
        ),
        "headers without end": (
            Request(head=first, body=lambda: endless(b"X: y\r\n" * 10_000)),
            (400, 431, None),
        ),
        "a form without a boundary": (request("/predict", media="multipart/form-data", content=b"x"), (400, 422)),
        "a form that is none": (
            request("/predict", media=f"multipart/form-data; boundary={BOUNDARY}", content=video),
            (400, 422),
        ),
        "a form without a video": (multipart("/predict", many[:1]), (400, 422)),
        "a form of 5000 parts": (multipart("/predict", many), (400, 413, 422)),
        "a part with a long header": (multipart("/predict", [(long, video)]), (400, 413, 422)),
        "an empty form": (multipart("/predict", []), (400, 422)),
        "a boundary of 10 kB": (multipart("/predict", [(DISPOSITION, video)], boundary="b" * 10_000), (400, 422)),
        "no JSON": (request("/predict", media="application/json", content=b"{"), (400, 415, 422)),
        "deep JSON": (request("/predict", media="application/json", content=b"[" * 100_000), (400, 413, 415, 422)),
    }
    parameters = ("top_k=0", "top_k=-1", "top_k=five", "top_k=1e9", "top_k=nan", "streams=maybe")
    for parameter in parameters:
        kinds[f"?{parameter}"] = (
            request(f"/predict?{parameter}", media="video/mp4", content=video),
            (400,),
        )
    for parameter in ("moments=-1", "moments=1000000", "moments=x", "label=no%20such%20class", "labell=x"):
        kinds[f"/explain?{parameter}"] = (request(f"/explain?{parameter}", media="video/mp4", content=video), (400,))
    kinds["/explain, text"] = (request("/explain", media="video/mp4", content=b"not a video\n" * 1000), (422,))
    kinds["/explain, text that says so"] = (request("/explain", media="text/plain", content=b"hello"), (415,))
    kinds["/explain, endless"] = (chunked("/explain", lambda: endless(PIECE)), (413,))
    return {name: Hostile(request=sent, statuses=statuses) for name, (sent, statuses) in kinds.items()}


def _other_places(folder: Path, *, elsewhere: str, video: bytes) -> dict[str, Hostile]:
    """Ways to other files and addresses beside those in what is decoded."""
    kinds: dict[str, Hostile] = {}
    for uri in (f"{folder}/secret.txt", f"file://{folder}/video.mp4", elsewhere, "s3://bucket/../secret"):
        kinds[f"a URI, {uri.split(':')[0] if ':' in uri else 'a path'}"] = Hostile(
            request=request("/predict", media="application/json", content=json.dumps({"uri": uri}).encode()),
            statuses=(400, 403, 415, 422),
        )
    name = DISPOSITION.replace("clip.mp4", f"../../..{folder}/written.mp4")
    kinds["a name that leads out, no video"] = Hostile(
        request=multipart("/predict", [(name, b"not a video\n" * 99)]), statuses=(422,)
    )
    secret = urllib.parse.quote(f"{folder}/secret.txt", safe="")
    ways: dict[str, Callable[[], str]] = {
        "a sample that leads out": lambda: f"/samples/..{folder}/secret.txt",
        "a sample that leads out, quoted": lambda: f"/samples/%2e%2e%2f%2e%2e%2f%2e%2e%2f{secret}",
        "an absolute sample": lambda: f"/samples/{secret}",
        "a sample with a null byte": lambda: "/samples/a%00.mp4",
        "no such page": lambda: "/../../../../etc/passwd",
    }
    return (
        kinds
        | {kind: Hostile(request=get(way()), statuses=(400, 404)) for kind, way in ways.items()}
        | {"no such method": Hostile(request=request("/predict", method="PUT", content=video), statuses=(405,))}
    )


def leaks(text: str, *, folder: Path) -> list[str]:
    """What of the server's machine stands in an answer."""
    told = [SECRET, str(folder), "site-packages", "Traceback", "/proc/", "/usr/", "/home/", "/root", "/tmp/", ".py"]
    return [each for each in told if each in text]
