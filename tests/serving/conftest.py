"""One small model, one video and one service with the usual limits for all tests of serving."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from running_service import RunningService, running_service, stored_model

from twostream_ray.data.sources.synthetic import SyntheticConfig, draw_clip
from twostream_ray.data.video.files import write_video
from twostream_ray.serving.settings import ServeConfig


@pytest.fixture(scope="session")
def model_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return stored_model(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="session")
def video(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    path = tmp_path_factory.mktemp("videos") / "clip.mp4"
    write_video(draw_clip(SyntheticConfig(size_px=64), "test", 0), path=path, container="mp4", fps=25)
    return path.read_bytes()


@pytest.fixture(scope="session")
def service(model_folder: Path) -> Iterator[RunningService]:
    with running_service(ServeConfig(model=str(model_folder), decoders=2)) as running:
        yield running
