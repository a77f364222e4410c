import json
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from cluster.box import demo
from cluster.box.machine_cluster import PORTS, Addresses, MachineCluster
from cluster.box.server_process import free_ports
from twostream_ray.errors import ClusterError


@pytest.fixture
def addresses() -> Iterator[Addresses]:
    folder = Path(tempfile.mkdtemp(prefix="box-"))
    yield Addresses(port=free_ports(PORTS), folder=folder / "c")
    shutil.rmtree(folder)


def test_a_client_of_the_cluster_knows_nothing_of_another_one(
    addresses: Addresses, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    for name in ("RAY_ADDRESS", "MLFLOW_TRACKING_URI", "AWS_PROFILE"):
        monkeypatch.setenv(name, "elsewhere")
    cluster = MachineCluster(addresses, secret="of this test", checkout="")
    environment = demo.Demo(cluster=cluster, out=tmp_path, say=print).environment
    assert "elsewhere" not in environment.values()
    assert environment["MLFLOW_TRACKING_URI"] == cluster.mlflow.uri


def test_a_stage_that_fails_is_named_with_its_exit_code_and_the_cluster_stays_up(
    addresses: Addresses, tmp_path: Path
) -> None:
    cluster = MachineCluster(addresses, secret="of this test", checkout="")
    stages = demo.Demo(cluster=cluster, out=tmp_path, say=lambda _: None)
    with pytest.raises(ClusterError, match="pull ended with 2; the cluster is still up"):
        stages.stage("pull", "pull", "--no_such_setting", submitted=False)


def test_a_folder_that_no_demo_has_written_is_left_as_it_is(addresses: Addresses, tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("years of work")
    with pytest.raises(ClusterError, match="was not written by an earlier demo and is not overwritten"):
        demo.run_demo(addresses, out=tmp_path, kill=False, say=print)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.txt"]
    assert not addresses.folder.exists(), "it is refused before anything has started"


@pytest.mark.parametrize("stage", demo.submitted_commands("http://127.0.0.1:5000"))
def test_every_submitted_stage_has_settings_of_its_verb(stage: str) -> None:
    from twostream_ray.verbs.commands import parse, settings_class

    verb, *arguments = demo.submitted_commands("http://127.0.0.1:5000")[stage]
    kind = settings_class(verb)
    assert kind is not None
    settings: Any = parse(verb, kind, arguments)
    # Nothing is left in a job's copy of its working directory.
    assert str(getattr(settings, "storage", "s3://")).startswith("s3://")


@pytest.mark.soak
@pytest.mark.own_cluster
@pytest.mark.timeout(3600)
def test_a_node_killed_in_training_changes_nothing_but_the_time(
    addresses: Addresses, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    results = {}
    for kill in (False, True):
        results[kill] = demo.run_demo(addresses, out=tmp_path / str(kill), kill=kill, say=print)
        assert not addresses.folder.exists()
    assert (results[False]["killed"], results[True]["killed"]) == ([], ["node1"])
    for weights in ("trained_weights_sha256", "champion_weights_sha256"):
        assert results[False][weights] == results[True][weights]
    assert max(one["total_seconds"] for one in results.values()) < 25 * 60
    # A video that was made by no program of ours.
    real = next(iter(sorted((request.getfixturevalue("real") / "ucf101").rglob("*.avi"))))
    command = [sys.executable, "-m", "twostream_ray", "predict", str(real), "--format", "json"]
    done = subprocess.run(
        [*command, "--model", str(tmp_path / "True/champion")], capture_output=True, text=True, check=True
    )
    (answer,) = map(json.loads, done.stdout.splitlines())
    assert answer["heads"][0]["classes"]
