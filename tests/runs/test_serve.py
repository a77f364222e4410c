import http.client
import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
from running_service import stored_model

from twostream_ray.cli import main
from twostream_ray.data.sources.synthetic import SyntheticConfig, draw_clip
from twostream_ray.data.video.files import write_video
from twostream_ray.errors import ConfigError
from twostream_ray.runs import serve


@contextmanager
def started(folder: Path, *options: str) -> Iterator[tuple[subprocess.Popen[str], int]]:
    """The command in a process of its own, and its port."""
    process = subprocess.Popen(
        [sys.executable, "-m", "twostream_ray", "serve", "--model", str(folder), "--port", "0", *options],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        env=os.environ | {"PLANTED_TOKEN": "planted-secret"},
    )
    assert process.stdout is not None
    try:
        line = process.stdout.readline()
        found = re.search(r"answers at http://127\.0\.0\.1:(\d+); Ctrl-C ends it", line)
        assert found is not None, line + process.communicate(timeout=60)[1]
        yield process, int(found[1])
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
        process.communicate()


def long_video(folder: Path) -> bytes:
    path = folder / "long.mp4"
    frames = np.tile(draw_clip(SyntheticConfig(size_px=64), "test", 0), (15, 1, 1))
    write_video(frames, path=path, container="mp4", fps=25)
    return path.read_bytes()


@pytest.mark.slow
@pytest.mark.parametrize("sent", [signal.SIGTERM, pytest.param(signal.SIGINT, marks=pytest.mark.soak)])
def test_a_signal_ends_the_service_when_what_has_begun_is_answered(tmp_path: Path, sent: signal.Signals) -> None:
    folder, content = stored_model(tmp_path / "model"), long_video(tmp_path)
    with started(folder, "--shutdown_seconds", "120") as (process, port):
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=120)
        connection.request("POST", "/predict", body=content, headers={"Content-Type": "video/mp4"})
        metrics = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
        while True:
            metrics.request("GET", "/metrics")
            if b"twostream_running 1.0" in metrics.getresponse().read():
                break
            time.sleep(0.02)
        process.send_signal(sent)
        answer = connection.getresponse()
        assert answer.status == 200
        assert json.loads(answer.read())["video"]["frames"] == 240
        assert process.wait(timeout=120) == 0
        out, err = process.communicate()
        assert (out, err) == ("", "")
        with pytest.raises(OSError):
            socket.create_connection(("127.0.0.1", port), timeout=1)


@pytest.mark.slow
def test_what_takes_longer_than_the_service_may_wait_is_cut_off_and_told_so(tmp_path: Path) -> None:
    folder, content = stored_model(tmp_path / "model"), long_video(tmp_path)
    with started(folder, "--shutdown_seconds", "1", "--limits.receive_seconds", "600") as (process, port):
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=120)
        connection.putrequest("POST", "/predict")
        connection.putheader("Content-Type", "video/mp4")
        connection.putheader("Content-Length", str(len(content) + 1))
        connection.endheaders(content)
        time.sleep(0.5)
        process.send_signal(signal.SIGTERM)
        answer = connection.getresponse()
        assert (answer.status, json.loads(answer.read())["error"]["kind"]) == (503, "stopping")
        assert process.wait(timeout=120) == 1


def test_a_port_that_is_taken_is_one_line_that_names_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        assert main(["serve", "--model", str(tmp_path), "--port", str(port)]) == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert f"port {port} of 127.0.0.1 is in use by another process: choose another with --port" in said


@pytest.mark.parametrize("host", ["203.0.113.1", "no.such.host.invalid"])
def test_an_address_of_another_machine_is_refused(host: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["serve", "--host", host, "--port", "0"]) == 2
    assert host in capsys.readouterr().err


def test_a_model_that_is_not_there_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["serve", "--model", str(tmp_path / "none"), "--port", "0"]) == 2
    assert "/none, the directory does not exist: give models:/NAME@champion" in capsys.readouterr().err
    assert main(["serve", "--port", "0", "--tracking.uri", f"sqlite:///{tmp_path}/none.db"]) == 2
    assert capsys.readouterr().err.count("\n") == 1


def test_without_the_extra_the_way_to_it_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(serve, "_NEEDED", {"no_such_module": "no-such-module"})
    with pytest.raises(ConfigError, match=r"no-such-module, not installed: pip install 'twostream_ray\[serve\]'"):
        serve.require_extra()
