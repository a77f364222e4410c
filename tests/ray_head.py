"""A Ray cluster of its own for tests, as `ray start --head` makes it, with token authentication."""

import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

BIN = Path(sys.executable).parent


def free_port() -> int:
    """A port outside 10002..19999, which Ray's workers use."""
    while True:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port: int = probe.getsockname()[1]
        if port >= 20000:
            return port


@contextmanager
def ray_head(home: Path) -> Iterator[dict[str, str]]:
    """A cluster whose processes have `home`; gives a client's environment."""
    environment = {key: value for key, value in os.environ.items() if not key.startswith("RAY_")} | {
        "HOME": str(home),
        # As in a shell that has activated the environment: what a job calls `python` is this one.
        "PATH": f"{BIN}:{os.environ.get('PATH', '')}",
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN": "a-token-of-this-test-alone-0123456789",
        "RAY_USAGE_STATS_ENABLED": "0",
    }
    dashboard = free_port()
    # Ray Train's clean-up actors would ask the newest cluster of this machine.
    environment["RAY_API_SERVER_ADDRESS"] = f"http://127.0.0.1:{dashboard}"
    command = ["start", "--head", "--block", "--num-cpus", "2", "--port", str(free_port())]
    command += ["--dashboard-port", str(dashboard), "--ray-client-server-port", str(free_port())]
    # The agent's default port may be taken by another cluster on this machine; without an agent no job starts.
    command += ["--dashboard-agent-listen-port", str(free_port()), "--dashboard-agent-grpc-port", str(free_port())]
    # Not pytest's folder: the paths of its sockets would be too long.
    temporary = tempfile.mkdtemp(prefix="ray-")
    process = subprocess.Popen(
        [str(BIN / "ray"), *command, "--temp-dir", temporary],
        env=environment,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    try:
        _wait(dashboard)
        yield environment
    finally:
        # Asked politely, the head would wait half a minute for its processes.
        subprocess.run(["pkill", "-KILL", "--session", str(process.pid)], check=True)
        process.wait(timeout=60)
        shutil.rmtree(temporary, ignore_errors=True)


def _wait(port: int, *, patience_s: float = 90.0) -> None:
    """Return when something answers at a port."""
    deadline = time.monotonic() + patience_s
    while True:
        try:
            socket.create_connection(("127.0.0.1", port), timeout=1).close()
        except OSError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.2)
        else:
            return
