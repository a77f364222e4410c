import functools
import hashlib
import http.server
import io
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from s3 import FaultyProxy, reached_at

from twostream_ray import storage
from twostream_ray.cli import main
from twostream_ray.errors import ConfigError, StorageError, WeightsError
from twostream_ray.models import pretrained
from twostream_ray.models.pretrained import published_weights
from twostream_ray.models.settings import TowerConfig
from twostream_ray.models.streams import build_tower
from twostream_ray.runs.fetch_weights import PUBLISHED, FetchConfig, fetch_weights

SMALL = TowerConfig(width=1)


@functools.cache
def narrow_vgg16() -> bytes:
    """A state dict of a VGG-16 that is small, as torch.save writes it."""
    file = io.BytesIO()
    torch.save(build_tower(SMALL, in_channels=3, num_classes=5).state_dict(), file)
    return file.getvalue()


class Site:
    """A real HTTP server with one file, which is what torchvision's table of weights names here."""

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        self.content, self.announced, self.asked, self._patch = narrow_vgg16(), len(narrow_vgg16()), 0, patch
        site = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                site.asked += 1
                if not self.path.endswith(".pth"):
                    self.send_error(404)
                    return
                self.send_response(200)
                self.send_header("Content-Length", str(site.announced))
                self.end_headers()
                self.wfile.write(site.content)

            def log_message(self, *_: object) -> None:
                return

        self._server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True).start()
        self.publish(f"http://127.0.0.1:{self._server.server_address[1]}/models")

    def publish(self, below: str) -> None:
        sha256 = hashlib.sha256(narrow_vgg16()).hexdigest()[:8]
        self.name = f"vgg16-{sha256}.pth"
        self._patch.setattr(pretrained, "published_weights", lambda _: (f"{below}/{self.name}", sha256))

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()


@pytest.fixture
def site(monkeypatch: pytest.MonkeyPatch) -> Iterator[Site]:
    made = Site(monkeypatch)
    yield made
    made.close()


def test_torchvision_publishes_the_weights_of_every_network_with_their_sha256() -> None:
    for name in PUBLISHED:
        url, sha256 = published_weights(name)
        assert url.startswith(f"https://download.pytorch.org/models/{name}-{sha256}") and len(sha256) == 8


def test_weights_are_fetched_once_and_a_tower_starts_from_them(
    site: Site, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["weights", "fetch", "vgg16", "--to", str(tmp_path / "new/weights")]
    assert main(command) == 0
    path = tmp_path / "new/weights" / site.name
    assert path.read_bytes() == narrow_vgg16()
    assert f"--model.spatial.weights {path}" in capsys.readouterr().out
    assert (main(command), site.asked) == (0, 1)
    assert "were there already" in capsys.readouterr().out
    assert [one.name for one in path.parent.iterdir()] == [site.name], "nothing is left beside it"
    tower = build_tower(
        TowerConfig(width=1, weights=str(path)), in_channels=20, num_classes=5, read_bytes=storage.read_bytes
    )
    assert tower.get_parameter("conv1_1.weight").shape == (1, 20, 3, 3)


def test_weights_are_fetched_to_an_object_store_and_read_from_there(site: Site, object_store: int) -> None:
    with reached_at(FaultyProxy(object_store).endpoint):
        config = FetchConfig(backbone="vgg16", to="s3://archive/pretrained")
        fetched = fetch_weights(config)
        assert (fetched.uri, fetched.was_there) == (f"s3://archive/pretrained/{site.name}", False)
        assert fetch_weights(config).was_there
        build_tower(
            TowerConfig(width=1, weights=fetched.uri), in_channels=3, num_classes=5, read_bytes=storage.read_bytes
        )
        storage.write_bytes(fetched.uri, b"somebody else's")
        with pytest.raises(StorageError, match="is another file"):
            fetch_weights(config)
        assert storage.read_bytes(fetched.uri) == b"somebody else's"


def test_another_file_under_the_name_is_never_written_over(site: Site, tmp_path: Path) -> None:
    path = tmp_path / site.name
    path.write_bytes(b"mine")
    with pytest.raises(StorageError, match=r"is another file \(sha256 .*\), which is not overwritten: name another"):
        fetch_weights(FetchConfig(backbone="vgg16", to=str(tmp_path)))
    assert (path.read_bytes(), site.asked) == (b"mine", 0)


def test_bytes_that_are_not_the_published_ones_or_not_all_are_refused_and_nothing_is_written(
    site: Site, tmp_path: Path
) -> None:
    config = FetchConfig(backbone="vgg16", to=str(tmp_path / "weights"))
    site.content = bytes(len(site.content))
    with pytest.raises(WeightsError, match=r"sent a file of sha256 \w{16}\.\.\., \w{8}\.\.\. was wanted"):
        fetch_weights(config)
    site.content = narrow_vgg16()[:1000]
    with pytest.raises(WeightsError, match=r"could not be downloaded \(.* after 1,000 of [\d,]+ bytes\)"):
        fetch_weights(config)
    assert not list(tmp_path.rglob("*.pth"))


def test_without_a_network_one_line_names_the_way_out(
    site: Site, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for below in ("http://127.0.0.1:9/models", "http://nowhere.invalid/models"):  # port 9: nobody listens there
        site.publish(below)
        assert main(["weights", "fetch", "vgg16", "--to", str(tmp_path)]) == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert f"vgg16's weights at {below}/{site.name} could not be downloaded" in line
        assert (
            f"run the same command on a machine with network access, or download the file and copy it to {tmp_path}"
            in line
        )
    assert list(tmp_path.iterdir()) == []


def test_only_published_weights_are_fetched() -> None:
    with pytest.raises(ConfigError, match=r"weights are published for vgg16, resnet50, r2plus1d_18, .*, got 'vgg19'"):
        FetchConfig(backbone="vgg19", to="weights")
