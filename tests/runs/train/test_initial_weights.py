import json
import logging
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from whole_shards import write_shards

from twostream_ray.cli import main
from twostream_ray.data.flow import FlowContract
from twostream_ray.data.loading.settings import DataConfig
from twostream_ray.data.sampling import SamplingConfig
from twostream_ray.data.shards.shards import ShardSet
from twostream_ray.data.transforms import TransformConfig
from twostream_ray.errors import (
    CheckpointError,
    ConfigError,
    ContractMismatchError,
    MissingError,
    RegistryError,
    StorageError,
)
from twostream_ray.model_package import ModelPackage, initialise_from, save_model
from twostream_ray.models.settings import FusionConfig, ModelConfig, TowerConfig
from twostream_ray.runs.experiment import ExperimentConfig
from twostream_ray.runs.run_folder import RunFolder
from twostream_ray.runs.train.initial_weights import InitialWeights, keep_initial_weights
from twostream_ray.runs.train.run import train
from twostream_ray.runs.train.worker import _first_network
from twostream_ray.tracking import TrackingConfig
from twostream_ray.tracking.connection import client_for
from twostream_ray.training.settings import TrainingConfig

TOWER = TowerConfig(backbone="vgg_small", width=4, dropout=0.0)
SAMPLING = SamplingConfig(num_snippets=1, min_stride_frames=1, max_stride_frames=1, test_times=1, flow_length=2)


def package(classes: str = "abc", **model: Any) -> ModelPackage:
    settings = {"spatial": TOWER, "temporal": TOWER, "fusion": FusionConfig(layers=("relu4",), temporal="pool2d")}
    return ModelPackage(
        model=ModelConfig(**settings | model),
        classes=tuple(classes),
        contract=FlowContract(short_side_px=48),
        sampling=SAMPLING,
        transforms=TransformConfig(crop_px=48),
    )


def trained(directory: Path, of: ModelPackage) -> str:
    """A checkpoint with weights of its own."""
    torch.manual_seed(hash(directory) % 1000)
    save_model(directory, of.build(pretrained=False), of)
    return str(directory)


def kept(
    folder: Path, init: str, wanted: ModelPackage, tracking_uri: str | None = None
) -> tuple[InitialWeights | None, dict[str, torch.Tensor]]:
    """What a run starts from, and its network's weights then."""
    config = ExperimentConfig(
        name="run", data=DataConfig(shards="shards"), init=init, tracking=TrackingConfig(uri=tracking_uri)
    )
    with torch.device("meta"):
        plan = wanted.build(pretrained=False)
    initial = keep_initial_weights(config, RunFolder(uri=str(folder), what="run 'run'"), package=wanted, network=plan)
    network = wanted.build(pretrained=False)
    if initial is not None:
        with initial.on_disk() as directory:
            initialise_from(network, directory, heads=initial.keeps_heads)
    return initial, dict(network.state_dict())


def test_a_network_of_the_same_classes_starts_with_all_weights_of_a_checkpoint(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    source = trained(tmp_path / "epoch-0001", package())
    with caplog.at_level(logging.WARNING):
        initial, weights = kept(tmp_path / "run", source, package())
    theirs = load_file(Path(source) / "model.safetensors")
    assert all(torch.equal(values, theirs[name]) for name, values in weights.items())
    assert initial is not None and (initial.keeps_heads, initial.source) == (True, source)
    assert initial.lineage == {"init_from": source, "init_sha256": initial.sha256}
    assert caplog.messages == [f"run 'run' starts from {source}"]


def test_heads_of_other_classes_start_anew_which_is_said_in_a_line(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    source = trained(tmp_path / "epoch-0001", package())
    theirs = load_file(Path(source) / "model.safetensors")
    for number, classes in enumerate(("abcde", "xyz")):
        caplog.clear()
        _, weights = kept(tmp_path / f"run{number}", source, package(classes))
        different = {name for name, values in weights.items() if not torch.equal(values, theirs[name])}
        assert different <= {f"{tower}.fc8.{part}" for tower in ("spatial", "temporal") for part in ("weight", "bias")}
        assert {"spatial.fc8.weight", "temporal.fc8.weight"} <= different
        (line,) = caplog.messages
        assert "its heads are initialised anew: 3 classes there" in line
    assert "3 here (x, y, z new)" in line
    _, weights = kept(tmp_path / "turned", source, package("cba"))
    assert not torch.equal(weights["spatial.fc8.weight"], theirs["spatial.fc8.weight"]), "rows would be others' classes"


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"spatial": replace(TOWER, width=8), "temporal": replace(TOWER, width=8)}, "spatial.width is 4 there, 8 here"),
        ({"architecture": "late"}, "architecture is fused there, late here"),
        ({"keep_temporal_tower": False}, "keep_temporal_tower is True there, False here"),
    ],
)
def test_another_kind_of_network_is_refused_by_its_settings_and_nothing_is_kept(
    tmp_path: Path, change: dict[str, Any], named: str
) -> None:
    source = trained(tmp_path / "epoch-0001", package())
    with pytest.raises(ConfigError, match=rf"differs from the network to train \(model\.{named}.*: use"):
        kept(tmp_path / "run", source, package(**change))
    assert not (tmp_path / "run").exists()


def test_a_network_of_another_flow_is_refused_unless_it_sees_none(tmp_path: Path) -> None:
    other = FlowContract(short_side_px=64)
    source = trained(tmp_path / "both", package())
    with pytest.raises(
        ContractMismatchError, match=r"the network of init=.* wants flow short_side_px 48; the data has"
    ):
        kept(tmp_path / "run", source, replace(package(), contract=other))
    spatial = package(architecture="late", streams="spatial")
    source = trained(tmp_path / "spatial", spatial)
    assert kept(tmp_path / "run", source, replace(spatial, contract=other))[0] is not None


def test_a_runs_folder_stands_for_the_checkpoint_that_its_report_names(tmp_path: Path) -> None:
    run = tmp_path / "earlier"
    checkpoint = trained(run / "epoch-0002", package())
    with pytest.raises(StorageError, match=r"init=.*earlier wants a trained network, but there is none: give models:/"):
        kept(tmp_path / "run", str(run), package())
    (run / "experiment.json").write_text("{}")
    with pytest.raises(StorageError, match=r"is the folder of an unfinished run: name one of the checkpoints in it"):
        kept(tmp_path / "run", str(run), package())
    (run / "report.json").write_text(json.dumps({"checkpoint": "/elsewhere/earlier/epoch-0002"}))
    initial, _ = kept(tmp_path / "run", str(run), package())
    assert initial is not None and initial.source == checkpoint


def test_an_alias_that_moves_before_the_first_checkpoint_changes_nothing(tmp_path: Path) -> None:
    registry = f"sqlite:///{tmp_path}/mlflow.db"
    client = client_for(registry)
    client.create_registered_model("two-stream")
    for version in ("1", "2"):
        entry = tmp_path / version
        trained(entry / "artifacts", package())
        (entry / "MLmodel").write_text("flavors: {}\n")
        client.create_model_version("two-stream", source=entry.as_uri(), run_id=None)

    def started(run: str, champion: str) -> InitialWeights:
        client.set_registered_model_alias("two-stream", "champion", champion)
        initial, _ = kept(tmp_path / run, "models:/two-stream@champion", package(), tracking_uri=registry)
        assert initial is not None
        return initial

    first = started("run", "1")
    assert started("run", "2") == first and first.source == "models:/two-stream/1"
    other = started("other", "2")
    assert other.source == "models:/two-stream/2" and other.sha256 != first.sha256
    with pytest.raises(RegistryError, match="two-stream"):
        kept(tmp_path / "third", "models:/two-stream@best", package(), tracking_uri=registry)


def test_damaged_weights_are_refused(tmp_path: Path) -> None:
    source = Path(trained(tmp_path / "epoch-0001", package()))
    content = (source / "model.safetensors").read_bytes()
    (source / "model.safetensors").write_bytes(content[:-100])
    with pytest.raises(CheckpointError, match=r"weights were wanted at .*, which is missing or damaged"):
        kept(tmp_path / "run", str(source), package())


def test_a_worker_begins_with_the_weights_that_were_kept_and_not_with_those_of_its_towers(tmp_path: Path) -> None:
    source = trained(tmp_path / "epoch-0001", package())
    nowhere = replace(TOWER, weights="nowhere.safetensors")
    wanted = package("abcd", spatial=nowhere, temporal=nowhere)
    initial, _ = kept(tmp_path / "run", source, wanted)
    network = _first_network(wanted, initial)
    theirs = load_file(Path(source) / "model.safetensors")
    assert torch.equal(network.state_dict()["temporal.conv1.weight"], theirs["temporal.conv1.weight"])
    with pytest.raises(MissingError, match=r"nowhere\.safetensors"):
        _first_network(wanted, None)


def experiment(shard_set: ShardSet, folder: Path, name: str, **change: Any) -> ExperimentConfig:
    settings = {
        "name": name,
        "data": DataConfig(
            shards=shard_set.uri, sampling=SAMPLING, transforms=TransformConfig(crop_px=48, size_jitter=0.0)
        ),
        "model": package().model,
        "training": TrainingConfig(epochs=1, global_batch=16, learning_rate=0.01, schedule="constant"),
        "storage": str(folder / "runs"),
        "tracking": TrackingConfig(uri=f"sqlite:///{folder}/mlflow.db", register=False),
    }
    return ExperimentConfig(**settings | change)


def weights_of(checkpoint: str) -> dict[str, torch.Tensor]:
    return load_file(Path(checkpoint) / "model.safetensors")


@pytest.mark.soak
def test_a_run_starts_from_another_run_and_its_resumption_from_its_own_checkpoint(
    cluster: None, shard_set: ShardSet, tmp_path: Path
) -> None:
    first = train(experiment(shard_set, tmp_path, "first"))
    # A rate that moves nothing: what it started from is seen at its end.
    still = TrainingConfig(epochs=1, global_batch=16, learning_rate=1e-30, weight_decay=0.0, schedule="constant")
    config = experiment(shard_set, tmp_path, "second", init=str(tmp_path / "runs/first"), training=still)
    second = train(config)
    learnt = [name for name in weights_of(first.checkpoint) if "running" not in name and "tracked" not in name]
    for name in learnt:
        torch.testing.assert_close(weights_of(second.checkpoint)[name], weights_of(first.checkpoint)[name])
    lineage = json.loads((Path(second.checkpoint) / "model.json").read_text())["lineage"]
    assert lineage["init_from"] == first.checkpoint and len(lineage["init_sha256"]) == 64

    # Resumed, it needs neither the other run nor the copy of its weights.
    (tmp_path / "runs/second/report.json").unlink()
    (tmp_path / "runs/second/init/model.safetensors").unlink()
    again = train(config)
    assert again.history == second.history


@pytest.mark.slow
def test_a_network_that_does_not_fit_is_refused_by_the_command_before_a_cluster_starts(
    videos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    shards = write_shards(videos, tmp_path / "shards", short_side_px=48).uri
    monkeypatch.setattr("twostream_ray.runs.cluster.session.ray_session", lambda: pytest.fail("a cluster is started"))
    source = trained(tmp_path / "epoch-0001", package())
    command = ["train", "--name", "run", "--data.shards", shards, "--storage", str(tmp_path / "runs")]
    command += ["--model.architecture", "late", "--tracking.uri", f"sqlite:///{tmp_path}/mlflow.db", "--init", source]
    assert main(command) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert f"init={source} differs from the network to train" in line
