"""The service on a free port of loopback in a thread of the test's process, and plain requests to it."""

import http.client
import json
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
import uvicorn

from twostream_ray.data.flow import FlowContract
from twostream_ray.data.sampling import SamplingConfig
from twostream_ray.data.transforms import TransformConfig
from twostream_ray.data.video.limits import VideoLimits
from twostream_ray.model_package import ModelPackage, save_model
from twostream_ray.models.settings import FusionConfig, ModelConfig, TowerConfig
from twostream_ray.runs.score.serving_files import SERVED, serving_files
from twostream_ray.runs.serve import listening_socket
from twostream_ray.serving.application import Service, create_application
from twostream_ray.serving.connections import connections_within
from twostream_ray.serving.settings import ServeConfig
from twostream_ray.tracking import Measurement, TrackingConfig, register, start_run

CLASSES = ("jump", "run", "walk")
MANIFEST = "0a" * 32


def stored_model(
    folder: Path, *, seed: int = 0, architecture: str = "fused", head_classes: tuple[int, ...] = ()
) -> Path:
    """An untrained small network, as training leaves it."""
    torch.manual_seed(seed)
    tower = TowerConfig(backbone="vgg_small", width=4)
    package = ModelPackage(
        model=ModelConfig(
            architecture=architecture,
            spatial=tower,
            temporal=tower,
            fusion=FusionConfig(layers=("relu4",), temporal="pool2d"),
            head_classes=head_classes,
        ),
        classes=CLASSES,
        contract=FlowContract(short_side_px=48),
        sampling=SamplingConfig(num_snippets=2, test_times=3),
        transforms=TransformConfig(crop_px=48),
    )
    save_model(folder, package.build(pretrained=False), package)
    return folder


def register_version(folder: Path, *, name: str, config: TrackingConfig) -> int:
    """A stored model as the next version of a registered one."""
    measured = Measurement(manifest_hash=MANIFEST, split="test", num_evaluated=3, num_clips=3, metrics={"top1": 0.5})
    return register(
        start_run(config, run_name=name, run_uri=str(folder), parameters={}, tags={}),
        folder,
        entry=SERVED,
        code=serving_files(),
        name=name,
        measurement=measured,
        protocol="validation",
        summary="a small network of the tests",
        classes=CLASSES,
        data="shapes",
        flow_contract={"algorithm": "dis"},
        lineage={},
        limits=asdict(VideoLimits()),
    )


@dataclass
class Answer:
    status: int
    headers: Mapping[str, str]
    content: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.content)

    @property
    def kind(self) -> str:
        return str(self.json["error"]["kind"])

    @property
    def message(self) -> str:
        return str(self.json["error"]["message"])


@dataclass
class RunningService:
    port: int
    service: Service

    def request(self, method: str, path: str, body: Any = None, **headers: str) -> Answer:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=120)
        try:
            named = {name.replace("_", "-"): value for name, value in headers.items()}
            connection.request(method, path, body=body, headers=named)
            answer = connection.getresponse()
            return Answer(answer.status, {k.lower(): v for k, v in answer.getheaders()}, answer.read())
        finally:
            connection.close()

    def get(self, path: str) -> Answer:
        return self.request("GET", path)

    def post(self, path: str, body: Any, media: str = "video/mp4", **headers: str) -> Answer:
        return self.request("POST", path, body, Content_Type=media, **headers)


@contextmanager
def running_service(config: ServeConfig) -> Iterator[RunningService]:
    """It has its model when the block begins, unless `config.wait`."""
    listener = listening_socket("127.0.0.1", 0)
    service = Service(config)
    if not config.wait:
        service.current.load()
    server = uvicorn.Server(
        uvicorn.Config(
            create_application(config, service=service),
            http=connections_within(config.limits),
            ws="none",
            lifespan="on",
            log_level="warning",
            access_log=False,
            server_header=False,
            timeout_graceful_shutdown=5,
        )
    )
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
    port = listener.getsockname()[1]
    thread.start()
    try:
        while not server.started and thread.is_alive():
            time.sleep(0.01)
        yield RunningService(port, service)
    finally:
        server.should_exit = True
        thread.join(timeout=60)
        assert not thread.is_alive()
