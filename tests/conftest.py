import os

# Before anything imports Ray or MLflow.
os.environ.update(
    RAY_USAGE_STATS_ENABLED="0",
    RAY_TRAIN_HEALTH_CHECK_INTERVAL_S="0.2",
    RAY_num_workers_soft_limit="16",
    RAY_idle_worker_killing_time_threshold_ms="600000",
    MLFLOW_DISABLE_TELEMETRY="true",
)
os.environ.pop("RAY_ADDRESS", None)
os.environ.pop("MLFLOW_TRACKING_URI", None)

import functools
import shutil
import signal
from collections.abc import Iterator
from pathlib import Path

import hypothesis
import pytest
from mlflow_server import MlflowServer
from ray_head import ray_head

from twostream_ray.data.flow import FlowContract
from twostream_ray.data.shards.shards import ShardSet, open_shards
from twostream_ray.data.sources.catalog import CatalogConfig
from twostream_ray.data.sources.synthetic import SyntheticConfig, synthesize
from twostream_ray.tracking import connection, sqlite

# How long an example takes is the machine's, which may be busy.
hypothesis.settings.register_profile("any machine", deadline=None)
hypothesis.settings.load_profile("any machine")

_SERVERS = {"guarded", "object_store", "server"}
"""Fixtures that start MLflow or an object store."""


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark tests by what they use, before pytest selects among them: a list by hand would soon be wrong."""
    for item in items:
        fixtures = set(getattr(item, "fixturenames", ()))
        if "cluster" in fixtures or item.get_closest_marker("own_cluster"):
            item.add_marker("ray")
        if fixtures & _SERVERS:
            item.add_marker("server")


def pytest_configure() -> None:
    """Have Ctrl-C interrupt, also where a shell has started the tests in the background, which ignores it."""
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session", autouse=True)
def tables_of_mlflow_made_once(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """A new SQLite store is a copy of one that MLflow has made: its 60 migrations take 1.4 s of a core each time."""
    made = tmp_path_factory.mktemp("made by MLflow") / "mlflow.db"
    migrate = connection._migrate_once

    @functools.cache
    def migrate_or_copy(uri: str) -> None:
        path = sqlite.path_of(uri)
        if path.exists():
            migrate(uri)
        else:
            migrate(sqlite.uri_of(made))
            path.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(made, path)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(connection, "_migrate_once", migrate_or_copy)
        yield


@pytest.fixture
def one_thread() -> Iterator[None]:
    """Small networks in one thread of torch: many threads of a busy machine wait for each other."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def real() -> Path:
    """The directory of real clips, lists and scores beside the repository."""
    directory = Path(__file__).resolve().parents[1] / "../shared/real"
    if not directory.is_dir():
        pytest.skip("real clips: ../shared/real is not there")
    return directory.resolve()


@pytest.fixture(scope="session")
def cluster() -> Iterator[None]:
    """One local Ray cluster for all tests that need one."""
    from twostream_ray.runs.cluster.session import ray_session

    with ray_session():
        yield


@pytest.fixture(scope="session")
def head(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    """The head of a cluster that jobs are submitted to; gives a client's environment."""
    with ray_head(tmp_path_factory.mktemp("head")) as environment:
        yield environment


@pytest.fixture(scope="session")
def videos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """48 + 8 + 20 small moving-shapes videos."""
    out = tmp_path_factory.mktemp("videos")
    synthesize(SyntheticConfig(train_clips=48, val_clips=8, test_clips=20, size_px=48), out, workers=1)
    return out


@pytest.fixture(scope="session")
def shard_set(cluster: None, videos: Path, tmp_path_factory: pytest.TempPathFactory) -> ShardSet:
    """The videos in shards, by the real ingest."""
    from twostream_ray.runs.ingest import ingest
    from twostream_ray.runs.settings import IngestConfig

    out = tmp_path_factory.mktemp("shards")
    ingest(
        IngestConfig(
            catalog=CatalogConfig(root=str(videos)),
            out=str(out),
            flow=FlowContract(short_side_px=48),
            rows_per_shard=32,
        )
    )
    return open_shards(str(out))


@pytest.fixture(scope="session")
def object_store(tmp_path_factory: pytest.TempPathFactory) -> Iterator[int]:
    """A real S3 server (OpenStack Swift) with a bucket `archive`; gives its port."""
    from s3 import serving

    with serving(tmp_path_factory.mktemp("store")) as port:
        yield port


@pytest.fixture
def guarded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[MlflowServer]:
    """A real MLflow server that asks for a password."""
    server = MlflowServer(tmp_path_factory.mktemp("guarded"), auth=True)
    server.start()
    try:
        yield server
    finally:
        server.kill()
