"""One SQLite store and one server for all tests of tracking: migrations cost two seconds, a server's start ten."""

import uuid
from collections.abc import Iterator

import pytest
from champion_model import Model
from mlflow_server import MlflowServer

from twostream_ray.tracking import TrackingConfig, delivery


@pytest.fixture(autouse=True)
def no_outage_before() -> Iterator[None]:
    """A server that was away in one test is asked at once in the next."""
    delivery._outages.clear()
    yield
    delivery._outages.clear()


@pytest.fixture(scope="session")
def tracking(tmp_path_factory: pytest.TempPathFactory) -> TrackingConfig:
    folder = tmp_path_factory.mktemp("a store")
    return TrackingConfig(uri=f"sqlite:///{folder}/mlflow.db")


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TrackingConfig]:
    server = MlflowServer(tmp_path_factory.mktemp("server"))
    server.start()
    try:
        yield TrackingConfig(uri=server.uri)
    finally:
        server.kill()


@pytest.fixture
def model(tracking: TrackingConfig) -> Model:
    return Model(tracking, f"model {uuid.uuid4()}")
