"""Lifecycle of the single-machine cluster: start, status and stop; its state is stored in its folder."""

from __future__ import annotations

import hashlib
import hmac
import json
import os
import secrets
import shlex
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from cluster.box import mlflow_server, object_store, postgres, ray_nodes
from cluster.box.mlflow_server import MlflowServer
from cluster.box.object_store import ObjectStore
from cluster.box.postgres import Postgres
from cluster.box.ray_nodes import RayCluster
from cluster.box.server_process import ServerProcess, is_free, kill_all
from twostream_ray.errors import ClusterError
from twostream_ray.runs.cluster.private_cluster import end_processes, short_folder
from twostream_ray.storage.locks import locked

ROOT = Path(__file__).resolve().parents[2]
"""The repository."""
BUCKET = "box"
NODES = 2
_STATE = "state.json"
_FIRST_PORT, _LAST_PORT = 1024, 65535
_LARGEST_STORE = 2**30
"""Bytes of a node's object store, if shared memory is large enough."""

Say = Callable[[str], None]


@dataclass(frozen=True, kw_only=True)
class Addresses:
    """Loopback ports of a cluster's servers, and its folder; the first port identifies the cluster."""

    port: int
    """The first of PORTS consecutive ports."""
    folder: Path
    """Logs, data, sockets, secrets and process ids: everything that the cluster stores."""

    @classmethod
    def at(cls, port: int, folder: Path | None = None) -> Addresses:
        """Addresses of the cluster at a port; by default its folder is in the temporary directory."""
        return cls(port=port, folder=folder or short_folder() / f"twostream-box-{os.getuid()}-{port}")


PORTS = object_store.PORTS + mlflow_server.PORTS + postgres.PORTS + ray_nodes.PORTS


class MachineCluster:
    """Its servers, with secrets that were generated at its first start."""

    def __init__(self, addresses: Addresses, *, secret: str, checkout: str, with_postgres: bool = False) -> None:
        self.addresses, self.secret, self.checkout = addresses, secret, checkout
        folder, port = addresses.folder, addresses.port
        self.store = ObjectStore(folder=folder / "s3", port=port, key="box:owner", secret=_derived(secret, "store"))
        port += object_store.PORTS
        self.mlflow = MlflowServer(folder=folder / "mlflow", port=port, password=_derived(secret, "mlflow"))
        port += mlflow_server.PORTS
        self.database: Postgres | None = None
        if with_postgres:
            self.database = Postgres(folder=folder / "postgres", port=port, password=_derived(secret, "database"))
        port += postgres.PORTS
        # As on machines of a cloud: a node knows where the bucket and the tracking server are, a job need not say.
        known = self.store.environment | self.mlflow.environment | {"TMPDIR": str(folder / "tmp")}
        # Workers meet where nodes are, whatever this machine is called in its network. Those of a node have it to
        # themselves; here all share one machine with the servers, and theirs would come last.
        known |= {"GLOO_SOCKET_IFNAME": "lo", "RAY_worker_niceness": "0"}
        self.ray = RayCluster(folder=folder / "ray", port=port, token=_derived(secret, "ray"), environment=known)
        self.processes: dict[str, ServerProcess] = {}
        self.is_complete = False
        """Whether all of it has started: one whose start was killed is neither up nor of any use."""

    @property
    def client_environment(self) -> dict[str, str]:
        """Environment variables of clients on this machine."""
        return self.store.environment | self.mlflow.environment | self.ray.client_environment

    def start(self, say: Say) -> None:
        """Start all servers, at once those that need no other.

        Raises:
            ClusterError: one of them did not start.
        """
        folder = self.addresses.folder
        self.save()
        (folder / "tmp").mkdir()
        if self.database:
            # It may run as a user of its own, who has to reach its folder, and can list nothing here.
            folder.chmod(0o711)
            self.mlflow = replace(self.mlflow, database=self.database.uri, modules=self.database.client_modules())
            self._keep("postgres", self.database.start())
            self.database.wait(self.processes["postgres"])
        self._keep("s3", self.store.start())
        cpus, memory = max(1, (os.cpu_count() or 1) // NODES), _object_store_bytes()
        # Nothing but drivers runs on the head.
        self._keep("head", self.ray.start_head(num_cpus=0, object_store_bytes=memory // 4))
        self._keep("mlflow", self.mlflow.start())
        self.store.wait(self.processes["s3"], buckets=[BUCKET])
        say(f"object store  {self.store.endpoint}, bucket s3://{BUCKET}")
        self.ray.wait_for_head(self.processes["head"])
        for number in range(1, NODES + 1):
            self._keep(f"node{number}", self.ray.start_node(number, num_cpus=cpus, object_store_bytes=memory))
        self.mlflow.wait(self.processes["mlflow"])
        kept = "Postgres" if self.database else "SQLite"
        say(f"MLflow        {self.mlflow.uri}, user {self.mlflow.user}; its database is {kept}")
        for number in range(1, NODES + 1):
            self.ray.wait_for_node(self.processes[f"node{number}"])
        say(f"Ray           {self.ray.dashboard}, with a token; a head and {NODES} nodes, CPUs of each: {cpus}")
        exports = (f"export {name}={shlex.quote(value)}\n" for name, value in self.client_environment.items())
        self.environment_file.write_text("".join(exports))
        self.is_complete = True
        self.save()

    @property
    def environment_file(self) -> Path:
        """Shell script that exports the clients' environment variables."""
        return self.addresses.folder / "environment"

    def lose_node(self, number: int) -> None:
        """Kill a node with all its processes."""
        self.processes[f"node{number}"].kill()

    def replace_node(self, number: int) -> None:
        """Start a new node in place of a lost one.

        Raises:
            ClusterError: it did not start.
        """
        cpus = max(1, (os.cpu_count() or 1) // NODES)
        started = self.ray.start_node(number, num_cpus=cpus, object_store_bytes=_object_store_bytes())
        self._keep(f"node{number}", started)
        self.ray.wait_for_node(started)

    def end(self) -> None:
        """Kill its processes, and those that jobs have started; remove its folder."""
        if self.database and "postgres" in self.processes:
            self.database.stop(self.processes["postgres"])
        kill_all(list(self.processes.values()))
        # Drivers of jobs have sessions of their own, and write to logs in the folder.
        end_processes(self.addresses.folder)
        shutil.rmtree(self.addresses.folder, ignore_errors=True)

    def ended(self) -> list[ServerProcess]:
        """Servers that have ended."""
        return [process for process in self.processes.values() if process.has_ended()]

    def _keep(self, key: str, process: ServerProcess) -> None:
        self.processes[key] = process
        self.save()

    def save(self) -> None:
        """Store its state in its folder atomically."""
        state = {
            **{"port": self.addresses.port, "secret": self.secret, "checkout": self.checkout},
            **{"postgres": self.database is not None, "complete": self.is_complete},
            "processes": {key: asdict(process) for key, process in self.processes.items()},
        }
        written = self.addresses.folder / f"{_STATE}.{os.getpid()}"
        written.write_text(json.dumps(state, indent=1))
        written.replace(self.addresses.folder / _STATE)


def _derived(secret: str, purpose: str) -> str:
    """Derive a secret for one purpose, from which the others cannot be derived."""
    return hmac.new(secret.encode(), purpose.encode(), hashlib.sha256).hexdigest()[:48]


def _object_store_bytes() -> int:
    free = shutil.disk_usage("/dev/shm").free if Path("/dev/shm").is_dir() else 0  # noqa: S108
    return max(100 * 2**20, min(_LARGEST_STORE, free // 4))


def found(addresses: Addresses) -> MachineCluster | None:
    """The cluster stored in the folder, whether its processes run or not; None: there is none.

    Raises:
        ClusterError: the folder is somebody else's.
    """
    _require_own(addresses.folder)
    try:
        state = json.loads((addresses.folder / _STATE).read_text())
    except FileNotFoundError:
        return None
    cluster = MachineCluster(
        addresses, secret=state["secret"], checkout=state["checkout"], with_postgres=state.get("postgres", False)
    )
    cluster.is_complete = state.get("complete", True)
    cluster.processes = {key: ServerProcess(**fields) for key, fields in state["processes"].items()}
    return cluster


def up(addresses: Addresses, *, say: Say, with_postgres: bool = False) -> MachineCluster:
    """Start the cluster, unless it is up.

    Raises:
        ClusterError: a port is taken, a part is gone or does not start.
    """
    with _changing(addresses):
        cluster = found(addresses)
        if cluster and not cluster.is_complete:
            say("an earlier start was interrupted: what it left is removed")
            cluster.end()
            cluster = None
        if cluster and (ended := cluster.ended()) and len(ended) < len(cluster.processes):
            raise ClusterError(
                f"{ended[0].name} of the cluster at port {addresses.port} has ended; its log: {ended[0].log}; "
                "`make cluster-down` ends the others"
            )
        if cluster and not cluster.ended():
            say(f"it is up already, from {cluster.checkout}: {cluster.ray.dashboard}; `make cluster-down` ends it")
            return cluster
        if cluster:  # the machine has been off
            cluster.end()
        _require_ports(addresses)
        _make_folder(addresses.folder)
        os.umask(0o077)  # of what it starts, too: secrets are in it
        cluster = MachineCluster(
            addresses, secret=secrets.token_hex(32), checkout=str(ROOT), with_postgres=with_postgres
        )
        began = time.monotonic()
        try:
            cluster.start(say)
        except BaseException:
            cluster.end()
            raise
        say(f"up after {time.monotonic() - began:.0f} s; logs and data in {addresses.folder} until `make cluster-down`")
        say(f"for clients in this shell: . {cluster.environment_file}")
        return cluster


def down(addresses: Addresses, *, say: Say) -> None:
    """Stop the cluster and delete its folder, with the contents of its bucket and its registry."""
    with _changing(addresses):
        cluster = found(addresses)
        if cluster is None:
            say(f"no cluster is up at port {addresses.port}")
            return
        cluster.end()
        say(f"ended, {addresses.folder} is gone")


@contextmanager
def _changing(addresses: Addresses) -> Iterator[None]:
    """Lock, so that only one command at a time starts or stops a cluster."""
    lock = Path(tempfile.gettempdir(), f"{addresses.folder.name}.lock")
    try:
        with locked(lock, wait=False):
            yield
    except BlockingIOError as error:
        raise ClusterError(f"another command starts or ends the cluster at port {addresses.port} now: wait") from error


def _require_own(folder: Path) -> None:
    """Refuse a folder of another user, because secrets will be stored in it."""
    if folder.is_symlink() or (folder.exists() and folder.stat().st_uid != os.getuid()):
        raise ClusterError(f"{folder} is another user's: name another port (PORT=...) or folder")


def _make_folder(folder: Path) -> None:
    """Make the folder of a cluster, which will be removed with it: so it is to hold nothing of anybody's."""
    try:
        folder.mkdir(mode=0o700, exist_ok=True)
        _require_own(folder)
        held = [path.name for path in folder.iterdir() if not path.name.startswith(f"{_STATE}.")]
    except OSError as error:
        raise ClusterError(
            f"the cluster wants a folder of its own at {folder}, which cannot be made ({error.strerror}): name another "
            "one (--folder), below a folder that is there"
        ) from error
    if held:
        raise ClusterError(
            f"{folder} holds {held[0]} and is no cluster's: `make cluster-down` would remove it with the cluster; name "
            "a folder that is empty or not there, or remove it"
        )


def _require_ports(addresses: Addresses) -> None:
    if not _FIRST_PORT <= addresses.port <= _LAST_PORT - PORTS + 1:
        raise ClusterError(
            f"the cluster wants a first port from {_FIRST_PORT} to {_LAST_PORT - PORTS + 1}, got {addresses.port}: "
            "make cluster-up PORT=23000"
        )
    taken = [port for port in range(addresses.port, addresses.port + PORTS) if not is_free(port)]
    if taken:
        which = ", ".join(map(str, taken))
        raise ClusterError(
            f"the cluster wants ports {addresses.port} to {addresses.port + PORTS - 1}, taken: {which}; "
            "end who listens there, or choose others: make cluster-up PORT=23000"
        )
