import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from begun_runs import begun, experiment, ingested, search, with_checkpoint

from twostream_ray import storage
from twostream_ray.data.loading.settings import DataConfig
from twostream_ray.data.shards.shards import ShardSet
from twostream_ray.errors import ConfigError, LeaseError, ShardError, TwoStreamError
from twostream_ray.runs.experiment import ExperimentConfig, fixed_settings
from twostream_ray.runs.run_folder import RunFolder, SearchFolder
from twostream_ray.runs.search.ray_tune import tune
from twostream_ray.runs.search.settings import SearchConfig
from twostream_ray.runs.train.run import train
from twostream_ray.runs.workers import WorkersConfig
from twostream_ray.storage import lease
from twostream_ray.training.settings import TrainingConfig

Ingest = Callable[..., ShardSet]


def test_every_split_is_looked_for_before_anything_starts_and_the_evaluations_may_be_mended(tmp_path: Path) -> None:
    ingested(tmp_path / "shards", splits=("train", "val", "holdout"))
    config = experiment(tmp_path)
    with pytest.raises(
        ShardError, match=r"has no split 'test', it has .*holdout, train, val: give --data.test_split SPLIT"
    ):
        train(config)
    assert not (tmp_path / "runs/run").exists()
    begun(tmp_path, finished=True)
    assert train(replace(config, data=replace(config.data, test_split="holdout"))).done_before
    with pytest.raises(ShardError, match=r"has no split 'dev', .*: give --data.validation_split val "):
        train(replace(config, data=replace(config.data, validation_split="dev")))


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"workers": WorkersConfig(num_workers=9)}, r"9 workers want at least as many data.lanes, got 8"),
        ({"workers": WorkersConfig(num_workers=(1, 12))}, r"12 workers want at least as many data.lanes, got 8"),
        ({"training": TrainingConfig(global_batch=12)}, r"global_batch must be a multiple of data.lanes \(8\), got 12"),
    ],
)
def test_workers_and_batches_that_lanes_cannot_serve_are_refused_before_anything_starts(
    tmp_path: Path, change: dict[str, Any], expected: str
) -> None:
    ingested(tmp_path / "shards")
    with pytest.raises(ConfigError, match=expected):
        train(experiment(tmp_path, **change))
    assert not (tmp_path / "runs/run").exists()


@pytest.mark.parametrize("name", ["notes.txt", "report.json", "search.json", "data/manifest.json"])
def test_a_folder_that_holds_something_else_is_not_begun_in(tmp_path: Path, name: str) -> None:
    ingested(tmp_path / "shards")
    for work, config in (("run", experiment(tmp_path)), ("search", search(tmp_path))):
        if (work, name) == ("search", "search.json"):
            continue
        file = tmp_path / "runs" / work / name
        file.parent.mkdir(parents=True)
        file.write_text("mine")
        with pytest.raises(
            ConfigError, match=rf"{work} '{work}' needs the folder .* for itself, but it has {name[:4]}"
        ):
            train(config) if work == "run" else tune(config)
        assert [path for path in file.parents[len(Path(name).parts) - 1].rglob("*") if path.is_file()] == [file]
        assert file.read_text() == "mine"


def test_a_second_run_of_the_name_is_refused_naming_the_first(tmp_path: Path) -> None:
    ingested(tmp_path / "shards")
    for work, config in (("run", experiment(tmp_path)), ("search", search(tmp_path))):
        with lease.held(str(tmp_path / "runs" / work), work=f"{work} '{work}'", way_out="wait"):
            with pytest.raises(LeaseError, match=r"which is in use by .* since .*: wait for it or end it, or choose"):
                train(config) if work == "run" else tune(config)
            assert [path.name for path in (tmp_path / "runs" / work).iterdir()] == [lease.FILE]


DAMAGE = [b"", b"{", b"[]", b"null", b'{"name": 1, "data": {}}', b"[" * 100_000, b"\xff\xfe", b'{"a": 1, "a": 2}']


@pytest.mark.parametrize("content", DAMAGE, ids=range(len(DAMAGE)))
@pytest.mark.parametrize("name", ["experiment.json", "report.json"])
def test_a_damaged_file_of_a_run_is_named_in_one_line_with_the_way_out(
    tmp_path: Path, name: str, content: bytes
) -> None:
    ingested(tmp_path / "shards")
    config = begun(tmp_path, finished=True)
    (tmp_path / "runs/run" / name).write_bytes(content)
    with pytest.raises(ConfigError, match=rf"was wanted at {tmp_path}/runs/run/{name}, .*: (choose|delete)") as raised:
        train(config)
    assert "\n" not in str(raised.value) and len(str(raised.value)) < 600


@pytest.mark.parametrize("checkpoint", ["/etc", "s3://other/x", "../../epoch-0000/..", "x" * 99, "epoch-1\n"])
def test_a_report_that_names_another_place_than_its_checkpoints_is_refused(tmp_path: Path, checkpoint: str) -> None:
    ingested(tmp_path / "shards")
    config = begun(tmp_path, finished=True)
    report = tmp_path / "runs/run/report.json"
    report.write_text(json.dumps(json.loads(report.read_text()) | {"checkpoint": checkpoint}))
    with pytest.raises(TwoStreamError, match=r"its checkpoint wants a text like"):
        train(config)


def test_a_run_whose_folder_was_moved_finds_its_checkpoint(tmp_path: Path) -> None:
    ingested(tmp_path / "shards")
    config = begun(tmp_path, finished=True)
    (tmp_path / "runs").rename(tmp_path / "moved")
    moved = train(replace(config, storage=str(tmp_path / "moved")))
    assert moved.checkpoint == f"{tmp_path}/moved/run/epoch-0000"


def test_a_run_of_before_keeps_what_it_wrote_down_in_place_of_auto(tmp_path: Path) -> None:
    """Earlier versions wrote float32, false and false where the settings say auto today."""
    written = TrainingConfig(precision="float32", channels_last=False, compile=False)
    began = ExperimentConfig(name="a", data=DataConfig(shards="s"), training=written, storage=str(tmp_path))
    folder = RunFolder.of(began)
    storage.write_json(folder.settings, fixed_settings(began))
    with_checkpoint(tmp_path / "a")
    now = folder.keeping_device_settings(replace(began, training=TrainingConfig()))
    assert now.training == written and folder.begun_with(fixed_settings(now))
    other = folder.keeping_device_settings(replace(began, training=TrainingConfig(precision="bfloat16")))
    with pytest.raises(ConfigError, match=r"training.precision=float32, now training.precision=bfloat16 is requested"):
        folder.begun_with(fixed_settings(other))


def test_a_run_may_get_more_epochs_but_not_fewer_and_a_search_neither(tmp_path: Path) -> None:
    config = experiment(tmp_path)
    epochs = 3

    def asked(number: int) -> dict[str, Any]:
        return fixed_settings(replace(config, training=replace(config.training, epochs=number)))

    run = RunFolder.of(config)
    search = SearchFolder(uri=str(tmp_path / "search"), what="search 's'")
    for folder in (run, search):
        storage.write_json(folder.settings, asked(epochs))
        storage.write_bytes(folder.checkpoint("epoch-0000/state.json"), b"{}")
    assert run.begun_with(asked(epochs + 5))
    with pytest.raises(ConfigError, match=rf"epochs={epochs}, got {epochs - 1}: a run may get more epochs"):
        run.begun_with(asked(epochs - 1))
    with pytest.raises(ConfigError, match=rf"started with training\.epochs={epochs}, now"):
        search.begun_with(asked(epochs + 5))
    with pytest.raises(ConfigError, match="seed"):
        run.begun_with(asked(epochs + 5) | {"seed": 99})


@pytest.mark.slow
def test_a_finished_run_that_gets_more_epochs_is_an_unfinished_one_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    ingested(tmp_path / "shards")
    asked: list[int] = []

    def trained(config: ExperimentConfig, *_: Any, **__: Any) -> tuple[str, list[dict[str, float]]]:
        asked.append(config.training.epochs)
        history = [{"epoch": float(epoch), "val_top1": 1 / (1 + epoch)} for epoch in range(config.training.epochs)]
        return f"{config.storage}/{config.name}/epoch-{config.training.epochs - 1:04d}", history

    monkeypatch.setattr("twostream_ray.runs.train.run.train_with_worker_group", trained)
    config = experiment(tmp_path)
    folder = RunFolder.of(config)

    def epochs(number: int, **change: Any) -> ExperimentConfig:
        return replace(config, training=replace(config.training, epochs=number, **change))

    train(epochs(2))
    storage.write_json(folder.published, {"version": 1, "verdict": "champion"})
    assert train(epochs(2)).done_before and asked == [2]
    assert len(train(epochs(4)).history) == 4 and asked == [2, 4]
    assert not storage.exists(folder.published), "it is evaluated and registered once more"
    (line,) = [text for text in caplog.messages if "is trained to" in text]
    assert line.startswith(
        "run 'run' was finished with 2 epochs and is trained to 4: the learning rate continues at 0.001"
    )
    assert train(epochs(4)).done_before and asked == [2, 4]
    with pytest.raises(ConfigError, match=r"training\.epochs=4, got 2: a run may get more epochs under"):
        train(epochs(2))

    # More epochs would end at once where the run had lost its patience.
    config = experiment(tmp_path, name="patient")
    train(epochs(3, patience_epochs=2))
    assert train(epochs(9, patience_epochs=2)).done_before and asked == [2, 4, 3]


def test_a_run_that_began_with_auto_resumes_with_auto_on_any_device(tmp_path: Path) -> None:
    began = ExperimentConfig(name="a", data=DataConfig(shards="s"), storage=str(tmp_path))
    folder = RunFolder.of(began)
    storage.write_json(folder.settings, fixed_settings(began))
    with_checkpoint(tmp_path / "a")
    assert folder.keeping_device_settings(began) == began and folder.begun_with(fixed_settings(began))


def test_what_has_learnt_nothing_binds_its_name_to_nothing(tmp_path: Path) -> None:
    first = ingested(tmp_path / "shards")
    config = experiment(tmp_path)
    folder = RunFolder.of(config)
    storage.write_json(folder.settings, fixed_settings(config))
    folder.keep_data(first)
    other = replace(config, training=TrainingConfig(epochs=1, global_batch=8, momentum=0.5))
    now = ingested(tmp_path / "shards", classes=("a", "b", "c"), clips=range(6))
    assert not folder.has_checkpoint() and not folder.begun_with(fixed_settings(other))
    assert folder.data_of(config.data.shards).hash == now.hash
    assert folder.is_another(fixed_settings(other), first) and folder.is_another(fixed_settings(config), now)
    assert not folder.is_another(fixed_settings(config), first)
    folder.keep_data(now)
    assert not folder.is_another(fixed_settings(config), now)
    kept = folder.stored_data(shards=config.data.shards)
    assert kept is not None and kept.hash == now.hash
    with_checkpoint(tmp_path / "runs/run")
    with pytest.raises(
        ConfigError, match=r"run 'run' was started with training.momentum=0.9, now training.momentum=0.5"
    ):
        folder.begun_with(fixed_settings(other))
    assert not folder.is_another(fixed_settings(other), now)


def test_a_setting_that_a_run_s_version_did_not_have_had_its_default(tmp_path: Path) -> None:
    config = experiment(tmp_path)
    folder = RunFolder.of(config)
    written = fixed_settings(config)
    del written["training"]["optimiser"], written["model"]["temporal"]["frozen_through"], written["init"]
    storage.write_json(folder.settings, written)
    with_checkpoint(tmp_path / "runs/run")
    assert folder.begun_with(fixed_settings(config))
    other = replace(config, training=replace(config.training, optimiser="adamw"))
    with pytest.raises(ConfigError, match=r"started with training\.optimiser=sgd, now training\.optimiser=adamw"):
        folder.begun_with(fixed_settings(other))


def test_a_search_none_of_whose_trials_has_ended_an_epoch_binds_its_name_to_nothing(tmp_path: Path) -> None:
    from twostream_ray.runs.search.search import Search

    shard_set, config = ingested(tmp_path / "shards"), search(tmp_path)
    failed = Search(config, shard_set)
    failed.propose_first()
    failed.trials.put(replace(failed.trials.records[0], status="failed", reason="no such weights"))
    other = replace(config, search=SearchConfig(space={"training.momentum": [0.5, 0.9]}))
    again = Search(other, shard_set)
    assert not again.trials.records
    again.propose_first()
    again.trials.end_epoch(0, {"epoch": 0, "val_top1": 0.5}, seconds=1.0)
    with pytest.raises(ConfigError, match=r"search 'search' was started with search\.space"):
        Search(config, shard_set)
