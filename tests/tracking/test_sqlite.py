"""Where MLflow's SQLite file is, and what keeps it from being used."""

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from twostream_ray.cli import main
from twostream_ray.errors import ConfigError, StorageError
from twostream_ray.tracking import TrackingConfig, delivery, log_artifacts, log_metrics, start_run
from twostream_ray.tracking.connection import client_for
from twostream_ray.tracking.outbox import Outbox

ODD = ["wh?t", "a#b", "100%", "a%20b", "a b", "ünïcödé 日本", "ann:pw@host", "x?timeout=5", "semi;colon&and=", "~"]


def recorded(config: TrackingConfig, root: Path) -> str:
    """Record a run with a file; gives where MLflow keeps its files."""
    handle = start_run(config, run_name="run", run_uri=str(root), parameters={"lr": 0.1}, tags={})
    (root / "note.txt").write_text("kept")
    log_artifacts(handle, [root / "note.txt"], folder="kept")
    assert handle.run_id and Outbox(run_uri=str(root)).count() == 0
    run = client_for(handle.tracking_uri).get_run(handle.run_id)
    assert run.data.params == {"lr": "0.1"}
    return str(run.info.run_id)


def test_whatever_the_working_directory_is_called_its_database_and_files_lie_in_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    here = tmp_path / " ".join(ODD).replace("/", "_")
    here.mkdir()
    monkeypatch.chdir(here)
    run_id = recorded(TrackingConfig(), tmp_path / "run")
    assert sorted(path.name for path in here.iterdir()) == ["mlartifacts", "mlflow.db"]
    assert list((here / "mlartifacts").rglob("note.txt")) == [
        here / "mlartifacts" / run_id / "artifacts" / "kept" / "note.txt"
    ]
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted([here.name, "run"])


@pytest.mark.parametrize("name", ODD)
def test_a_path_survives_the_way_into_a_url_and_back(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import sqlite3
    from urllib.parse import unquote, urlsplit

    from sqlalchemy import create_engine

    here = tmp_path / name
    here.mkdir()
    wanted = here / "mlflow.db"
    monkeypatch.chdir(here)
    for uri in (None, "sqlite:///mlflow.db", f"sqlite:///{wanted}"):
        config = TrackingConfig(uri=uri)
        resolved = config.resolved_uri()
        assert TrackingConfig(uri=resolved).resolved_uri() == resolved
        if uri is not None and "timeout" in name and uri != "sqlite:///mlflow.db":
            continue  # an option, by SQLAlchemy's rules
        with create_engine(resolved).connect() as connection:
            connection.exec_driver_sql("create table if not exists t (x)")
            connection.commit()
        assert wanted.is_file()
        with sqlite3.connect(wanted) as database:
            assert database.execute("select name from sqlite_master").fetchall() == [("t",)]
        location = config.artifact_location()
        assert location is not None and unquote(urlsplit(location).path) == str(here / "mlartifacts")


def test_options_of_a_url_stay_options(tmp_path: Path) -> None:
    assert TrackingConfig(uri=f"sqlite:///{tmp_path}/a.db?timeout=5").resolved_uri().endswith("/a.db?timeout=5")


@pytest.mark.parametrize(
    "uri", ["sqlite://", "sqlite:///", "sqlite:///:memory:", "sqlite:///file:a.db?uri=true", "sqlite:///a/"]
)
def test_a_url_that_names_no_file_that_stays_is_refused(uri: str) -> None:
    with pytest.raises(ConfigError, match=r"wants a SQLite file that stays, as sqlite:///FILE\.db, got"):
        TrackingConfig(uri=uri)


@pytest.mark.parametrize("verb", [["pull", "out"], ["predict", "x.mp4"], ["rollback"]])
@pytest.mark.parametrize("uri", ["postgresql+nonsense://ann:p/ss@host/db", "mysql+nothing://root:s3cr%et@host/db"])
def test_every_verb_that_reads_a_registry_names_the_driver_that_lacks_in_one_line(
    uri: str, verb: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main([*verb, "--tracking.uri", uri]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "install the database's driver" in line and "ss@" not in line and "s3cr" not in line


def spoil(what: str, tmp_path: Path) -> Path:
    """A database that no waiting makes writable."""
    (tmp_path / "file").write_text("not a folder")
    (tmp_path / "folder").mkdir()
    (tmp_path / "junk.db").write_bytes(b"no database at all" * 100)
    (tmp_path / "link.db").symlink_to("/proc/nowhere/mlflow.db")
    os.mkfifo(tmp_path / "fifo.db")
    return {
        "a folder": tmp_path / "folder",
        "below a file": tmp_path / "file" / "mlflow.db",
        "deep below a file": tmp_path / "file" / "a" / "b" / "mlflow.db",
        "in /proc": Path("/proc/mlflow.db"),
        "below /proc": Path("/proc/a/mlflow.db"),
        "junk": tmp_path / "junk.db",
        "a link out of reach": tmp_path / "link.db",
        "a FIFO": tmp_path / "fifo.db",
        "a device": Path("/dev/zero"),
    }[what]


SPOILT = (
    "a folder",
    "below a file",
    "deep below a file",
    "in /proc",
    "below /proc",
    "junk",
    "a link out of reach",
    "a FIFO",
    "a device",
)


@pytest.mark.parametrize("what", SPOILT)
def test_a_database_that_cannot_be_written_is_refused_at_once_with_the_way_out(what: str, tmp_path: Path) -> None:
    path = spoil(what, tmp_path)
    before = sorted(tmp_path.rglob("*"))
    config = TrackingConfig(uri=f"sqlite:///{path}")
    began = time.monotonic()
    with pytest.raises(
        StorageError, match=r"MLflow's database .* cannot be written \(.*set --tracking\.uri .* another file"
    ):
        config.require_usable()
    with pytest.raises(StorageError):
        client_for(config.resolved_uri())
    assert time.monotonic() - began < 2
    assert sorted(tmp_path.rglob("*")) == before


def test_every_verb_that_speaks_to_mlflow_says_so_in_one_line_before_anything_slow(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mlflow.db").mkdir()
    verbs: list[list[str]] = [
        ["train", "--name", "x", "--data.shards", "nowhere"],
        ["demo", "--name", "x", "--data.shards", "nowhere", "--tracking.uri", "sqlite:///mlflow.db"],
        ["tune", "--name", "x", "--data.shards", "nowhere", "--data.validation_split", "val", "--search.space", "{}"],
        ["pull", "out"],
        ["rollback"],
        ["predict", "video.mp4", "--model", "models:/two-stream@champion"],
    ]
    began, had_ray = time.monotonic(), _has_ray()
    for verb in verbs:
        assert main(verb) == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert "mlflow.db" in line and "tracking.uri" in line, line
    assert time.monotonic() - began < 120  # each contact took 100 s
    assert [path.name for path in tmp_path.iterdir()] == ["mlflow.db"]
    assert _has_ray() == had_ray


def _has_ray() -> bool:
    return "ray" in sys.modules and sys.modules["ray"].is_initialized()


@pytest.mark.parametrize("what", ["a folder", "junk", "below a file"])
def test_a_database_that_goes_bad_while_a_run_trains_is_reported_once_and_holds_up_nothing(
    what: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = spoil(what, tmp_path)
    config = TrackingConfig(uri=f"sqlite:///{path}")
    client_for("http://127.0.0.1:9")  # imports MLflow, which takes seconds
    began = time.monotonic()
    handle = start_run(config, run_name="run", run_uri=str(tmp_path / "run"), parameters={}, tags={})
    for step in range(20):
        log_metrics(handle, {"loss": 1.0}, step=step)
    assert time.monotonic() - began < 5
    assert Outbox(run_uri=str(tmp_path / "run")).count() == 20
    assert len([record for record in caplog.records if "training continues" in record.getMessage()]) == 1
    delivery._outages.clear()


@pytest.fixture
def public() -> Iterator[Path]:
    """A folder that other users reach; pytest's own are closed to them."""
    with tempfile.TemporaryDirectory() as folder:
        yield Path(folder)


@pytest.mark.slow
@pytest.mark.skipif(os.getuid() != 0, reason="wants to become another user")
def test_a_database_of_others_can_be_read_but_a_run_is_not_recorded_there(tmp_path: Path, public: Path) -> None:
    """As another user, for whom permissions hold."""
    public.chmod(0o755)
    recorded(TrackingConfig(uri=f"sqlite:///{public}/mlflow.db"), tmp_path / "run")
    (public / "mlflow.db").chmod(0o444)
    script = (
        "import os, sys, time\n"
        "import twostream_ray.tracking.registry, twostream_ray.tracking.connection as connection\n"
        "connection.load_mlflow()\n"
        "import mlflow, mlflow.store.tracking.sqlalchemy_store, mlflow.artifacts\n"
        "os.setgid(65534); os.setuid(65534)\n"
        "from twostream_ray.errors import RegistryError, StorageError\n"
        "from twostream_ray.tracking import TrackingConfig, pull\n"
        "config = TrackingConfig(uri=sys.argv[1])\n"
        "began = time.monotonic()\n"
        "try:\n"
        "    config.require_usable()\n"
        "except StorageError as error:\n"
        "    print(error)\n"
        "print(time.monotonic() - began < 2)\n"
        "try:\n"
        "    pull('models:/nobody@champion', __import__('pathlib').Path('/tmp/never'), config=config)\n"
        "except RegistryError as error:\n"
        "    print('nobody' in str(error))\n"
        "print(time.monotonic() - began < 30)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, f"sqlite:///{public}/mlflow.db"],
        capture_output=True,
        text=True,
        check=False,
        env=os.environ | {"TMPDIR": "/tmp", "HOME": "/tmp"},
    )
    lines = done.stdout.splitlines()
    assert len(lines) == 4, done.stderr
    assert "cannot be written" in lines[0] and "set --tracking.uri" in lines[0]
    assert lines[1:] == ["True", "True", "True"]
