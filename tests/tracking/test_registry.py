import json
from pathlib import Path

import pytest

from twostream_ray.errors import RegistryError
from twostream_ray.models.settings import ModelConfig
from twostream_ray.runs.score.serving_files import SERVED, serving_files
from twostream_ray.tracking import (
    Measurement,
    RunHandle,
    TrackingConfig,
    promote,
    pull,
    register,
    start_run,
)
from twostream_ray.tracking.connection import client_for
from twostream_ray.tracking.registry import serving_requirements

MANIFEST = "0a" * 32


@pytest.fixture
def package(tmp_path: Path) -> Path:
    """A checkpoint of training: the model's two files, and others that are not the model's."""
    folder = tmp_path / "epoch 3"
    folder.mkdir()
    for file in ("model.safetensors", "model.json", "optimiser.safetensors"):
        (folder / file).write_text(f"content of {file}")
    return folder


def registered(config: TrackingConfig, package: Path, *, name: str) -> tuple[RunHandle, int]:
    handle = start_run(config, run_name=name, run_uri=str(package.parent / "run"), parameters={"lr": 0.1}, tags={})
    measurement = Measurement(
        manifest_hash=MANIFEST, split="test", num_evaluated=298, num_clips=300, metrics={"top1": 0.875, "top5": 1.0}
    )
    version = register(
        handle,
        package,
        entry=SERVED,
        code=serving_files(),
        name=name,
        measurement=measurement,
        protocol="4 samples of 5 snippets, scores averaged",
        summary="conv fusion at relu5_3",
        classes=[f"class{number}" for number in range(30)],
        data=f"kitchen: 30 classes, manifest {MANIFEST[:12]}",
        flow_contract={"algorithm": "dis", "bound_px": 20.0},
        lineage={"manifest_hash": MANIFEST, "flow_contract_hash": "cd", "git_commit": "ef dirty", "ray_job_id": "job"},
    )
    return handle, version


@pytest.mark.slow
@pytest.mark.parametrize("store", ["tracking", "server"])
def test_version_carries_lineage_and_scores_and_can_be_pulled(
    store: str, package: Path, tmp_path: Path, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "sqlite:///elsewhere.db")  # ours goes by its own settings alone
    config: TrackingConfig = request.getfixturevalue(store)
    handle, number = registered(config, package, name=f"lineage {store}")
    assert number == 1
    client = client_for(handle.tracking_uri)
    version = client.get_model_version(f"lineage {store}", "1")
    assert version.run_id == handle.run_id
    assert version.status == "READY"
    expected = {
        "test.top1": "0.8750 (298 of 300 clips, manifest 0a0a0a0a0a0a)",
        "data": "kitchen: 30 classes, manifest 0a0a0a0a0a0a",
        "protocol": "4 samples of 5 snippets, scores averaged",
    }
    assert expected == {key: value for key, value in version.tags.items() if not key.startswith("measured.")}
    for said in (
        "conv fusion at relu5_3",
        "Split `test`, 298 of 300 clips: top1 87.50%",
        "4 samples of 5 snippets",
        "algorithm dis, bound_px 20.0",
        "class19 … 30 in all",
        "`ef dirty`",
        "`job`",
    ):
        assert said in version.description

    promote(f"lineage {store}", 1, config=config, manifest_hash=MANIFEST, split="test")
    run = client.get_run(handle.run_id)
    (logged,) = run.outputs.model_outputs
    for position, uri in enumerate(
        [
            f"models:/lineage {store}@champion",
            f"models:/lineage {store}/1",
            f"models:/{logged.model_id}",
            f"runs:/{handle.run_id}",
        ]
    ):
        folder = pull(uri, tmp_path / f"pulled {position}", config=config)
        assert sorted(path.name for path in folder.iterdir()) == ["model.json", "model.safetensors", "pulled.json"]
        for name in ("model.safetensors", "model.json"):
            assert (folder / name).read_text() == f"content of {name}"
    assert not (tmp_path / "elsewhere.db").exists()


@pytest.mark.slow
def test_registered_model_is_code_and_data_without_pickle(tracking: TrackingConfig, package: Path) -> None:
    handle, _ = registered(tracking, package, name="files")
    client = client_for(handle.tracking_uri)
    (logged,) = client.get_run(handle.run_id).outputs.model_outputs
    model = client.get_logged_model(logged.model_id)
    assert model.status == "READY"
    root = Path(model.artifact_location.removeprefix("file://").replace("%20", " "))
    files = {str(path.relative_to(root)) for path in root.rglob("*") if path.is_file()}
    assert {"served.py", "code/twostream_ray/inference.py", "artifacts/model.safetensors"} <= files
    assert {file.removeprefix("code/") for file in files if file.startswith("code/")} == serving_files().keys()
    assert not [file for file in files if file.endswith((".pkl", ".pyc", ".pt", ".pth"))]
    assert "artifacts/optimiser.safetensors" not in files
    assert (root / "requirements.txt").read_text().splitlines()[0].startswith("mlflow==")


def test_requirements_are_exact_and_can_be_had_from_an_index() -> None:
    requirements = serving_requirements()
    assert all("==" in line and "+" not in line for line in requirements)
    assert not [line for line in requirements if line.startswith(("ray", "torchvision"))]


def test_a_model_whose_network_is_torchvisions_requires_it() -> None:
    libraries = ModelConfig(architecture="clip3d").libraries
    assert [line.partition("==")[0] for line in serving_requirements(libraries)][-1] == "torchvision"
    assert ModelConfig().libraries == ()


def test_folder_that_is_no_model_is_refused(tracking: TrackingConfig, package: Path) -> None:
    (package / "model.json").unlink()
    with pytest.raises(RegistryError, match=r"missing model\.json: name a checkpoint of `twostream train`"):
        registered(tracking, package, name="half")


def test_registering_without_a_server_says_where_the_model_is(
    package: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    away = TrackingConfig(uri="http://u:hush@127.0.0.1:9")
    with pytest.raises(
        RegistryError,
        match=r"127\.0\.0\.1:9 has been unreachable .* the checkpoint is kept: run the same command again",
    ) as caught:
        registered(away, package, name="away")
    assert "hush" not in str(caught.value) + caplog.text
    with pytest.raises(RegistryError, match=r"127\.0\.0\.1:9 .*check tracking\.uri") as caught:
        pull("models:/away@champion", package, config=away)
    assert "hush" not in str(caught.value)


@pytest.mark.parametrize(
    ("uri", "message"),
    [
        (
            "models:/nobody@champion",
            r"downloading models:/nobody@champion failed at MLflow sqlite:.*check tracking\.uri",
        ),
        ("models:/again", r"a model is models:/NAME@ALIAS, .* got 'models:/again'"),
        ("some/folder", r"got 'some/folder'; for instance models:/two-stream@champion"),
    ],
)
def test_model_that_is_not_there_is_named(uri: str, message: str, tracking: TrackingConfig, tmp_path: Path) -> None:
    with pytest.raises(RegistryError, match=message):
        pull(uri, tmp_path, config=tracking)


def test_run_without_a_model_is_named(tracking: TrackingConfig, tmp_path: Path) -> None:
    handle = start_run(tracking, run_name="bare", run_uri=str(tmp_path), parameters={}, tags={})
    with pytest.raises(RegistryError, match="logged no model"):
        pull(f"runs:/{handle.run_id}", tmp_path, config=tracking)


def test_model_of_another_project_is_refused(tracking: TrackingConfig, tmp_path: Path) -> None:
    client = client_for(tracking.resolved_uri())
    (tmp_path / "MLmodel").write_text("flavors: {sklearn: {}}\n")
    client.create_registered_model("foreign")
    client.create_model_version("foreign", source=tmp_path.as_uri(), run_id=None)
    with pytest.raises(RegistryError, match="not a model of twostream_ray"):
        pull("models:/foreign/1", tmp_path / "out", config=tracking)


def test_measurement_tag_survives_json(tracking: TrackingConfig, package: Path) -> None:
    handle, _ = registered(tracking, package, name="json")
    tags = client_for(handle.tracking_uri).get_model_version("json", "1").tags
    stored = json.loads(tags[f"measured.test.{MANIFEST}"])
    assert stored["num_evaluated"] == 298
    assert stored["metrics"] == {"top1": 0.875, "top5": 1.0}


@pytest.mark.slow
@pytest.mark.parametrize("name", ["wh?t #1", "100%", "a%20b", "ünï cödé", "x:y@z", "a+b&c=d"])
def test_a_model_from_a_folder_of_any_name_is_registered_and_pulled_whole(
    name: str, package: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tracking: TrackingConfig
) -> None:
    here = tmp_path / name
    here.mkdir()
    odd = package.rename(here / "checkpoint")
    monkeypatch.chdir(here)
    _, number = registered(tracking, odd, name=f"odd {name.encode().hex()}")
    folder = pull(f"models:/odd {name.encode().hex()}/{number}", here / "pulled", config=tracking)
    for file in ("model.safetensors", "model.json"):
        assert (folder / file).read_text() == f"content of {file}"
    assert sorted(path.name for path in here.iterdir()) == ["checkpoint", "pulled", "run"]


def test_a_models_card_and_tags_hold_no_secrets(tracking: TrackingConfig, package: Path) -> None:
    handle = start_run(tracking, run_name="run", run_uri=str(package.parent / "run"), parameters={}, tags={})
    measurement = Measurement(manifest_hash=MANIFEST, split="test", num_evaluated=1, num_clips=1, metrics={"top1": 1.0})
    version = register(
        handle,
        package,
        entry=SERVED,
        code=serving_files(),
        name="secretive",
        measurement=measurement,
        protocol="as at http://ann:hu/sh@host/x",
        summary="from s3://key:hu/sh@bucket",
        classes=["a"],
        data="of http://ann:hu/sh@host/repository",
        flow_contract={},
        lineage={"git_commit": "http://ann:hu/sh@host/repository"},
    )
    stored = client_for(handle.tracking_uri).get_model_version("secretive", str(version))
    assert "hu/sh" not in f"{stored.description}{stored.tags}"
    assert "(hidden)@host/repository" in stored.tags["data"]
