"""The files that describe clusters, checked offline; mistakes planted in a copy of them, each of which is refused."""

from __future__ import annotations

import gzip
import json
import re
import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import twostream_ray
from twostream_ray.cli import main

ROOT = Path(__file__).resolve().parents[2]
SCHEMAS = ROOT / "../shared/reference/kuberay"
sys.path.insert(0, str(ROOT / "cluster"))

import check as cluster_check  # noqa: E402
from checks import schemas as schema_files  # noqa: E402

TRAIN, STAYS, INGEST = "cluster/rayjob_train.yaml", "cluster/raycluster.yaml", "cluster/rayjob_ingest.yaml"
LAUNCHER, MLFLOW, SKYPILOT = "ray_cluster.yaml", "cluster/mlflow.yaml", "cluster/skypilot.yaml"
SERVICE, EVALUATE = "cluster/rayservice.yaml", "cluster/rayjob_evaluate.yaml"
ACCOUNTS, TRUST, PODS, PULL = (
    f"cluster/{name}"
    for name in (
        "service_account.yaml",
        "policies/trust_instances.json",
        "policies/trust_pods.json",
        "policies/pull_image.json",
    )
)
HEAD, BUCKET, IMAGE = (f"cluster/{name}" for name in ("policies/head.json", "policies/bucket.json", "Dockerfile"))

Edit = tuple[str, str, str, str]
"""A file, what stands in it, what is planted there, and what the refusal says."""

MISTAKES: dict[str, Edit] = {
    # KubeRay's fields
    "an unknown field": (TRAIN, "backoffLimit: 2\n  # GPUs", "backofLimit: 2\n  # GPUs", "did you mean backoffLimit"),
    "an unknown field deep inside": (TRAIN, "minReplicas: 1", "minReplica: 1",
                                     "unknown field: did you mean minReplicas"),
    "a text for a number": (TRAIN, "preRunningDeadlineSeconds: 1800", 'preRunningDeadlineSeconds: "1800"',
                            "type integer"),
    "a word that KubeRay's schema takes": (TRAIN, "K8sJobMode", "K8SJobMode", "wants K8sJobMode or"),
    "an old version of the kind": (TRAIN, "ray.io/v1", "ray.io/v1alpha1", "wants ray.io/v1, got"),
    "a key given twice": (TRAIN, "replicas: 1\n", "replicas: 1\n        replicas: 2\n", "is given twice"),
    # what its operator alone checks
    "a name too long": (TRAIN, "name: twostream-train", f"name: twostream-{'train' * 9}", "at most 47 characters"),
    "a name that is no label": (STAYS, "name: twostream\n", "name: 2stream\n", "DNS-1035"),
    "a time to live without shutdown": (INGEST, "  shutdownAfterJobFinishes: true\n", "",
                                        "wants shutdownAfterJobFinishes"),
    "two ways to delete": (TRAIN, "  deletionStrategy:", "  shutdownAfterJobFinishes: true\n  deletionStrategy:",
                           "exclude"),
    "a job that never ran keeps its GPUs": (TRAIN, "jobDeploymentStatus: Failed", "jobStatus: FAILED",
                                            "no rule deletes"),
    "a token for an older Ray": (TRAIN, 'rayVersion: "2.60.0"', 'rayVersion: "2.51.0"',
                                 "mode token wants rayVersion 2.52"),
    "more at least than at most": (STAYS, "minReplicas: 1\n        maxReplicas: 8".replace("        ", "      "),
                                   "minReplicas: 9\n      maxReplicas: 8", "minReplicas <= maxReplicas"),
    "pods that restart under autoscaler v2": (TRAIN, "restartPolicy: Never", "restartPolicy: Always",
                                              "wants restartPolicy Never"),
    "resources in two places": (TRAIN, 'rayStartParams: {num-cpus: "0"}',
                                'resources: {CPU: "0"}\n      rayStartParams: {num-cpus: "0"}', "use one of them"),
    "half a deletion": (TRAIN, "deletionRules:\n", "onSuccess: {policy: DeleteCluster}\n    rules:\n",
                        "either deletionRules"),
    # versions
    "another Ray": (STAYS, 'rayVersion: "2.60.0"', 'rayVersion: "2.59.1"', "as constraints.txt pins Ray"),
    "an image of another version": (TRAIN, "twostream-ray:0.1.0", "twostream-ray:0.0.9", "twostream_ray of"),
    "an image without a version": (TRAIN, "twostream-ray:0.1.0", "twostream-ray:latest", "without a version"),
    "another Python": (IMAGE, "FROM python:3.11.14", "FROM python:3.10.19", "clients and nodes run one Python"),
    "an older CUDA": (IMAGE, "cuda>=13.0", "cuda>=12.4", "NVIDIA_REQUIRE_CUDA"),
    "an older driver": ("cluster/README.md", "driver 580", "driver 525", "needs 580 or newer"),
    "another botocore": (IMAGE, "boto3==1.", "boto3==2.", "the version of botocore"),
    "another MLflow": ("cluster/mlflow.Dockerfile", "mlflow[auth]==3.17.2", "mlflow[auth]==3.14.0",
                       "wants mlflow[auth]==3.17.2"),
    # pods
    "no token": (STAYS, "  authOptions: {mode: token}\n", "", "wants authOptions: {mode: token}"),
    "no shared memory": (TRAIN, "emptyDir: {medium: Memory, sizeLimit: 2Gi}", "emptyDir: {sizeLimit: 2Gi}",
                         "has no emptyDir"),
    "more shared memory than half": (TRAIN, "sizeLimit: 60Gi", "sizeLimit: 120Gi", "below half"),
    "less asked than Ray counts on": (TRAIN, 'requests: {cpu: "16"', 'requests: {cpu: "8"', "the same cpu in requests"),
    "a secret in clear": (TRAIN, 'TWOSTREAM_GIT_COMMIT, value: ""', 'AWS_SECRET_ACCESS_KEY, value: "abc"', "in clear"),
    "a password in a URI": (MLFLOW, "mlflow:$(POSTGRES_PASSWORD)@", "mlflow:hush@", "in clear"),
    "tasks on the head": (TRAIN, '{num-cpus: "0"}', "{}", "tasks on the head"),
    "an account that nothing makes": (TRAIN, "serviceAccountName: twostream\n", "serviceAccountName: ray\n",
                                      "service account"),
    "a volume that is not there": (MLFLOW, "{name: config, mountPath", "{name: conf, mountPath",
                                   "no volume of the pod"),
    "a selector that finds nothing": (MLFLOW, "matchLabels: {app: mlflow}}\n  template",
                                      "matchLabels: {app: mlfow}}\n  template",
                                      "do not find the template's labels"),
    "a port that no pod has": (MLFLOW, "port: 5000, targetPort: http", "port: 5000, targetPort: web",
                               "no port of the pods"),
    # commands
    "a setting that a verb has not": (TRAIN, "--data.test_split", "--data.tst_split", "unknown setting"),
    "a script that is not there": (INGEST, "jobs/ingest.py", "jobs/injest.py", "is not there"),
    "fewer workers than GPUs": (TRAIN, "--workers.num_workers 4", "--workers.num_workers 2", "uses 2 GPUs"),
    "an application that is not there": (SERVICE, "runs.serve_replicas:", "runs.serve_replica:", "no module"),
    "a field that Ray Serve has not": (SERVICE, "import_path:", "import_pth:", "Ray Serve refuses it"),
    "an image that cannot serve": (IMAGE, '".[serve,timm]"', '".[timm]"', 'wants ".[serve]"'),
    # Ray's cluster launcher on AWS
    "a key that Ray's schema has not": (LAUNCHER, "max_workers: 20", "max_wokers: 20", "max_wokers"),
    "a head of no type": (LAUNCHER, "head_node_type: head", "head_node_type: headd", "head_node_type"),
    "a misspelt key of the provider": (LAUNCHER, "availability_zone:", "availabilty_zone:", "an unknown key"),
    "a region that AWS has not": (LAUNCHER, "region: us-west-2 ", "region: us-west-9 ", "no region 'us-west-9'"),
    "an instance type that AWS has not": (LAUNCHER, "g6e.12xlarge", "g6e.13xlarge", "no instance type"),
    "a parameter that EC2 has not": (LAUNCHER, "InstanceMarketOptions:", "InstanceMarketOption:", "Unknown parameter"),
    "GPUs that an instance has not": (LAUNCHER, "GPU: 4", "GPU: 8", "has 48 vCPUs and 4 GPUs"),
    "a dashboard for everybody": (LAUNCHER, "--dashboard-host=127.0.0.1", "--dashboard-host=0.0.0.0",
                                  "--dashboard-host=127"),
    "an instance without its own profile": (LAUNCHER, "IamInstanceProfile: {Name: twostream-ray-head}",
                                            "EbsOptimized: true",
                                            "full access to EC2"),
    "a nightly build of Ray": (LAUNCHER, "setup_commands: []\nhead", "head", "a nightly of Ray"),
    # IAM
    "an action that AWS has not": (HEAD, "ec2:TerminateInstances", "ec2:TerminateInstance", "no action"),
    "a wildcard": (BUCKET, '"s3:GetBucketLocation"', '"s3:*"', "no action 's3:*'"),
    "any role passed": (HEAD, ":role/twostream-ray-worker", ":role/*", "wants the ARN of one role"),
    "a profile passed for a role": (HEAD, ":role/twostream-ray-worker", ":instance-profile/twostream-ray-worker",
                                    "wants the ARN of one role"),
    "a role passed to any service": (HEAD, "iam:PassedToService", "iam:PassedToServices", "iam:PassedToService"),
    "a bucket for its objects": (BUCKET, '"arn:aws:s3:::example-bucket"', '"arn:aws:s3:::example-bucket/*"',
                                 "s3:ListBucket wants arn:aws:s3:::BUCKET"),
    "every instance of the account": (HEAD, "aws:ResourceTag/ray-cluster-name", "aws:ResourceTag/name",
                                      "ray-cluster-name"),
    "a bucket that no policy grants": (INGEST, "--out s3://example-bucket", "--out s3://other-bucket",
                                       "is in no policy"),
    # SkyPilot
    "a field that SkyPilot has not": (SKYPILOT, "disk_size: 200", "disksize: 200", "did you mean disk_size"),
    "a secret among the variables": (SKYPILOT, "secrets:\n  MLFLOW_TRACKING_USERNAME: null",
                                     "  AWS_SECRET_ACCESS_KEY: abc\nsecrets:",
                                     "belongs under secrets"),
    "another bucket's placeholder, unmarked": (MLFLOW, "FILL IN: your bucket", "your bucket", "no FILL IN announces"),
    # what manifests agree on
    "a namespace of its own": (TRAIN, "name: twostream-train\n", "name: twostream-train\n  namespace: vision\n",
                               "the namespace is 'vision' here"),
    "another region": (TRAIN, "value: us-west-2}", "value: eu-west-1}", "AWS_DEFAULT_REGION is 'eu-west-1' here"),
    "a cluster that is not there": (
        EVALUATE, "cluster: twostream}", "cluster: two-stream}", "wants ray.io/cluster: a Ray"),
    "a database that is not there": (
        MLFLOW, "@mlflow-postgres:5432", "@mlflow-postgress:5432", "a service 'mlflow-postgress'"),
    "a port of the database that it has not": (
        MLFLOW, "@mlflow-postgres:5432", "@mlflow-postgres:5433", "port 5432, not 5433"),
    "a server that refuses its name": (MLFLOW, "mlflow:5000,mlflow.*:5000,", "", "lists no mlflow:5000"),
    "an autoscaler that may ask for nothing": (
        TRAIN, "serviceAccountName: twostream-head", "serviceAccountName: twostream",
                                               "the head's autoscaler asks Kubernetes for pods"),
    "a role that is no ARN": (ACCOUNTS, "arn:aws:iam::123456789012:role/twostream-mlflow", "twostream-mlflow",
                              "wants a role's ARN"),
    "GPUs that no pod may have": (TRAIN, "key: nvidia.com/gpu,", "key: gpu,", "wants a toleration"),
    "a resource that is none": (TRAIN, "nvidia.com/gpu: ", "nvidia.com/gpus: ", "nvidia.com/gpus: no resource"),
    "more pods at most, and nobody to start them": (
        INGEST,
        "    enableInTreeAutoscaling: true\n    autoscalerOptions: {version: v2, idleTimeoutSeconds: 300}\n", "",
        "without enableInTreeAutoscaling"),
    "a name of an image with a blank": (TRAIN, "twostream-ray:0.1.0", "twostream-ray :0.1.0", "no name of an image"),
    # places and the service
    "checkpoints on a pod's disk": (
        TRAIN, "--storage s3://example-bucket/runs", "--storage runs", "storage is 'runs', a folder"),
    "checkpoints on a pod's disk by default": (
        TRAIN, "    --storage s3://example-bucket/runs\n", "", "storage is 'runs'"),
    "shards on a pod's disk": (INGEST, "--out s3://example-bucket/ucf101", "--out shards", "out is 'shards', a folder"),
    "a URI with one slash": (
        INGEST, "--out s3://example-bucket", "--out s3:/example-bucket", "no URI: write s3://BUCKET"),
    "a bucket in capitals": (
        INGEST, "--out s3://example-bucket", "--out s3://Example-Bucket", "Example-Bucket is in no"),
    "a replica larger than its pod": (SERVICE, "number: 2, cpus: 4", "number: 2, cpus: 8", "have room for 0"),
    "more replicas than fit": (SERVICE, "number: 2, cpus: 4", "number: 4, cpus: 4", "have room for 2"),
    "a setting that the service has not": (SERVICE, "model: models:/", "modle: models:/", "args: unknown setting"),
    "a service that listens to itself": (
        SERVICE, "host: 0.0.0.0", "host: 127.0.0.1", "wants http_options.host 0.0.0.0"),
    "a service at a port of no pod": (
        SERVICE, "      port: 8000", "      port: 8080", "is no containerPort of headGroup"),
    # AWS
    "a word that EC2 has not": (LAUNCHER, "MarketType: spot", "MarketType: Spot", "EC2 knows no 'Spot'"),
    "an ARM machine": (LAUNCHER, "m7i.2xlarge", "m7g.2xlarge", "is an ARM machine"),
    "an image for ARM": (LAUNCHER, "ami/x86_64", "ami/arm64", "wants an image for x86_64"),
    "a user that the image has not": (LAUNCHER, "ssh_user: ubuntu", "ssh_user: ec2-user", "wants ubuntu"),
    "workers that knock at another port": (LAUNCHER, "RAY_HEAD_IP:6379", "RAY_HEAD_IP:6380", "with the head's --port"),
    "another cluster's name": (
        LAUNCHER, "cluster_name: twostream", "cluster_name: vision", "cluster_name of ray_cluster.yaml"),
    "a right that is missing": (
        BUCKET, '"s3:GetObject", "s3:PutObject", "s3:DeleteObject", "s3:Abort', '"s3:GetObject", "s3:Abort',
                                "does not allow s3:PutObject"),
    "objects of another bucket": (
        BUCKET, "example-bucket/*", "example-buckets/*", "lists the bucket example-bucket, but"),
    "models that nodes may write over": (
        BUCKET, '"Effect": "Deny"', '"Effect": "Allow"', "only MLflow is to write there"),
    "artefacts elsewhere": (
        MLFLOW, "s3://example-bucket/mlflow", "s3://example-bucket/mlruns", "MLflow keeps artefacts there"),
    "another account": (HEAD, "123456789012:volume", "210987654321:volume", "the AWS account is '210987654321'"),
    "a misspelt region": (
        HEAD, "us-west-2:123456789012:subnet", "us-west2:123456789012:subnet", "names the region us-west2"),
    "an operator that AWS has not": (
        HEAD, '"StringEquals": {"aws:RequestTag', '"StringEqual": {"aws:RequestTag', "no operator"),
    "instances of any kind": (HEAD, '"Condition": {"StringEquals": {"aws:RequestTag/ray-cluster-name": "twostream"}}',
                              '"Condition": {}', "instances of any kind may be started"),
    "an instance without an image": (HEAD, '"arn:aws:ec2:us-west-2::image/*",', "", "resources of the kinds image too"),
    "a repository of another image": (PULL, "repository/twostream-ray", "repository/twostream", "wants the repository"),
    "a role for everybody": (TRUST, '"Service": "ec2.amazonaws.com"', '"AWS": "*"', "wants instances"),
    "a role for nobody": (TRUST, '"Allow"', '"Deny"', "nobody could take this role"),
    "a role for every pod": (PODS, '"StringEquals"', '"StringLike"', "every pod of the cluster could"),
    "a role for an account that is not there": (
        PODS, "default:twostream-head", "default:twostream-heads", "no manifest makes"),
    "a secret of SkyPilot in clear": (SKYPILOT, "_PASSWORD: null", "_PASSWORD: hunter2", "stands here in clear"),
    "CPUs that are no number": (SKYPILOT, "cpus: 32+", "cpus: 32-", "for at least so many"),
}  # fmt: skip
"""What is wrong -> how it is planted, and a part of the line that refuses it."""


ELSEWHERE = ("another cluster's name", "artefacts elsewhere")


@pytest.fixture(scope="module")
def copy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The files that are checked, and what they are checked against."""
    root = tmp_path_factory.mktemp("copy")
    for name in ("cluster", "jobs", "twostream_ray"):
        shutil.copytree(ROOT / name, root / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in (LAUNCHER, "constraints.txt", "pyproject.toml"):
        shutil.copy(ROOT / name, root / name)
    return root


@pytest.fixture(scope="module")
def schemas() -> dict[str, Any]:
    if not SCHEMAS.is_dir():
        pytest.skip(f"KubeRay's schemas are not at hand in {SCHEMAS}")
    return schema_files.read_schemas(SCHEMAS)


@pytest.fixture
def plant(copy: Path) -> Iterator[Callable[[Edit], None]]:
    before: dict[Path, str] = {}

    def planted(edit: Edit) -> None:
        path = copy / edit[0]
        before[path] = path.read_text()
        assert edit[1] in before[path], f"nothing to plant it in: {edit}"
        path.write_text(before[path].replace(edit[1], edit[2]))

    yield planted
    for path, text in before.items():
        path.write_text(text)


@pytest.mark.slow
def test_the_files_that_are_there_pass() -> None:
    assert cluster_check.check(ROOT, {}).mistakes == []


def test_they_pass_kuberays_own_schemas(schemas: dict[str, Any]) -> None:
    checked = cluster_check.check(ROOT, schemas)
    assert checked.mistakes == []
    assert checked.schemas == ["RayCluster", "RayJob", "RayService"]


def test_twenty_kinds_of_mistake_and_more_are_planted_in_a_copy_that_has_none(copy: Path) -> None:
    assert len(MISTAKES) >= 20
    assert cluster_check.check(copy, {}).mistakes == []


@pytest.mark.parametrize("wrong", MISTAKES)
def test_a_planted_mistake_is_refused_without_kuberays_schemas(
    wrong: str, copy: Path, plant: Callable[[Edit], None]
) -> None:
    edit = MISTAKES[wrong]
    plant(edit)
    mistakes = cluster_check.check(copy, {}).mistakes
    # What does not agree with another file may be told of that one.
    own = [one for one in mistakes if one.startswith(edit[0])] if wrong not in ELSEWHERE else mistakes
    assert any(edit[3] in one for one in own), mistakes or "nothing"
    assert all("\n" not in mistake for mistake in mistakes)


@pytest.mark.slow
def test_a_network_of_timm_wants_an_image_with_timm(copy: Path, plant: Callable[[Edit], None]) -> None:
    plant((TRAIN, "--config fusion_2016", "--config convnext_fusion", ""))
    assert cluster_check.check(copy, {}).mistakes == []
    plant((IMAGE, '".[serve,timm]"', '".[serve]"', ""))
    (mistake,) = cluster_check.check(copy, {}).mistakes
    assert mistake.startswith(TRAIN) and "which the image lacks" in mistake


def test_a_mistake_names_its_file_line_and_field(copy: Path, plant: Callable[[Edit], None]) -> None:
    edit = MISTAKES["a text for a number"]
    plant(edit)
    line = (copy / TRAIN).read_text().splitlines().index('  preRunningDeadlineSeconds: "1800"') + 1
    (mistake,) = cluster_check.check(copy, {}).mistakes
    assert mistake.startswith(f"{TRAIN}:{line}: spec.preRunningDeadlineSeconds: ")


def test_kuberays_schemas_refuse_what_the_table_of_fields_leaves_open(
    schemas: dict[str, Any], copy: Path, plant: Callable[[Edit], None]
) -> None:
    plant((TRAIN, "restartPolicy: Never", "affinity: {nodeAffinit: {}}", ""))
    assert cluster_check.check(copy, {}).mistakes == []
    assert any("nodeAffinit" in mistake for mistake in cluster_check.check(copy, schemas).mistakes)


@pytest.mark.slow
def test_schemas_are_read_as_kuberay_publishes_them(schemas: dict[str, Any], tmp_path: Path) -> None:
    schema = json.loads(gzip.decompress((SCHEMAS / "rayjobs_v1.schema.json.gz").read_bytes()))
    definition = {"spec": {"versions": [{"name": "v1", "schema": {"openAPIV3Schema": schema}}]}}
    (tmp_path / "ray.io_rayjobs.yaml").write_text(json.dumps(definition))  # JSON is YAML
    assert schema_files.read_schemas(tmp_path)["RayJob"].schema == schemas["RayJob"].schema


def test_what_is_to_be_filled_in_is_listed_and_a_mistake_when_it_is_to_be_ready(
    copy: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cluster_check.main(["--root", str(copy)]) == 0
    listed = re.findall(r"^(\S+?):\d+: FILL IN: (.+)$", capsys.readouterr().out, flags=re.MULTILINE)
    assert {LAUNCHER, TRAIN, MLFLOW, SKYPILOT, HEAD} <= {file for file, _ in listed}
    assert (BUCKET, "your bucket") in listed
    assert cluster_check.main(["--root", str(copy), "--ready"]) == 1
    assert "not filled in" in capsys.readouterr().err


def test_the_command_ends_with_1_and_a_line_for_a_mistake(
    copy: Path, plant: Callable[[Edit], None], capsys: pytest.CaptureFixture[str]
) -> None:
    plant(MISTAKES["another Ray"])
    assert cluster_check.main(["--root", str(copy)]) == 1
    said = capsys.readouterr().err
    assert said.count("\n") == 1 and said.startswith(STAYS)


def test_the_manifest_that_submit_writes_passes_too(
    copy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://mlflow:5000")
    path = tmp_path / "a.yaml"
    settings = ["train", "s3://b/shards", "--config", "own_videos_cpu", "--name", "a", "--storage", "s3://b/runs"]
    image = f"registry.example.com/twostream-ray:{twostream_ray.__version__}"
    assert main(["submit", *settings, "--kuberay", str(path), "--image", image]) == 0
    assert cluster_check.main(["--root", str(copy), str(path)]) == 0, capsys.readouterr().err
    path.write_text(path.read_text().replace("K8sJobMode", "K8SJobMode"))
    assert cluster_check.main(["--root", str(copy), str(path)]) == 1
