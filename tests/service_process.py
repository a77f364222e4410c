"""The service as the command starts it, a process of its own: its port, its lines, its memory."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path

import psutil

ROOT = Path(__file__).resolve().parents[1]


def free_port() -> int:
    """A port that nobody listens on, outside those of Ray's workers."""
    while True:
        with socket.socket() as asked:
            asked.bind(("127.0.0.1", 0))
            port = int(asked.getsockname()[1])
        if not 10002 <= port <= 19999:
            return port


class Service:
    """A running `twostream serve`."""

    def __init__(self, process: subprocess.Popen[str], port: int) -> None:
        self.process, self.port = process, port
        self._lines: list[str] = []
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        assert self.process.stdout is not None
        self._lines.extend(iter(self.process.stdout.readline, ""))

    @property
    def output(self) -> str:
        """What it has printed."""
        return "".join(self._lines)

    def wait_until_ready(self, *, seconds: float = 120.0) -> None:
        """Until it has a model."""
        until = time.monotonic() + seconds
        while time.monotonic() < until:
            assert self.process.poll() is None, self.output
            with suppress(OSError), urllib.request.urlopen(f"http://127.0.0.1:{self.port}/readyz", timeout=5):
                return
            time.sleep(0.1)
        raise AssertionError(f"not ready within {seconds:g} s: {self.output}")

    def memory_bytes(self) -> int:
        """Of it and all processes below it; what they share counts once."""
        main = psutil.Process(self.process.pid)
        total = 0
        for each in [main, *main.children(recursive=True)]:
            with suppress(psutil.NoSuchProcess):
                total += each.memory_full_info().pss
        return total


@contextmanager
def running(
    model: str | Path, *options: str, environment: Mapping[str, str] | None = None, seconds: float = 120.0
) -> Iterator[Service]:
    """`twostream serve` for as long as the block runs."""
    port = free_port()
    process = subprocess.Popen(
        [sys.executable, "-m", "twostream_ray", "serve", "--model", str(model), "--port", str(port), *options],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1", **dict(environment or {})},
    )
    service = Service(process, port)
    try:
        service.wait_until_ready(seconds=seconds)
        yield service
    finally:
        process.terminate()
        try:
            process.wait(timeout=20)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
