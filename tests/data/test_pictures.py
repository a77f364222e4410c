import socket
import struct
import subprocess
import sys
import zlib
from pathlib import Path

import numpy as np
import pytest

from twostream_ray.data.pictures import read_image
from twostream_ray.errors import DecodeError


def png(picture: np.ndarray) -> bytes:
    """An RGB picture as a PNG."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    height, width, _ = picture.shape
    rows = b"".join(b"\0" + row.tobytes() for row in picture)
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


PICTURE = np.random.default_rng(0).integers(0, 255, (20, 30, 3), dtype=np.uint8)

LEADS_ELSEWHERE = {
    "ffconcat": "ffconcat version 1.0\nfile {path}\n",
    "ffconcat of two": "ffconcat version 1.0\nfile '{path}'\nduration 1\nfile '{path}'\n",
    "ffconcat of a file URI": "ffconcat version 1.0\nfile file:{path}\n",
    "playlist": "#EXTM3U\n#EXT-X-TARGETDURATION:1\n#EXTINF:1,\n{path}\n#EXT-X-ENDLIST\n",
}


def test_png_is_read_as_it_is() -> None:
    np.testing.assert_array_equal(read_image(png(PICTURE), name="x"), PICTURE)
    assert read_image(png(PICTURE), name="x", grey=True).shape == (20, 30)


@pytest.mark.parametrize("kind", LEADS_ELSEWHERE)
def test_image_that_names_another_file_is_none(tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "private").mkdir()
    (tmp_path / "private" / "secret.png").write_bytes(png(PICTURE))
    monkeypatch.chdir(tmp_path)
    for path in ("private/secret.png", f"{tmp_path}/private/secret.png"):
        with pytest.raises(DecodeError, match=r"x: an image was wanted, \d+ bytes are none"):
            read_image(LEADS_ELSEWHERE[kind].format(path=path).encode(), name="x")


@pytest.mark.parametrize("payload", [26, 32])
def test_image_that_describes_a_session_opens_no_port(payload: int) -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1] & ~1
    session = "v=0\no=- 0 0 IN IP4 127.0.0.1\ns=x\nc=IN IP4 127.0.0.1\nt=0 0\n"
    content = f"{session}m=video {port} RTP/AVP {payload}\n".encode()
    # Apart, for a reader that opens the port waits there for ever.
    code = (
        "import sys; from twostream_ray.data.pictures import read_image; read_image(sys.stdin.buffer.read(), name='x')"
    )
    done = subprocess.run([sys.executable, "-c", code], input=content, capture_output=True, timeout=30, check=False)
    assert b"DecodeError: x: an image was wanted" in done.stderr


def test_video_is_no_image() -> None:
    from foreign_videos import encoded, pictures

    with pytest.raises(DecodeError, match="x: an image was wanted"):
        read_image(encoded("libx264", pictures(3)), name="x")
