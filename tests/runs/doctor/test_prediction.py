"""Stages slowed for real: `doctor` names each, and says the rate that `train` then has. Minutes each: `make soak`."""

import ctypes
import json
import os
import socket
import statistics
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path

import psutil
import pytest
from s3 import reached_at
from whole_shards import write_shards

from twostream_ray import storage
from twostream_ray.data.loading.settings import DataConfig
from twostream_ray.data.sampling import SamplingConfig
from twostream_ray.data.sources.synthetic import SyntheticConfig, synthesize
from twostream_ray.data.transforms import TransformConfig
from twostream_ray.models.settings import FusionConfig, ModelConfig, TowerConfig
from twostream_ray.runs.cluster.session import ray_session
from twostream_ray.runs.doctor.diagnosis import diagnose
from twostream_ray.runs.doctor.settings import DoctorConfig
from twostream_ray.runs.experiment import ExperimentConfig
from twostream_ray.runs.train.run import train
from twostream_ray.runs.workers import WorkersConfig
from twostream_ray.tracking import TrackingConfig
from twostream_ray.training.settings import TrainingConfig

pytestmark = [pytest.mark.soak, pytest.mark.own_cluster]

_PIDFD_GETFD = 438
_SO_MAX_PACING_RATE = 47
"""Of Linux; Python has no names for them."""


class SlowNetwork:
    """Forwards TCP to a port of this machine: each request waits, and answers come at so many bytes a second in all."""

    def __init__(self, port: int, *, delay_s: float = 0.0, bytes_per_second: float = 1e12) -> None:
        self._upstream, self._delay_s, self._rate = port, delay_s, bytes_per_second
        self._lock, self._free_at = threading.Lock(), 0.0
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=64)
        self.endpoint = f"http://127.0.0.1:{self._listener.getsockname()[1]}"
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            server = socket.create_connection(("127.0.0.1", self._upstream))
            threading.Thread(target=self._copy, args=(client, server, True), daemon=True).start()
            threading.Thread(target=self._copy, args=(server, client, False), daemon=True).start()

    def _copy(self, source: socket.socket, sink: socket.socket, is_request: bool) -> None:
        try:
            while content := source.recv(1 << 16):
                if is_request:
                    time.sleep(self._delay_s)
                else:
                    with self._lock:
                        self._free_at = max(self._free_at, time.monotonic()) + len(content) / self._rate
                        until = self._free_at
                    time.sleep(max(0.0, until - time.monotonic()))
                sink.sendall(content)
        except OSError:
            pass
        finally:
            for one in (source, sink):
                one.close()

    def close(self) -> None:
        self._listener.close()


@contextmanager
def slow_links(*, bytes_per_second: int) -> Iterator[None]:
    """Every TCP connection of every process of Ray that begins in here sends so many bytes a second."""
    ended = threading.Event()
    paced: set[tuple[int, str]] = set()

    def pace() -> None:
        while not ended.wait(0.1):
            for process in psutil.Process().children(recursive=True):
                with suppress(OSError, psutil.Error):  # it has just ended
                    paced.update(_pace(process.pid, bytes_per_second, known=paced))

    thread = threading.Thread(target=pace)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


def _pace(pid: int, bytes_per_second: int, *, known: set[tuple[int, str]]) -> Iterator[tuple[int, str]]:
    """The system's own limit (SO_MAX_PACING_RATE of Linux) for a process's sockets, which it need not know of."""
    process = os.pidfd_open(pid)
    try:
        for entry in Path(f"/proc/{pid}/fd").iterdir():
            name = str(entry.readlink())
            if not name.startswith("socket:") or (pid, name) in known:
                continue
            number = ctypes.CDLL(None, use_errno=True).syscall(_PIDFD_GETFD, process, int(entry.name), 0)
            if number < 0:
                raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
            with socket.socket(fileno=number) as connection:
                if connection.family in (socket.AF_INET, socket.AF_INET6):
                    connection.setsockopt(socket.SOL_SOCKET, _SO_MAX_PACING_RATE, bytes_per_second)
            yield pid, name
    finally:
        os.close(process)


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """320 clips of 64 px."""
    return _shards(tmp_path_factory, clips=320, size_px=64)


@pytest.fixture(scope="module")
def few(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """24 clips of 64 px, for steps of seconds."""
    return _shards(tmp_path_factory, clips=24, size_px=64)


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """640 clips of 64 frames of 320 px: they take long to decode, however small the crop."""
    return _shards(tmp_path_factory, clips=4, size_px=320, num_frames=64, copies=160)


def _shards(
    factory: pytest.TempPathFactory, *, clips: int, size_px: int, num_frames: int = 16, copies: int = 1
) -> Path:
    videos, out = factory.mktemp("videos"), factory.mktemp("shards")
    config = SyntheticConfig(train_clips=clips, val_clips=0, test_clips=4, size_px=size_px, num_frames=num_frames)
    synthesize(config, videos, workers=2)
    # In units that are small against an epoch: a step wants one of each lane.
    write_shards(videos, out, short_side_px=size_px, rows_per_shard=8, copies=copies)
    return out


def settings(
    shards: str,
    out: Path,
    *,
    width: int = 4,
    px: int = 32,
    snippets: int = 2,
    fields: int = 4,
    workers: int = 1,
    epochs: int = 4,
    model: ModelConfig | None = None,
) -> DoctorConfig:
    tower = TowerConfig(backbone="vgg_small", width=width)
    fused = ModelConfig(spatial=tower, temporal=tower, fusion=FusionConfig(method="conv", layers=("relu3",)))
    return DoctorConfig(
        data=DataConfig(
            shards=shards,
            sampling=SamplingConfig(num_snippets=snippets, flow_length=fields),
            transforms=TransformConfig(crop_px=px),
            lanes=8,
        ),
        model=model or fused,
        training=TrainingConfig(global_batch=8, epochs=epochs),
        workers=WorkersConfig(num_workers=workers),
        storage=str(out / "runs"),
        tracking=TrackingConfig(uri=f"sqlite:///{out}/mlflow.db", register=False),
        probe_seconds=5.0,
    )


def compared(config: DoctorConfig, stage: str) -> None:
    """The stage is named, and the rate that is predicted is within 15 % of the one that `train` has."""
    with ray_session():
        found = diagnose(config)
        assert found.prediction is not None, found.checks
        own = {name: getattr(config, name) for name in ExperimentConfig.__dataclass_fields__}
        report = train(ExperimentConfig(**own | {"name": f"after-{stage.replace(' ', '-')}"}))
    # At first a training waits for reading to get going, and reads ahead; all epochs have the same number of clips.
    steady = report.history[len(report.history) // 2 :]
    reached = statistics.harmonic_mean([one["samples_per_second"] for one in steady])
    said = found.prediction
    line = {
        "slowed": stage,
        "named": said.bottleneck,
        "predicted": said.samples_per_second,
        "reached": reached,
        "ratio": said.samples_per_second / reached,
        "epochs": [round(one["samples_per_second"], 2) for one in report.history],
        "data_wait": [round(one["data_wait"], 2) for one in report.history],
        "whole": found.measured and round(found.measured.whole_rate, 2),
        "stages": {one.name: round(one.capacity, 2) for one in said.stages},
    }
    print("\nPREDICTION", json.dumps(line), flush=True)  # noqa: T201  (recorded in docs)
    assert said.bottleneck == stage
    assert said.samples_per_second == pytest.approx(reached, rel=0.15)


def test_a_large_network_is_named_step(small: Path, tmp_path: Path) -> None:
    compared(settings(str(small), tmp_path, width=64, px=64), "step")


def test_large_videos_are_named_decoding(large: Path, tmp_path: Path) -> None:
    compared(settings(str(large), tmp_path, px=16, snippets=8, fields=10, epochs=8), "decoding")


def test_a_slow_link_between_workers_is_named_all_reduce(few: Path, tmp_path: Path) -> None:
    tower = TowerConfig(backbone="vgg_m_2048", weights=None)
    network = ModelConfig(architecture="late", streams="temporal", spatial=tower, temporal=tower)
    config = settings(str(few), tmp_path, px=224, snippets=1, fields=2, workers=2, epochs=2, model=network)
    config = replace(config, data=replace(config.data, lanes=2), training=replace(config.training, global_batch=2))
    # Within one machine 360 MB of gradients take 0.2 s, less than anything that has so many weights computes.
    with slow_links(bytes_per_second=200_000_000):
        compared(config, "all-reduce")


@contextmanager
def _stored(shards: Path, port: int, **slow: float) -> Iterator[str]:
    """The shards in a bucket, read over a slow network."""
    with reached_at(f"http://127.0.0.1:{port}"):
        for path in shards.rglob("*"):
            if path.is_file():
                storage.write_file(f"s3://archive/{shards.name}/{path.relative_to(shards)}", path)
    network = SlowNetwork(port, **slow)
    try:
        with reached_at(network.endpoint):
            yield f"s3://archive/{shards.name}"
    finally:
        network.close()


def test_a_narrow_network_is_named_reading(small: Path, object_store: int, tmp_path: Path) -> None:
    with _stored(small, object_store, bytes_per_second=1e6) as uri:
        compared(settings(uri, tmp_path), "reading")


def test_a_store_that_answers_late_is_named_store_latency(small: Path, object_store: int, tmp_path: Path) -> None:
    with _stored(small, object_store, delay_s=0.1) as uri:
        compared(settings(uri, tmp_path), "store latency")
