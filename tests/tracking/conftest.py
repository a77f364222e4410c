"""One SQLite store for all tests of tracking: its migrations cost two seconds."""

import pytest

from twostream_ray.tracking import TrackingConfig


@pytest.fixture(scope="session")
def tracking(tmp_path_factory: pytest.TempPathFactory) -> TrackingConfig:
    folder = tmp_path_factory.mktemp("a store")
    return TrackingConfig(uri=f"sqlite:///{folder}/mlflow.db")
