"""The head of the cluster on one machine by itself, for tests that submit jobs: `ray start --head` with a token."""

import os
import shutil
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from cluster.box.ray_nodes import PORTS, RayCluster
from cluster.box.server_process import free_ports
from twostream_ray.runs.cluster.private_cluster import end_processes

BIN = Path(sys.executable).parent


@contextmanager
def ray_head(home: Path) -> Iterator[dict[str, str]]:
    """A cluster whose processes have `home`; gives a client's environment."""
    # Not pytest's folder: the paths of its sockets would be too long.
    folder = Path(tempfile.mkdtemp(prefix="ray-"))
    token = "a-token-of-this-test-alone-0123456789"
    cluster = RayCluster(folder=folder, port=free_ports(PORTS), token=token, environment={"HOME": str(home)})
    process = cluster.start_head(num_cpus=2, object_store_bytes=2**30)
    try:
        cluster.wait_for_head(process)
        own = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
        # As in a shell that has activated the environment: what a job calls `python` is this one.
        own["PATH"] = f"{BIN}:{own.get('PATH', '')}"
        yield own | {"HOME": str(home)} | cluster.client_environment
    finally:
        # Asked politely, the head would wait half a minute for its processes.
        process.kill()
        end_processes(folder)
        shutil.rmtree(folder, ignore_errors=True)
