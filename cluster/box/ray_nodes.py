"""Nodes of a Ray cluster as processes of one machine, each with its own loopback address and folder.

`ray start` makes them, as it does on machines of their own; only who has the token may talk to them.
"""

from __future__ import annotations

import os
import sys
import urllib.error
import urllib.request
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import psutil

from cluster.box.server_process import ServerProcess

PORTS = 4
"""Consecutive ports of a cluster: control service, dashboard, clients, agents."""
_START_S = 120.0
_NODE_ID = "--node_id="


@dataclass(frozen=True, kw_only=True)
class RayCluster:
    """Settings shared by all nodes."""

    folder: Path
    """Contains each node's folder and log; the path must be short, because Ray creates sockets under it."""
    port: int
    """The first of its ports."""
    token: str
    """Authentication token; it grants full access."""
    environment: Mapping[str, str] = field(default_factory=dict)
    """Environment variables of the processes of all nodes, in addition to this process's own."""

    @property
    def address(self) -> str:
        """HOST:PORT of the control service, for RAY_ADDRESS of drivers on this machine."""
        return f"{_address_of(0)}:{self.port}"

    @property
    def dashboard(self) -> str:
        """Address of the dashboard and the job server."""
        return f"http://127.0.0.1:{self.port + 1}"

    @property
    def client_environment(self) -> dict[str, str]:
        """Environment variables of clients."""
        return {
            "RAY_API_SERVER_ADDRESS": self.dashboard,
            "RAY_AUTH_MODE": "token",
            "RAY_AUTH_TOKEN": self.token,
            "RAY_USAGE_STATS_ENABLED": "0",
        }

    def start_head(self, *, num_cpus: int, object_store_bytes: int) -> ServerProcess:
        """Start the head; `wait_for_head` until it answers."""
        command = ["--head", "--port", str(self.port), "--dashboard-host", "127.0.0.1"]
        command += ["--dashboard-port", str(self.port + 1), "--ray-client-server-port", str(self.port + 2)]
        return self._start(0, command, num_cpus=num_cpus, object_store_bytes=object_store_bytes)

    def wait_for_head(self, process: ServerProcess) -> None:
        """Until the server of jobs answers.

        Raises:
            ClusterError: it has ended, or does not answer in time.
        """
        process.wait_until(self._answers, seconds=_START_S)

    def start_node(self, number: int, *, num_cpus: int, object_store_bytes: int) -> ServerProcess:
        """Start a worker node, numbered from 1; a lost node's number may be reused."""
        command = ["--address", self.address]
        return self._start(number, command, num_cpus=num_cpus, object_store_bytes=object_store_bytes)

    def wait_for_node(self, process: ServerProcess) -> None:
        """Until its raylet is there.

        Raises:
            ClusterError: it has ended, or does not start in time.
        """
        process.wait_until(lambda: node_id(process) is not None, seconds=_START_S)

    def _start(self, number: int, command: list[str], *, num_cpus: int, object_store_bytes: int) -> ServerProcess:
        name = "head" if number == 0 else f"node{number}"
        folder = self.folder / name
        folder.mkdir(parents=True, exist_ok=True)
        own = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
        # Jobs look for `python` on PATH.
        own["PATH"] = os.pathsep.join([str(Path(sys.executable).parent), own.get("PATH", os.defpath)])
        start = [sys.executable, "-m", "ray.scripts.scripts", "start", "--block", "--disable-usage-stats", *command]
        start += ["--node-ip-address", _address_of(number), "--node-name", name, "--temp-dir", str(folder)]
        start += ["--dashboard-agent-listen-port", str(self.port + 3), "--num-cpus", str(num_cpus)]
        # Each process takes what is free: nodes of one machine would draw from the same range.
        start += ["--min-worker-port", "0", "--max-worker-port", "0", "--object-store-memory", str(object_store_bytes)]
        return ServerProcess.started(
            f"Ray's {name}",
            start,
            log=self.folder / f"{name}.log",
            environment=own | self.client_environment | dict(self.environment),
        )

    def _answers(self) -> bool:
        headers = {"Authorization": f"Bearer {self.token}"}
        request = urllib.request.Request(f"{self.dashboard}/api/version", headers=headers)  # noqa: S310
        try:
            with urllib.request.urlopen(request, timeout=2) as answer:  # noqa: S310
                return bool(answer.status == 200)
        except (urllib.error.URLError, OSError):
            return False


def _address_of(number: int) -> str:
    """All of 127.0.0.0/8 is this machine's loopback, on Linux."""
    return f"127.0.0.{number + 2}"


def raylet_of(process: ServerProcess) -> tuple[int, str] | None:
    """(process id, node's id) of the raylet of a node, None where it has none."""
    for child in process.below():
        try:
            arguments = child.cmdline()
        except psutil.Error:
            continue
        for argument in arguments:
            if arguments[0].endswith("/raylet") and argument.startswith(_NODE_ID):
                return child.pid, argument.removeprefix(_NODE_ID)
    return None


def node_id(process: ServerProcess) -> str | None:
    """Ray's id of a node; None if it has no raylet (yet)."""
    found = raylet_of(process)
    return found and found[1]
