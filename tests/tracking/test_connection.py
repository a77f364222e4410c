import os
import subprocess
import sys
from pathlib import Path

import pytest

from twostream_ray.cli import main
from twostream_ray.errors import ConfigError
from twostream_ray.tracking import TrackingConfig
from twostream_ray.tracking.connection import client_for, load_mlflow, short_timeouts


def test_overlapping_timeouts_of_threads_leaves_the_environment_as_it_was(monkeypatch: pytest.MonkeyPatch) -> None:
    name = "MLFLOW_HTTP_REQUEST_MAX_RETRIES"
    monkeypatch.delenv(name, raising=False)
    first, second = short_timeouts(repeat=False), short_timeouts()
    with first:
        assert os.environ[name] == "0"
        second.__enter__()
        assert os.environ[name] == "2"
    assert os.environ[name] == "2", "the second still runs"
    second.__exit__(None, None, None)
    assert name not in os.environ
    monkeypatch.setenv(name, "5")
    with short_timeouts(), short_timeouts(repeat=False):
        assert os.environ[name] == "0"
    assert os.environ[name] == "5"


def test_importing_tracking_does_not_load_mlflow() -> None:
    code = "import sys, twostream_ray.tracking; sys.exit('mlflow' in sys.modules or 'torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_telemetry_of_mlflow_is_off(tracking: TrackingConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_DISABLE_TELEMETRY", "")  # so that it is put back afterwards
    monkeypatch.delenv("MLFLOW_DISABLE_TELEMETRY")
    load_mlflow.cache_clear()
    client_for(tracking.resolved_uri())
    from mlflow.environment_variables import MLFLOW_DISABLE_TELEMETRY

    assert MLFLOW_DISABLE_TELEMETRY.get() is True


def test_uri_of_a_plain_folder_is_refused_with_the_way_out() -> None:
    with pytest.raises(ConfigError, match=r"wants sqlite:///FILE\.db, http\(s\)://HOST.*got './mlruns'"):
        TrackingConfig(uri="./mlruns")


def test_default_store_is_a_file_in_the_working_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.chdir(tmp_path)
    assert TrackingConfig().resolved_uri() == f"sqlite:///{tmp_path}/mlflow.db"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "sqlite:///other.db")
    assert TrackingConfig().resolved_uri() == f"sqlite:///{tmp_path}/other.db"
    assert TrackingConfig(uri="http://server:5000").resolved_uri() == "http://server:5000"


@pytest.mark.parametrize(
    "uri",
    [
        "http://",
        "http:///x",
        "http://host:port",
        "http://host:99999",
        "https://ho st",
        "ftp://host",
        "mlruns",
        "/some/directory",
        "file:///some/mlruns",
        "sqlite:relative.db",
        "//host",
        "http:/host",
    ],
)
def test_what_is_no_uri_of_mlflow_is_refused_in_one_line_wherever_it_comes_from(
    uri: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError, match=r"tracking\.uri \(or MLFLOW_TRACKING_URI\) wants"):
        TrackingConfig(uri=uri)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    assert main(["pull", "out"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "MLFLOW_TRACKING_URI" in line
    assert not list(tmp_path.iterdir())


def test_an_empty_environment_variable_is_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "  ")
    assert TrackingConfig().resolved_uri() == f"sqlite:///{tmp_path}/mlflow.db"


def test_a_database_without_its_driver_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ConfigError, match="install the database's driver, or name another store") as caught:
        TrackingConfig(uri="postgresql+nonsense://ann:p/ss@host/db").require_usable()
    assert "ss@" not in str(caught.value)
