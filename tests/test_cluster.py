"""The files that describe clusters, checked offline: with Ray's own validation, and for what that lets through."""

import copy
import re
import shlex
from pathlib import Path
from typing import Any

import pytest
import yaml

import twostream_ray
from twostream_ray.runs.experiment import ExperimentConfig
from twostream_ray.settings.parser import from_arguments

ROOT = Path(__file__).resolve().parents[1]
PINNED = dict(re.findall(r"^([\w.-]+)==(\S+)$", (ROOT / "constraints.txt").read_text(), flags=re.MULTILINE))

INSTANCE_TYPES = {"m7i.2xlarge": (8, 0), "c7i.8xlarge": (32, 0), "g6e.12xlarge": (48, 4)}
"""vCPUs and GPUs of the AWS instance types in use, from EC2's own tables."""


def validated_by_ray(config: dict[str, Any]) -> dict[str, Any]:
    """The configuration with Ray's defaults filled in; raises where Ray's schema refuses it. Needs no network.

    Ray offers no public way: `ray up` calls these two private functions before it speaks to AWS.
    """
    from ray.autoscaler._private.util import prepare_config, validate_config

    prepared = prepare_config(copy.deepcopy(config))
    validate_config(prepared)
    return prepared


@pytest.fixture(scope="module")
def launcher() -> dict[str, Any]:
    return yaml.safe_load((ROOT / "ray_cluster.yaml").read_text())


@pytest.fixture(scope="module")
def rayjob() -> dict[str, Any]:
    return yaml.safe_load((ROOT / "cluster" / "rayjob.yaml").read_text())


@pytest.fixture(scope="module")
def dockerfile() -> str:
    return (ROOT / "cluster" / "Dockerfile").read_text().replace("\\\n", " ")


# -- the cluster launcher


def test_ray_accepts_the_launcher_file(launcher: dict[str, Any]) -> None:
    prepared = validated_by_ray(launcher)
    assert prepared["available_node_types"].keys() == {"head", "cpu_worker", "gpu_worker"}
    assert prepared["head_node_type"] == "head"


def test_rays_validation_refuses_a_wrong_launcher_file(launcher: dict[str, Any]) -> None:
    with pytest.raises(Exception, match="max_wokers"):
        validated_by_ray(launcher | {"max_wokers": 3})
    with pytest.raises(Exception, match="head_node_type"):
        validated_by_ray(launcher | {"head_node_type": "headd"})


def test_the_provider_has_known_keys_and_zones_of_its_region(launcher: dict[str, Any]) -> None:
    # Ray takes any key here, a misspelt one included.
    provider = launcher["provider"]
    assert provider.keys() <= {"type", "region", "availability_zone", "cache_stopped_nodes"}
    assert provider["type"] == "aws"
    assert re.fullmatch(r"[a-z]{2}-[a-z]+-\d", provider["region"])
    for zone in provider["availability_zone"].split(","):
        assert re.fullmatch(re.escape(provider["region"]) + "[a-f]", zone)


def test_node_types_declare_what_their_instances_have(launcher: dict[str, Any]) -> None:
    # Ray checks neither the name nor the resources; wrong ones would only be found by AWS or never.
    for name, node in launcher["available_node_types"].items():
        cpus, gpus = INSTANCE_TYPES[node["node_config"]["InstanceType"]]
        assert node["resources"].get("CPU") == (0 if name == "head" else cpus), name
        assert node["resources"].get("GPU", 0) == gpus, name
        known = {"InstanceType", "ImageId", "IamInstanceProfile", "BlockDeviceMappings", "InstanceMarketOptions"}
        assert node["node_config"].keys() <= known, name
        assert "nvidia-driver" in node["node_config"]["ImageId"], name


def test_workers_run_on_spot_and_the_head_does_not(launcher: dict[str, Any]) -> None:
    spot = {
        name: node["node_config"].get("InstanceMarketOptions") == {"MarketType": "spot"}
        for name, node in launcher["available_node_types"].items()
    }
    assert spot == {"head": False, "cpu_worker": True, "gpu_worker": True}


def test_worker_counts_fit_into_the_whole(launcher: dict[str, Any]) -> None:
    workers = [node for name, node in launcher["available_node_types"].items() if name != "head"]
    assert all(0 <= node["min_workers"] <= node["max_workers"] for node in workers)
    assert sum(node["max_workers"] for node in workers) <= launcher["max_workers"]


def test_every_container_asks_for_the_token_and_reports_no_usage(launcher: dict[str, Any]) -> None:
    options = [word for option in launcher["docker"]["run_options"] for word in shlex.split(option)]
    settings = dict(word.split("=", 1) for word in options if re.match(r"[A-Z_]+=", word))
    assert settings["RAY_AUTH_MODE"] == "token"
    assert settings["RAY_USAGE_STATS_ENABLED"] == "0"
    assert settings["MLFLOW_DISABLE_TELEMETRY"] == "true"
    assert settings["MLFLOW_TRACKING_URI"].startswith("http")
    assert settings["AWS_DEFAULT_REGION"] == launcher["provider"]["region"]


def test_only_the_token_is_copied_to_the_nodes(launcher: dict[str, Any]) -> None:
    assert launcher["file_mounts"] == {"/home/ray/.ray/auth_token": "~/.ray/auth_token"}


def test_nodes_install_nothing_when_they_start(launcher: dict[str, Any]) -> None:
    prepared = validated_by_ray(launcher)
    for commands in ("initialization_commands", "setup_commands", "head_setup_commands", "worker_setup_commands"):
        assert prepared[commands] == [], commands


def test_the_dashboard_listens_on_the_head_alone(launcher: dict[str, Any]) -> None:
    start = next(command for command in launcher["head_start_ray_commands"] if "ray start" in command)
    assert "--dashboard-host=127.0.0.1" in start.split()
    assert "--autoscaling-config=~/ray_bootstrap_config.yaml" in start.split()


# -- the image


def test_all_nodes_run_the_image_of_this_version(launcher: dict[str, Any], rayjob: dict[str, Any]) -> None:
    images = {launcher["docker"]["image"]} | {pod["containers"][0]["image"] for pod in pods(rayjob).values()}
    assert len(images) == 1
    assert images.pop().endswith(f"/twostream-ray:{twostream_ray.__version__}")


def test_the_image_installs_the_pinned_versions(dockerfile: str) -> None:
    installs = re.findall(r"pip install (.+)", dockerfile)
    assert len(installs) == 2
    assert "-c constraints.txt" in installs[0]
    assert "--no-deps" in installs[1]
    assert f"boto3=={PINNED['botocore']}" in installs[0].split()
    assert re.search(r"^FROM python:3\.1[12]\.\d+-slim-\w+$", dockerfile, flags=re.MULTILINE)
    assert PINNED["ray"].startswith("2.60.")


def test_the_image_is_secure_and_silent_by_itself(dockerfile: str) -> None:
    settings = dict(re.findall(r"\b([A-Z_]+)=(\S+)", dockerfile))
    assert settings["RAY_AUTH_MODE"] == "token"
    assert settings["RAY_USAGE_STATS_ENABLED"] == "0"
    assert settings["MLFLOW_DISABLE_TELEMETRY"] == "true"
    assert dockerfile.rstrip().endswith("USER ray")


def test_everything_the_image_copies_is_let_into_the_build(dockerfile: str) -> None:
    allowed = {
        line[1:]
        for line in (ROOT / "cluster" / "Dockerfile.dockerignore").read_text().splitlines()
        if line.startswith("!")
    }
    copied = {
        source for line in re.findall(r"^COPY (.+)", dockerfile, flags=re.MULTILINE) for source in line.split()[:-1]
    }
    assert {source.split("/")[0] for source in copied} == allowed


# -- KubeRay


def pods(rayjob: dict[str, Any]) -> dict[str, dict[str, Any]]:
    cluster = rayjob["spec"]["rayClusterSpec"]
    workers = {group["groupName"]: group["template"]["spec"] for group in cluster["workerGroupSpecs"]}
    return {"head": cluster["headGroupSpec"]["template"]["spec"]} | workers


def test_the_rayjob_is_one_kuberay_knows(rayjob: dict[str, Any]) -> None:
    assert (rayjob["apiVersion"], rayjob["kind"]) == ("ray.io/v1", "RayJob")
    spec = rayjob["spec"]
    assert spec.keys() == {
        "submissionMode", "entrypoint", "backoffLimit", "shutdownAfterJobFinishes", "ttlSecondsAfterFinished",
        "rayClusterSpec",
    }  # fmt: skip
    # KubeRay's own schema takes any word here and any misspelt key anywhere.
    assert spec["submissionMode"] == "K8sJobMode"
    assert spec["shutdownAfterJobFinishes"] is True
    assert spec["rayClusterSpec"].keys() == {
        "rayVersion", "authOptions", "enableInTreeAutoscaling", "autoscalerOptions", "headGroupSpec",
        "workerGroupSpecs",
    }  # fmt: skip


def test_the_rayjob_asks_for_the_pinned_ray_and_for_the_token(rayjob: dict[str, Any]) -> None:
    assert rayjob["spec"]["rayClusterSpec"]["rayVersion"] == PINNED["ray"]
    assert rayjob["spec"]["rayClusterSpec"]["authOptions"] == {"mode": "token"}


def test_every_pod_has_shared_memory_within_its_limit(rayjob: dict[str, Any]) -> None:
    def gibibytes(quantity: str) -> int:
        return int(quantity.removesuffix("Gi"))

    for name, pod in pods(rayjob).items():
        (container,) = pod["containers"]
        (volume,) = pod["volumes"]
        assert container["volumeMounts"] == [{"name": volume["name"], "mountPath": "/dev/shm"}], name
        assert volume["emptyDir"]["medium"] == "Memory", name
        memory = gibibytes(container["resources"]["limits"]["memory"])
        # Shared memory counts as the pod's memory; Ray takes 30 % of it for objects.
        assert 0 < gibibytes(volume["emptyDir"]["sizeLimit"]) < 0.5 * memory, name
        assert container["resources"]["requests"] == container["resources"]["limits"], name


def test_every_pod_reports_no_usage_and_finds_mlflow(rayjob: dict[str, Any]) -> None:
    for name, pod in pods(rayjob).items():
        settings = {entry["name"]: entry["value"] for entry in pod["containers"][0]["env"]}
        assert settings["RAY_USAGE_STATS_ENABLED"] == "0", name
        assert settings["MLFLOW_DISABLE_TELEMETRY"] == "true", name
        assert settings["MLFLOW_TRACKING_URI"].startswith("http"), name


def test_the_rayjob_trains_on_as_many_workers_as_it_has_gpus(rayjob: dict[str, Any]) -> None:
    groups = {group["groupName"]: group for group in rayjob["spec"]["rayClusterSpec"]["workerGroupSpecs"]}
    gpus = int(pods(rayjob)["gpu-workers"]["containers"][0]["resources"]["limits"]["nvidia.com/gpu"])
    # Training counts the GPUs that are there when it starts, so all of them must be.
    assert groups["gpu-workers"]["replicas"] == groups["gpu-workers"]["minReplicas"]
    words = rayjob["spec"]["entrypoint"].split()
    assert words[:2] == ["python", "jobs/train.py"]
    assert words[words.index("--workers.num_workers") + 1] == str(gpus * groups["gpu-workers"]["replicas"])


def test_the_rayjob_gives_settings_that_training_has(rayjob: dict[str, Any]) -> None:
    words = rayjob["spec"]["entrypoint"].split()
    assert (ROOT / words[1]).is_file()
    assert words[2:4] == ["--config", "fusion_2016"]
    config = from_arguments(ExperimentConfig, words[2:])
    assert config.data.shards.startswith("s3://example-bucket/")
    assert config.storage.startswith("s3://example-bucket/")


def test_heads_run_no_tasks(launcher: dict[str, Any], rayjob: dict[str, Any]) -> None:
    assert launcher["available_node_types"]["head"]["resources"] == {"CPU": 0}
    assert rayjob["spec"]["rayClusterSpec"]["headGroupSpec"]["rayStartParams"] == {"num-cpus": "0"}
