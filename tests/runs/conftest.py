import shutil
from pathlib import Path

import pytest


@pytest.fixture
def some_videos(videos: Path, tmp_path: Path) -> Path:
    """Copies of the training videos that a test may change."""
    copy = tmp_path / "videos"
    for path in sorted(videos.glob("train/*/*")):
        if path.suffix in (".mp4", ".avi"):
            (copy / path.relative_to(videos)).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(path, copy / path.relative_to(videos))
    return copy
