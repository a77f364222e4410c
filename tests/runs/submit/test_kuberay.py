import gzip
import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from twostream_ray.cli import main
from twostream_ray.errors import ConfigError
from twostream_ray.runs.submit.kuberay import job_name

TRAIN = ["submit", "train", "s3://b/shards", "--config", "fusion_2016", "--storage", "s3://b/runs"]
IMAGE = ["--image", "registry/twostream-ray:0.1.0"]
SCHEMA = Path(__file__).resolve().parents[3] / "../shared/reference/kuberay/rayjobs_v1.schema.json.gz"


def written(tmp_path: Path, *arguments: str) -> dict[str, Any]:
    path = tmp_path / "job.yaml"
    assert main([*TRAIN, "--kuberay", str(path), *IMAGE, *arguments]) == 0
    return dict(yaml.safe_load(path.read_text()))


@pytest.mark.slow
def test_the_rayjob_is_of_kuberays_own_schema(tmp_path: Path) -> None:
    if not SCHEMA.is_file():
        pytest.skip("KubeRay's schemas: ../shared/reference/kuberay is not there")
    import jsonschema

    def closed(schema: Any) -> Any:
        """With unknown fields refused, which the server would only leave out."""
        if isinstance(schema, dict):
            schema = {key: closed(value) for key, value in schema.items()}
            if "properties" in schema and "additionalProperties" not in schema:
                schema["additionalProperties"] = schema.get("x-kubernetes-preserve-unknown-fields", False)
        return [closed(one) for one in schema] if isinstance(schema, list) else schema

    schema = closed(json.loads(gzip.decompress(SCHEMA.read_bytes())))
    schema["properties"]["metadata"].pop("additionalProperties", None)
    jsonschema.validate(written(tmp_path, "--name", "a", "--gpus", "4"), schema)


def test_its_gpu_node_has_the_gpus_and_a_job_without_any_has_no_such_node(tmp_path: Path) -> None:
    with_gpus = written(tmp_path, "--name", "a", "--gpus", "4")["spec"]["rayClusterSpec"]["workerGroupSpecs"]
    assert [one["groupName"] for one in with_gpus] == ["cpu-workers", "gpu-workers"]
    (container,) = with_gpus[1]["template"]["spec"]["containers"]
    assert container["resources"]["limits"]["nvidia.com/gpu"] == "4"
    without = written(tmp_path, "--name", "a")["spec"]["rayClusterSpec"]["workerGroupSpecs"]
    assert [one["groupName"] for one in without] == ["cpu-workers"]


def test_secrets_are_named_and_never_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "hush-hush")
    spec = written(tmp_path, "--name", "a", "--secrets", "AWS_SECRET_ACCESS_KEY")["spec"]["rayClusterSpec"]
    text = (tmp_path / "job.yaml").read_text()
    assert "hush" not in text and "kubectl create secret generic train-a-secrets --from-literal=AWS_SECRET" in text
    (container,) = spec["headGroupSpec"]["template"]["spec"]["containers"]
    reference = {"secretKeyRef": {"name": "train-a-secrets", "key": "AWS_SECRET_ACCESS_KEY"}}
    assert {"name": "AWS_SECRET_ACCESS_KEY", "valueFrom": reference} in container["env"]


def test_a_recipe_of_this_machine_goes_into_the_command(tmp_path: Path) -> None:
    recipe = tmp_path / "mine.yaml"
    recipe.write_text("training: {epochs: 3}\n")
    entrypoint = written(tmp_path, "--name", "a", "--config", str(recipe))["spec"]["entrypoint"]
    assert "--config fusion_2016" in entrypoint and """--config '{"training": {"epochs": 3}}'""" in entrypoint


def test_a_file_of_somebody_else_and_an_image_without_a_tag_are_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "job.yaml"
    path.write_text("mine")
    command = [*TRAIN, "--name", "a", "--kuberay", str(path)]
    assert main([*command, *IMAGE]) == 2 and path.read_text() == "mine"
    assert main([*command[:-1], str(tmp_path / "other.yaml"), "--image", "registry:5000/image"]) == 2
    assert main(command) == 2
    foreign, tag, image = capsys.readouterr().err.strip().splitlines()
    assert "where there is a file that it did not write" in foreign
    assert "image wants a tag" in tag and "kuberay wants image as well" in image


def test_a_name_is_one_that_kubernetes_takes() -> None:
    assert job_name("Train_first run!") == "train-first-run"
    assert job_name("3rd") == "job-3rd" and len(job_name("x" * 99)) == 47
    with pytest.raises(ConfigError, match="letters or digits"):
        job_name("___")
