import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from cluster.box import postgres
from cluster.box.postgres import Postgres
from cluster.box.server_process import free_ports
from twostream_ray.errors import ClusterError


@pytest.fixture
def database() -> Iterator[Postgres]:
    if not (shutil.which("initdb") or list(Path("/usr/lib/postgresql").glob("*/bin/initdb"))):
        pytest.skip("Postgres of the system's packages is not installed")
    # Not pytest's folder: a user of the server's own has to reach it.
    folder = Path(tempfile.mkdtemp(prefix="database-"))
    folder.chmod(0o711)
    yield Postgres(folder=folder / "postgres", port=free_ports(1), password="hush-a-password")
    shutil.rmtree(folder)


@pytest.mark.slow
def test_it_wants_the_password_and_gives_back_its_shared_memory(database: Postgres) -> None:
    before = set(Path("/dev/shm").iterdir())
    process = database.start()
    try:
        database.wait(process)
        assert process.pid != os.getpid() and not process.has_ended()
        if psql := shutil.which("psql"):
            for password, code in (("hush-a-password", 0), ("another", 2)):
                uri = f"postgresql://mlflow:{password}@127.0.0.1:{database.port}/postgres"
                done = subprocess.run([psql, uri, "-c", "select 1"], capture_output=True, text=True)
                assert done.returncode == code, done.stderr
    finally:
        database.stop(process)
    assert process.has_ended()
    assert {path for path in Path("/dev/shm").iterdir() if "PostgreSQL" in path.name} <= before


def test_without_its_client_library_one_line_says_what_to_install(
    database: Postgres, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(postgres, "find_spec", lambda _: None)
    monkeypatch.setattr(postgres, "_SYSTEM_MODULES", tmp_path)
    with pytest.raises(ClusterError, match="apt-get install postgresql python3-psycopg2"):
        database.client_modules()
