from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def real() -> Path:
    """The directory of real clips, lists and scores beside the repository."""
    directory = Path(__file__).resolve().parents[1] / "../shared/real"
    if not directory.is_dir():
        pytest.skip("real clips: ../shared/real is not there")
    return directory.resolve()
