import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from mlflow_server import MlflowServer
from noise_shards import noise_shards

from twostream_ray.cli import main
from twostream_ray.data.flow import FlowContract
from twostream_ray.data.loading.settings import DataConfig
from twostream_ray.data.sampling import SamplingConfig
from twostream_ray.data.shards.shards import ShardSet, open_shards
from twostream_ray.data.sources.catalog import CatalogConfig
from twostream_ray.data.sources.synthetic import SyntheticConfig, synthesize
from twostream_ray.data.transforms import TransformConfig
from twostream_ray.errors import ConfigError
from twostream_ray.models.settings import FusionConfig, ModelConfig, TowerConfig
from twostream_ray.runs.experiment import ExperimentConfig, with_absolute_uris
from twostream_ray.runs.ingest import ingest
from twostream_ray.runs.score import challenge
from twostream_ray.runs.score.challenge import require_same_classes
from twostream_ray.runs.score.publish import Published, prepare_run, train_and_publish
from twostream_ray.runs.settings import IngestConfig
from twostream_ray.runs.workers import WorkersConfig
from twostream_ray.settings.parser import from_arguments
from twostream_ray.tracking import TrackingConfig, find_version, registered_classes
from twostream_ray.tracking.connection import client_for
from twostream_ray.tracking.measurement import measurements_in
from twostream_ray.training.settings import TrainingConfig

TOWER = TowerConfig(backbone="vgg_small", width=4, dropout=0.0)


@pytest.fixture(scope="module")
def mlflow_uri(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    server = MlflowServer(tmp_path_factory.mktemp("server"))
    server.start()
    try:
        yield server.uri
    finally:
        server.kill()


class Kitchen:
    """A person's own folder of videos, its shards, and what is trained on them."""

    def __init__(self, folder: Path, uri: str) -> None:
        self.folder, self.videos, self.shards = folder, folder / "videos", str(folder / "shards")
        self.tracking = TrackingConfig(uri=uri)
        self.client = client_for(uri)
        made = folder / "made"
        synthesize(SyntheticConfig(train_clips=12, val_clips=0, test_clips=8, size_px=48), made, workers=1)
        for clip in made.rglob("*.avi"):
            self.add(clip, to=clip.parent.name, name=f"{clip.parent.parent.name}-{clip.name}")

    def add(self, clip: Path, *, to: str, name: str) -> None:
        path = self.videos / to / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(clip.read_bytes())

    def clips(self) -> list[Path]:
        return sorted(self.videos.rglob("*.avi"))

    def ingest(self) -> ShardSet:
        catalog = CatalogConfig(root=str(self.videos), name="kitchen", split=(0.6, 0.4))
        ingest(IngestConfig(catalog=catalog, out=self.shards, flow=FlowContract(short_side_px=48)))
        return open_shards(self.shards)

    def experiment(self, name: str, **change: Any) -> ExperimentConfig:
        sampling = SamplingConfig(num_snippets=1, min_stride_frames=1, max_stride_frames=1, test_times=1, flow_length=4)
        transforms = TransformConfig(crop_px=48, size_jitter=0.0)
        return replace(
            ExperimentConfig(
                name=name,
                data=DataConfig(shards=self.shards, sampling=sampling, transforms=transforms),
                model=ModelConfig(
                    spatial=TOWER,
                    temporal=TOWER,
                    fusion=FusionConfig(method="sum", layers=("relu4",), temporal="pool2d"),
                ),
                training=TrainingConfig(epochs=1, global_batch=8, learning_rate=0.01),
                workers=WorkersConfig(num_workers=1),
                storage=str(self.folder / "runs"),
                tracking=self.tracking,
            ),
            **change,
        )

    def train(self, name: str) -> Published:
        published = train_and_publish(self.experiment(name)).published
        assert published is not None
        return published

    def runs(self) -> list[Any]:
        return list(self.client.search_runs([self.client.get_experiment_by_name("twostream").experiment_id]))

    def measured(self, version: int) -> dict[str, str]:
        """Manifest -> "n of N"."""
        tags = self.client.get_model_version("kitchen", str(version)).tags
        return {found.manifest_hash: found.n_of_n() for found in measurements_in(tags)}


@pytest.mark.timeout(600)
def test_a_champion_is_decided_on_the_new_data_once_a_clip_has_been_added(
    cluster: None, mlflow_uri: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    kitchen = Kitchen(tmp_path, mlflow_uri)
    before = kitchen.ingest()
    first = kitchen.train("first")
    assert (first.name, first.version) == ("kitchen", 1)
    assert first.verdict == "version 1 is champion: the model had none"
    of_before = f"{len(before.split('test'))} of {len(before.split('test'))}"
    assert kitchen.measured(1) == {before.hash: of_before}

    clip = kitchen.clips()[0]
    kitchen.add(clip, to=clip.parent.name, name="new.avi")
    after = kitchen.ingest()
    assert after.hash != before.hash and len(after.index) == len(before.index) + 1
    of_after = f"{len(after.split('test'))} of {len(after.split('test'))}"
    second = kitchen.train("second")
    assert second.version == 2 and second.verdict is not None
    assert f"of version 1 on {of_after} clips, split test of manifest {after.hash[:12]}" in second.verdict
    assert kitchen.measured(1) == {before.hash: of_before, after.hash: of_after}
    assert kitchen.measured(2) == {after.hash: of_after}
    _, champion = find_version("models:/kitchen@champion", config=kitchen.tracking)
    decided = "version 2 is champion: top1" if champion == 2 else "version 2 is challenger: top1"
    assert second.verdict.startswith(decided)

    # What the runs' pages hold.
    runs = {run.info.run_name: run for run in kitchen.runs()}
    assert runs.keys() == {"first", "second", "evaluate models:/kitchen/1 on test"}
    for name, shard_set in (("first", before), ("second", after)):
        clips = {split: len(shard_set.split(split)) for split in ("train", "test")}
        (given,) = runs[name].inputs.dataset_inputs
        assert (given.dataset.name, given.dataset.digest) == ("kitchen", shard_set.hash[:36])
        assert json.loads(given.dataset.profile)["clips"] == clips
        files = {file.path for file in kitchen.client.list_artifacts(runs[name].info.run_id)}
        assert files == {"recipe.yaml", "report.json", "results.html", "per_class.csv", "per_clip.csv", "pictures"}
        page = runs[name].data.tags["mlflow.note.content"]
        assert (
            "**Result.** Top-1" in page
            and f"{clips['test']} of {clips['test']} clips" in page
            and "**Registered.**" in page
        )
    recipe = kitchen.client.download_artifacts(runs["second"].info.run_id, "recipe.yaml", str(tmp_path))
    again = from_arguments(ExperimentConfig, ["--config", recipe])
    assert again == with_absolute_uris(kitchen.experiment("second"))
    of_champion = runs["evaluate models:/kitchen/1 on test"]
    assert of_champion.data.tags["mlflow.parentRunId"] == runs["second"].info.run_id
    assert of_champion.inputs.dataset_inputs[0].dataset.digest == after.hash[:36]

    # The commands record and decide too.
    where = ["--tracking.uri", mlflow_uri]
    out = str(tmp_path / "evaluation")
    evaluated = ["evaluate", "--model", "models:/kitchen@champion", "--shards", kitchen.shards, "--split", "train"]
    assert main([*evaluated, "--out", out, *where]) == 0
    assert "recorded split train in the registry for models:/kitchen@champion" in capsys.readouterr().out
    assert main(["promote", "--split", "test", *where, "--tracking.model_name", "kitchen"]) == 0
    assert "version 2 is ch" in capsys.readouterr().out

    # Other classes are another model, which is said before anything is trained.
    require_same_classes(kitchen.experiment("third"), open_shards(kitchen.shards))
    for name in ("a.avi", "b.avi"):
        kitchen.add(clip, to="another class", name=name)
    kitchen.ingest()
    with pytest.raises(ConfigError, match=r"registered model kitchen has 4 classes .* has 5 classes .*model_name"):
        prepare_run(kitchen.experiment("third"), open_shards(kitchen.shards))
    assert not (tmp_path / "runs/third").exists()
    renamed = TrackingConfig(uri=mlflow_uri, model_name="kitchen with a door")
    require_same_classes(kitchen.experiment("third", tracking=renamed), open_shards(kitchen.shards))
    assert registered_classes("kitchen with a door", config=renamed) is None


def test_a_registry_that_is_away_or_empty_keeps_nothing_from_training(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from types import SimpleNamespace

    data = DataConfig(shards="s")
    shard_set: Any = SimpleNamespace(data_set="kitchen", classes=("a",), uri="s")
    for uri in (f"sqlite:///{tmp_path}/none.db", "http://127.0.0.1:9"):
        require_same_classes(ExperimentConfig(name="a", data=data, tracking=TrackingConfig(uri=uri)), shard_set)
    assert not (tmp_path / "none.db").exists()


def test_a_champion_is_not_scored_on_clips_that_it_was_trained_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    shard_set = noise_shards("shards", rows=(8, 9), num_fields=3, splits=("train", "test"))
    for split, given in (("train", "train"), ("train.validation-0.5", "train")):
        wanted = rf"models:/m/1 was trained on \d+ of the {len(shard_set.split(split))} clips of {split}"
        with pytest.raises(ConfigError, match=wanted):
            challenge._refuse_trained_on({"train_split": given}, shard_set, model="models:/m/1", split=split)
    challenge._refuse_trained_on({}, shard_set, model="models:/m/1", split="train")
    challenge._refuse_trained_on(
        {"train_split": "train.training-0.5"}, shard_set, model="models:/m/1", split="train.validation-0.5"
    )
