"""An `mlflow server` process, with a login if it has a password; can be killed and restarted on the same port."""

from __future__ import annotations

import os
import sys
import urllib.error
import urllib.request
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from cluster.box.server_process import ServerProcess

PORTS = 1


@dataclass(frozen=True, kw_only=True)
class MlflowServer:
    """A tracking server on loopback."""

    folder: Path
    """With its log, its database (SQLite) and the files of runs and models."""
    port: int
    user: str = "admin"
    password: str | None = None
    """Password of HTTP basic authentication; None: no login."""
    database: str | None = None
    """URI of its database; None: SQLite in the folder."""
    modules: Mapping[str, str] = field(default_factory=dict)
    """Environment variables for its database client."""

    @property
    def uri(self) -> str:
        """Its address."""
        return f"http://127.0.0.1:{self.port}"

    @property
    def environment(self) -> dict[str, str]:
        """Environment variables of clients."""
        address = {"MLFLOW_TRACKING_URI": self.uri}
        if self.password is None:
            return address
        return address | {"MLFLOW_TRACKING_USERNAME": self.user, "MLFLOW_TRACKING_PASSWORD": self.password}

    def start(self) -> ServerProcess:
        """Start it; `wait` until it answers."""
        self.folder.mkdir(exist_ok=True)
        command = [sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(self.port)]
        command += ["--workers", "1", "--artifacts-destination", str(self.folder / "files")]
        environment = os.environ | {"MLFLOW_DISABLE_TELEMETRY": "true", "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
        # Not in the command line, which all users can read: the URI may contain a password.
        environment["MLFLOW_BACKEND_STORE_URI"] = self.database or f"sqlite:///{self.folder}/mlflow.db"
        environment |= self.modules
        environment.pop("MLFLOW_TRACKING_URI", None)
        if self.password is not None:
            command += ["--app-name", "basic-auth"]
            environment |= {
                "MLFLOW_AUTH_ADMIN_USERNAME": self.user,
                "MLFLOW_AUTH_ADMIN_PASSWORD": self.password,
                "MLFLOW_FLASK_SERVER_SECRET_KEY": f"sessions of {self.password}",
            }
        return ServerProcess.started(
            "the MLflow server", command, log=self.folder / "log", environment=environment, cwd=self.folder
        )

    def wait(self, process: ServerProcess) -> None:
        """Until it answers.

        Raises:
            ClusterError: it has ended, or does not answer within two minutes.
        """
        process.wait_until(self._answers, seconds=120)

    def _answers(self) -> bool:
        try:
            with urllib.request.urlopen(f"{self.uri}/health", timeout=5) as response:  # noqa: S310
                return bool(response.status == 200)
        except (urllib.error.URLError, OSError):
            return False
