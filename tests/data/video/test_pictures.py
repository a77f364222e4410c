import socket
import struct
import subprocess
import sys
import zlib
from pathlib import Path

import cv2
import numpy as np
import pytest
from foreign_videos import corners, encoded

from twostream_ray.data.video.pictures import read_image
from twostream_ray.data.video.raw_video import FrameStream
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
        with pytest.raises(DecodeError, match=r"x: not a readable image, \d+ bytes"):
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
        "import sys; from twostream_ray.data.video.pictures import read_image\n"
        "read_image(sys.stdin.buffer.read(), name='x')"
    )
    done = subprocess.run([sys.executable, "-c", code], input=content, capture_output=True, timeout=30, check=False)
    assert b"DecodeError: x: not a readable image" in done.stderr


def test_video_is_no_image() -> None:
    from foreign_videos import encoded, pictures

    with pytest.raises(DecodeError, match="x: not a readable image"):
        read_image(encoded("libx264", pictures(3)), name="x")


def exif(value: int, order: str) -> bytes:
    """An APP1 segment whose second entry says how the camera was held."""
    entries = struct.pack(f"{order}HHHLL", 2, 0x10F, 2, 4, 0) + struct.pack(f"{order}HHLHH", 0x112, 3, 1, value, 0)
    tiff = {"<": b"II*\0", ">": b"MM\0*"}[order] + struct.pack(f"{order}L", 8) + entries + bytes(4)
    return b"\xff\xe1" + struct.pack(">H", len(tiff) + 8) + b"Exif\0\0" + tiff


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("value", range(10))
def test_jpeg_is_shown_as_its_camera_was_held(value: int, order: str) -> None:
    smooth = cv2.resize(PICTURE[:3, :4], (40, 24))
    plain = cv2.imencode(".jpg", smooth, [cv2.IMWRITE_JPEG_QUALITY, 95])[1].tobytes()
    note = b"\xff\xfe\0\6note"
    for front in (b"", plain[2:20], note, plain[2:20] + note):
        held = plain[:2] + front + exif(value, order) + plain[20:]
        wanted = cv2.imdecode(np.frombuffer(held, np.uint8), cv2.IMREAD_COLOR_RGB)
        assert wanted.shape == ((40, 24, 3) if 5 <= value <= 8 else (24, 40, 3))
        np.testing.assert_allclose(read_image(held, name="x").astype(int), wanted.astype(int), atol=4)


def test_exif_that_leads_nowhere_turns_nothing() -> None:
    plain = cv2.imencode(".jpg", PICTURE)[1].tobytes()
    upright = read_image(plain, name="x")
    whole = exif(6, "<")
    rng = np.random.default_rng(3)
    for tiff in (b"", b"II*\0", b"II*\0\xff\xff\xff\xff", whole[10:20], b"MM\0*\0\0\0\x08\xff\xff", rng.bytes(40)):
        segment = b"\xff\xe1" + struct.pack(">H", len(tiff) + 8) + b"Exif\0\0" + tiff
        np.testing.assert_array_equal(read_image(plain[:2] + segment + plain[2:], name="x"), upright)


@pytest.mark.real
def test_mirrored_display_matrix_is_shown_as_players_do(real: Path) -> None:
    plain, mirrored = (
        next(iter(FrameStream((real / "bugs" / f"mp4_{name}.mp4").read_bytes())))
        for name in ("plain_red_top_left_blue_bottom_right", "display_matrix_mirrored")
    )
    np.testing.assert_array_equal(mirrored, plain[:, ::-1])
    assert mirrored[5, -5, 0] > 200 and mirrored[-5, 5, 2] > 200


@pytest.mark.parametrize("container", ["mp4", "mov"])
@pytest.mark.parametrize("angle", [0, 90, 180, 270])
@pytest.mark.parametrize("mirrored", [False, True])
def test_each_of_the_eight_orientations_is_shown_as_players_do(container: str, angle: int, mirrored: bool) -> None:
    file = encoded(
        "mpeg4",
        [corners()] * 3,
        container=container,
        prepare=lambda stream: stream.set_display_rotation(angle, hflip=mirrored),
    )
    upright = np.rot90(corners(), angle // 90)
    wanted = upright[:, ::-1] if mirrored else upright
    frame = next(iter(FrameStream(file)))
    assert frame.shape == wanted.shape
    inside = np.abs(frame.astype(int) - wanted).max(axis=2) < 90
    assert inside.mean() > 0.9
