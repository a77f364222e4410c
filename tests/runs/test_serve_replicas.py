"""The service as a deployment of Ray Serve: what it is told, its manifest, and what a lost replica costs."""

import asyncio
import os
import signal
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

import psutil
import pytest
import yaml
from foreign_videos import encoded, pictures
from raw_http import Answer, chunked, endless, get, request, send
from running_service import stored_model
from service_process import Service, running

from twostream_ray.errors import ConfigError
from twostream_ray.runs.serve_replicas import NAME, deployment_options, replica_config
from twostream_ray.serving.settings import LimitsConfig, ReplicasConfig, ServeConfig
from twostream_ray.settings.parser import from_mapping

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def manifest() -> dict[str, Any]:
    return yaml.safe_load((ROOT / "cluster/rayservice.yaml").read_text())


@pytest.fixture(scope="module")
def deployed(manifest: dict[str, Any]) -> dict[str, Any]:
    return yaml.safe_load(manifest["spec"]["serveConfigV2"])


def test_a_replica_has_as_many_decoders_as_cpus_unless_a_number_is_set() -> None:
    assert replica_config(ServeConfig(replicas=ReplicasConfig(number=2, cpus=4))).decoders == 4
    assert replica_config(ServeConfig(replicas=ReplicasConfig(number=2, cpus=0.5))).decoders == 1
    assert replica_config(ServeConfig(replicas=ReplicasConfig(number=2, cpus=4), decoders=3)).decoders == 3


def test_a_replica_is_given_all_that_its_own_limits_admit_and_refuses_the_rest_itself() -> None:
    config = ServeConfig(limits=LimitsConfig(queue=5, receiving=7), replicas=ReplicasConfig(number=3, cpus=2, gpus=0.5))
    options = deployment_options(config)
    assert options["num_replicas"] == 3
    assert options["ray_actor_options"] == {"num_cpus": 2, "num_gpus": 0.5}
    assert options["max_ongoing_requests"] > 5 + 7
    assert options["backpressure_config"]["status_code"] == 429


def test_ray_accepts_the_deployment_and_its_options() -> None:
    from twostream_ray.runs.serve_replicas import build_application

    bound = build_application({"model": "models:/two-stream@champion", "replicas": {"number": 2}})
    deployment = bound._bound_deployment
    assert (deployment.name, deployment.num_replicas) == (NAME, 2)


def test_an_unknown_setting_of_a_serve_config_is_refused() -> None:
    from twostream_ray.runs.serve_replicas import build_application

    with pytest.raises(ConfigError, match="modell"):
        build_application({"modell": "models:/two-stream@champion"})


def test_replicas_want_a_port_to_be_named() -> None:
    from twostream_ray.runs.serve_replicas import serve_replicas

    with pytest.raises(ConfigError, match="port must be at least 1"):
        serve_replicas(ServeConfig(port=0, replicas=ReplicasConfig(number=2)))


# -- the manifest


def test_serve_accepts_the_config_in_the_manifest(deployed: dict[str, Any]) -> None:
    from ray.serve.schema import ServeDeploySchema

    schema = ServeDeploySchema.model_validate(deployed)
    # Serve takes keys that it does not know.
    assert deployed.keys() <= ServeDeploySchema.model_fields.keys()
    (application,) = schema.applications
    assert application.name == NAME
    module, _, function = application.import_path.partition(":")
    assert (module, function) == ("twostream_ray.runs.serve_replicas", "build_application")


def test_the_manifest_gives_settings_that_the_service_has(deployed: dict[str, Any], manifest: dict[str, Any]) -> None:
    (application,) = deployed["applications"]
    config = from_mapping(ServeConfig, application["args"])
    workers = manifest["spec"]["rayClusterConfig"]["workerGroupSpecs"]
    pods = sum(group["replicas"] for group in workers)
    (container,) = workers[0]["template"]["spec"]["containers"]
    assert config.replicas.number <= pods
    assert config.replicas.cpus <= float(container["resources"]["limits"]["cpu"])


def test_the_manifest_is_of_the_same_image_version_and_token_as_the_jobs(manifest: dict[str, Any]) -> None:
    jobs = sorted((ROOT / "cluster").glob("rayjob*.yaml"))
    assert jobs
    cluster = manifest["spec"]["rayClusterConfig"]
    containers = [
        group["template"]["spec"]["containers"][0] for group in (cluster["headGroupSpec"], *cluster["workerGroupSpecs"])
    ]
    for path in jobs:
        job = yaml.safe_load(path.read_text())["spec"].get("rayClusterSpec")
        if job is not None:
            assert (cluster["rayVersion"], cluster["authOptions"]) == (job["rayVersion"], job["authOptions"]), path.name
            (theirs,) = job["headGroupSpec"]["template"]["spec"]["containers"]
            assert {each["image"] for each in containers} == {theirs["image"]}, path.name
    assert all({"containerPort": 8000, "name": "serve"} in each["ports"] for each in containers)


# -- on a cluster


def replicas_of(service: Service) -> list[psutil.Process]:
    below = psutil.Process(service.process.pid).children(recursive=True)
    return [each for each in below if each.name().startswith("ray::ServeRepli") or "ServeReplica" in _title(each)]


def _title(process: psutil.Process) -> str:
    try:
        return " ".join(process.cmdline()[:1])
    except psutil.Error:
        return ""


@pytest.mark.soak
@pytest.mark.own_cluster
@pytest.mark.timeout(600)
def test_a_replica_killed_in_mid_load_fails_no_request_beyond_those_that_it_held(tmp_path: Path) -> None:
    video = encoded("mpeg4", pictures(50), container="mp4")
    options = ("--replicas.number", "2", "--replicas.cpus", "1", "--limits.body_bytes", "4000000")
    with running(stored_model(tmp_path / "model"), *options, seconds=240) as service:
        killed: list[float] = []

        async def one(number: int, free: asyncio.Semaphore) -> tuple[float, Answer]:
            async with free:
                started = time.monotonic()
                sent = request("/predict?top_k=1", media="video/mp4", content=video)
                return started, await send(service.port, sent, timeout_s=200)

        async def under_load() -> list[tuple[float, Answer]]:
            free = asyncio.Semaphore(8)
            sending = asyncio.gather(*(one(number, free) for number in range(120)))
            await asyncio.sleep(6)
            assert not sending.done()
            first, second = replicas_of(service)
            os.kill(first.pid, signal.SIGKILL)
            killed.append(time.monotonic())
            assert second.is_running()
            return list(await sending)

        answers = asyncio.run(under_load())
        statuses = Counter(answer.status for _, answer in answers)
        sys.stdout.write(f"\nanswers after one of two replicas was killed: {dict(statuses)}\n")
        failed = [(started, answer) for started, answer in answers if answer.status != 200]
        (at,) = killed
        assert all(started < at < started + answer.seconds for started, answer in failed)
        assert 0 < len(failed) <= 8
        assert {answer.json()["model"]["version"] for _, answer in answers if answer.status == 200}
        until = time.monotonic() + 60
        while len(replicas_of(service)) < 2 and time.monotonic() < until:
            time.sleep(0.5)
        assert len(replicas_of(service)) == 2

        stream = asyncio.run(send(service.port, chunked("/predict", lambda: endless(bytes(65536)))))
        assert stream.status == 413
        assert asyncio.run(send(service.port, get("/healthz"))).status == 200
