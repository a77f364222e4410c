"""The MLflow server of the cluster on one machine, for tests: one that can be killed and started again."""

from pathlib import Path

from cluster.box.mlflow_server import MlflowServer as Server
from cluster.box.server_process import ServerProcess, free_ports

USER, PASSWORD = "admin", "hush-a-password-of-the-tests"


class MlflowServer:
    """Its database and files in a folder; with `auth` it asks for USER and the password."""

    def __init__(self, folder: Path, *, auth: bool = False, password: str = PASSWORD) -> None:
        self.folder = folder
        self._server = Server(folder=folder, port=free_ports(1), user=USER, password=password if auth else None)
        self._process: ServerProcess | None = None

    @property
    def uri(self) -> str:
        return self._server.uri

    @property
    def port(self) -> int:
        return self._server.port

    def start(self) -> None:
        self._process = self._server.start()
        self._server.wait(self._process)

    def kill(self) -> None:
        """End it with all its processes, without notice."""
        if self._process is not None:
            self._process.kill()
            self._process = None
