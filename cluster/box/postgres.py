"""A PostgreSQL server of the system's packages, as MLflow's database: its own cluster in a folder, with a password."""

from __future__ import annotations

import os
import pwd
import shutil
import signal
import subprocess
import sys
import time
from contextlib import suppress
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from cluster.box.server_process import ServerProcess, answers_at
from twostream_ray.errors import ClusterError

PORTS = 1
_USER = "mlflow"
_SYSTEM_MODULES = Path("/usr/lib/python3/dist-packages")
_INSTALL = "apt-get install postgresql python3-psycopg2"


@dataclass(frozen=True, kw_only=True)
class Postgres:
    """A server at loopback, which root starts as the system's user `postgres`, for it refuses root."""

    folder: Path
    """Contains its log and all data."""
    port: int
    password: str

    @property
    def uri(self) -> str:
        """SQLAlchemy URI for MLflow, with the password."""
        return f"postgresql+psycopg2://{_USER}:{self.password}@127.0.0.1:{self.port}/postgres"

    def start(self) -> ServerProcess:
        """Create the database cluster if there is none, and start the server; `wait` until it answers.

        Raises:
            ClusterError: the programs or the user are not there, or no data could be made.
        """
        programs, account = _programs(), _account()
        self.folder.mkdir(exist_ok=True)
        data, password = self.folder / "data", self.folder / "password"
        if account:
            shutil.chown(self.folder, account["user"], account["group"])
        if not data.exists():
            password.touch(mode=0o600)
            password.write_text(self.password)
            if account:
                shutil.chown(password, account["user"], account["group"])
            made = subprocess.run(  # noqa: S603
                [
                    *(str(programs / "initdb"), "--pgdata", str(data), "--username", _USER, "--pwfile", str(password)),
                    *("--auth", "scram-sha-256", "--encoding", "UTF8", "--locale", "C", "--no-sync"),
                ],
                **account,
                cwd="/",
                capture_output=True,
                text=True,
                check=False,
            )
            password.unlink()
            if made.returncode:
                reason = " ".join(made.stderr.split())[-300:]
                raise ClusterError(f"initdb could not make a database in {data}: {reason}")
        command = [str(programs / "postgres"), "-D", str(data), "-h", "127.0.0.1", "-p", str(self.port), "-k", ""]
        return ServerProcess.started(
            "Postgres", command, log=self.folder / "log", environment=os.environ, cwd=Path("/"), **account
        )

    def wait(self, process: ServerProcess) -> None:
        """Until it answers.

        Raises:
            ClusterError: it has ended, or does not answer within a minute; with the end of its log.
        """
        process.wait_until(lambda: answers_at(self.port), seconds=60)

    def stop(self, process: ServerProcess) -> None:
        """Stop it with SIGINT, so that it frees its shared memory, which SIGKILL would leave."""
        with suppress(ProcessLookupError):
            if not process.has_ended():
                os.kill(process.pid, signal.SIGINT)
        deadline = time.monotonic() + 10
        while not process.has_ended() and time.monotonic() < deadline:
            time.sleep(0.05)

    def client_modules(self) -> dict[str, str]:
        """Environment that lets this Python import the system Python's client library (psycopg2).

        Raises:
            ClusterError: it is nowhere, or for another version of Python.
        """
        if find_spec("psycopg2"):
            return {}
        version = f"cpython-{sys.version_info.major}{sys.version_info.minor}-"
        found = list((_SYSTEM_MODULES / "psycopg2").glob(f"_psycopg.{version}*.so"))
        if not found:
            raise ClusterError(
                f"MLflow wants psycopg2 to speak to Postgres, and there is none for Python {sys.version_info.major}."
                f"{sys.version_info.minor}: {_INSTALL}, or pip install psycopg2-binary"
            )
        # Only psycopg2: with all of the system's modules on the path, they could shadow the virtual environment's.
        modules = self.folder.with_name("postgres-client")
        modules.mkdir(exist_ok=True)
        link = modules / "psycopg2"
        if not link.is_symlink():
            link.symlink_to(found[0].parent)
        return {"PYTHONPATH": os.pathsep.join(filter(None, [os.environ.get("PYTHONPATH"), str(modules)]))}


def _programs() -> Path:
    on_path = shutil.which("initdb")
    found = [Path(on_path)] if on_path else sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"))
    if not found:
        raise ClusterError(f"Postgres is not installed on this machine: {_INSTALL}, or leave POSTGRES out for SQLite")
    return found[-1].resolve().parent


def _account() -> dict[str, Any]:
    """`user` and `group` of its processes for `subprocess`; empty: the current user."""
    if os.getuid() != 0:
        return {}
    try:
        found = pwd.getpwnam("postgres")
    except KeyError as error:
        raise ClusterError(f"Postgres refuses to run as root, and there is no user postgres: {_INSTALL}") from error
    return {"user": found.pw_uid, "group": found.pw_gid, "extra_groups": []}
