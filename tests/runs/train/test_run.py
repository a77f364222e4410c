import hashlib
import json
import os
import shutil
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest

from twostream_ray.data.flow import FlowContract
from twostream_ray.data.loading.settings import DataConfig
from twostream_ray.data.sampling import SamplingConfig
from twostream_ray.data.shards.shards import ShardSet
from twostream_ray.data.transforms import TransformConfig
from twostream_ray.errors import ConfigError, ContractMismatchError, ShardError, StorageError, TrainingError
from twostream_ray.inference import Classifier
from twostream_ray.models.settings import FusionConfig, ModelConfig, TowerConfig
from twostream_ray.runs.experiment import ExperimentConfig
from twostream_ray.runs.score.evaluate import evaluate
from twostream_ray.runs.score.publish import publish_run, published_before
from twostream_ray.runs.score.score_table import read_table
from twostream_ray.runs.score.settings import EvaluateConfig
from twostream_ray.runs.train import run as train_module
from twostream_ray.runs.train import worker_group
from twostream_ray.runs.train.checkpoints import epoch_of
from twostream_ray.runs.train.events import EpochEnded, ProgressEvent, StepEnded, WorkersLost
from twostream_ray.runs.train.run import train
from twostream_ray.runs.train.worker import train_worker
from twostream_ray.runs.workers import WorkersConfig
from twostream_ray.tracking import TrackingConfig
from twostream_ray.tracking.connection import client_for
from twostream_ray.training.settings import TrainingConfig

# No batch normalisation and no dropout: then a step does not depend on how the batch is shared out.
TOWER = TowerConfig(backbone="vgg_m_2048", width=4, dropout=0.0)

ONE_WORKER = WorkersConfig(num_workers=1)
"""For what two would not show: each takes seconds to start."""


def experiment(shard_set: ShardSet, folder: Path, **change: Any) -> ExperimentConfig:
    return replace(
        ExperimentConfig(
            name="run",
            data=DataConfig(
                shards=shard_set.uri,
                validation_split="val",
                sampling=SamplingConfig(
                    num_snippets=1, min_stride_frames=1, max_stride_frames=1, test_times=2, flow_length=4
                ),
                transforms=TransformConfig(crop_px=224, size_jitter=0.0),
            ),
            model=ModelConfig(
                spatial=TOWER,
                temporal=TOWER,
                fusion=FusionConfig(method="conv", layers=("relu5",), temporal="pool2d"),
            ),
            training=TrainingConfig(epochs=2, global_batch=16, learning_rate=0.01, schedule="constant"),
            storage=str(folder / "runs"),
            tracking=TrackingConfig(uri=f"sqlite:///{folder}/mlflow.db", register=False),
            seed=5,
        ),
        **change,
    )


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("training")


@pytest.fixture(scope="module")
def two_workers(cluster: None, shard_set: ShardSet, folder: Path) -> tuple[train_module.TrainReport, dict[str, str]]:
    """A run on 2 workers, and the digest of each rank's weights at its end."""
    config = experiment(shard_set, folder, name="two")
    digests = folder / "digests"
    digests.mkdir()

    def probed(arguments: dict[str, Any]) -> None:
        import ray.train

        network = train_worker(arguments)
        digest = hashlib.sha256()
        for name, tensor in sorted(network.state_dict().items()):
            digest.update(name.encode() + tensor.numpy().tobytes())
        (digests / str(ray.train.get_context().get_world_rank())).write_text(digest.hexdigest())

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(worker_group, "train_worker", probed)
        report = train(config)
    return report, {path.name: path.read_text() for path in digests.iterdir()}


def test_a_fraction_of_the_training_split_is_scored_and_not_trained_on(
    cluster: None, shard_set: ShardSet, folder: Path
) -> None:
    config = experiment(shard_set, folder, name="cut", workers=ONE_WORKER)
    data = replace(config.data, validation_split=None, validation_fraction=0.25)
    report = train(replace(config, data=data, training=replace(config.training, epochs=1)))
    trained, validated = (len(shard_set.split(split)) for split in (data.split_to_train, str(data.split_to_validate)))
    assert trained + validated == len(shard_set.split("train")) and validated
    (epoch,) = report.history
    assert (epoch["train_decoded_clips"], epoch["val_decoded_clips"]) == (trained, validated)


def test_both_ranks_end_with_identical_weights(two_workers: tuple[Any, dict[str, str]]) -> None:
    _, digests = two_workers
    assert digests.keys() == {"0", "1"}
    assert digests["0"] == digests["1"]


def test_one_worker_with_the_doubled_batch_gives_the_same_losses(
    two_workers: tuple[Any, Any], shard_set: ShardSet, folder: Path
) -> None:
    alone = train(experiment(shard_set, folder, name="one", workers=ONE_WORKER))
    for name in ("train_loss", "train_loss_fused", "train_loss_temporal", "val_loss", "train_top1"):
        expected = [metrics[name] for metrics in two_workers[0].history]
        assert [metrics[name] for metrics in alone.history] == pytest.approx(expected, abs=1e-4)
    assert len({metrics["train_loss"] for metrics in alone.history}) == 2


@pytest.mark.parametrize("num_workers", [1, pytest.param(2, marks=pytest.mark.soak)])
def test_the_validation_top1_of_the_kept_checkpoint_is_what_evaluate_says_of_it(
    num_workers: int, cluster: None, shard_set: ShardSet, folder: Path
) -> None:
    config = experiment(shard_set, folder, name=f"kept-{num_workers}", workers=WorkersConfig(num_workers=num_workers))
    sampling = replace(config.data.sampling, test_times=5)
    # 20 clips in 3 lanes of 7, 7 and 6, the second worker's share smaller: `test` as what is validated.
    data = replace(config.data, sampling=sampling, lanes=3, validation_split="test", test_split="val")
    data = replace(data, transforms=TransformConfig(crop_px=48, size_jitter=0.0))
    small = TowerConfig(backbone="vgg_small", width=4, dropout=0.0)
    fusion = FusionConfig(method="conv", layers=("relu3",), temporal="pool2d")
    model = replace(config.model, spatial=small, temporal=small, fusion=fusion)
    training = replace(config.training, global_batch=6, epochs=3)
    trained = train(replace(config, data=data, model=model, training=training))
    evaluated = evaluate(
        EvaluateConfig(
            model=trained.checkpoint,
            shards=shard_set.uri,
            split="test",
            out=str(folder / config.name),
            tracking=config.tracking,
            workers=ONE_WORKER,
        )
    )
    kept = trained.history[epoch_of(trained.checkpoint)]
    assert kept["val_top1"] == max(metrics["val_top1"] for metrics in trained.history)
    assert kept["val_top1"] == evaluated.report.top1
    assert (kept["val_clips"], kept["val_clips_expected"]) == (20, evaluated.report.n_expected)


def test_a_finished_run_is_not_trained_again(two_workers: tuple[Any, Any], shard_set: ShardSet, folder: Path) -> None:
    again = train(experiment(shard_set, folder, name="two"))
    assert again.done_before
    assert (again.checkpoint, again.history) == (two_workers[0].checkpoint, two_workers[0].history)


def test_a_run_whose_snapshot_was_cut_and_whose_report_is_gone_goes_on_from_its_checkpoints(
    two_workers: tuple[Any, Any], shard_set: ShardSet, folder: Path, tmp_path: Path
) -> None:
    shutil.copytree(folder / "runs/two", tmp_path / "runs/two")
    (tmp_path / "runs/two/report.json").unlink()
    snapshot = tmp_path / "runs/two/checkpoint_manager_snapshot.json"
    snapshot.write_bytes(snapshot.read_bytes()[:-40])
    events: list[ProgressEvent] = []
    config = experiment(shard_set, folder, name="two", storage=str(tmp_path / "runs"))
    again = train(replace(config, workers=ONE_WORKER), progress=events.append)
    assert again.history == two_workers[0].history
    assert Path(again.checkpoint).name == Path(two_workers[0].checkpoint).name
    assert not [event for event in events if isinstance(event, EpochEnded)], "nothing is done twice"


@pytest.mark.soak
def test_a_finished_run_gets_more_epochs_as_one_that_was_asked_for_them_at_once(
    two_workers: tuple[Any, Any], shard_set: ShardSet, folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    config = experiment(shard_set, folder, name="more", workers=WorkersConfig(num_workers=1))
    shorter = replace(config, training=replace(config.training, epochs=1))
    publish_run(shorter, train(shorter))
    assert published_before(shorter)
    report = train(config)
    for name in ("train_loss", "val_loss", "val_top1", "learning_rate"):
        expected = [metrics[name] for metrics in two_workers[0].history]
        assert [metrics[name] for metrics in report.history] == pytest.approx(expected, abs=1e-4)
    assert not report.done_before and not published_before(config), "it is evaluated and registered once more"
    (line,) = [text for text in caplog.messages if "is trained to" in text]
    assert line == (
        "run 'more' was finished with 1 epochs and is trained to 2: the learning rate continues at 0.01, by "
        "training.schedule=constant for a run of 2 epochs"
    )
    assert train(config).done_before
    with pytest.raises(ConfigError, match=r"was started with training\.epochs=2, got 1: a run may get more"):
        train(shorter)


def test_the_same_name_with_other_settings_is_refused(
    two_workers: tuple[Any, Any], shard_set: ShardSet, folder: Path
) -> None:
    with pytest.raises(
        ConfigError, match="run 'two' was started with seed=5, now seed=6 is requested: choose another --name"
    ):
        train(experiment(shard_set, folder, name="two", seed=6))


def test_evaluation_is_exact_and_says_n_of_n(two_workers: tuple[Any, Any], shard_set: ShardSet, folder: Path) -> None:
    config = experiment(shard_set, folder, name="two")
    assert not published_before(config)
    published = publish_run(config, two_workers[0])
    assert published_before(config)
    evaluation = published.evaluation
    assert evaluation.report.coverage == "20 of 20 clips"
    assert evaluation.logits.shape == (20, 4)
    run_folder = Path(config.storage) / "two/evaluation"
    table = read_table(str(run_folder))
    assert json.loads((run_folder / "report.json").read_text())["top1"] == evaluation.report.top1
    clips = table.logits.mean(axis=(1, 2), dtype=np.float64)
    assert (clips.argmax(axis=1) == table.labels).mean() == evaluation.report.top1
    assert table.clip_ids.tolist() == list(evaluation.clip_ids)
    assert (run_folder / "confusion.png").stat().st_size > 5000 and (run_folder / "curves.png").stat().st_size > 5000


def test_raw_video_gets_the_scores_that_evaluation_gives_its_shard(
    two_workers: tuple[Any, Any], shard_set: ShardSet, videos: Path, tmp_path: Path
) -> None:
    config = EvaluateConfig(
        model=two_workers[0].checkpoint, shards=shard_set.uri, out=str(tmp_path), workers=ONE_WORKER
    )
    evaluation = evaluate(config)
    classifier = Classifier.load(Path(two_workers[0].checkpoint))
    chosen = range(0, 20, 5)
    predictions = classifier.predict([videos / evaluation.clip_ids[number] for number in chosen])
    for number, prediction in zip(chosen, predictions, strict=True):
        (head,) = prediction.heads
        np.testing.assert_allclose(head.logits, evaluation.logits[number], atol=1e-5)
        np.testing.assert_allclose(head.probabilities, evaluation.probabilities[number], atol=1e-5)


def test_flow_of_another_kind_is_refused_naming_both(
    two_workers: tuple[Any, Any], shard_set: ShardSet, tmp_path: Path
) -> None:
    copy = tmp_path / "shards"
    shutil.copytree(shard_set.uri, copy)
    manifest = json.loads((copy / "manifest.json").read_text())
    manifest["flow_contract"]["bound_px"] = 15.0
    manifest["flow_contract_hash"] = FlowContract.from_dict(manifest["flow_contract"]).hash
    (copy / "manifest.json").write_text(json.dumps(manifest))
    config = EvaluateConfig(model=two_workers[0].checkpoint, shards=str(copy), out=str(tmp_path / "out"))
    with pytest.raises(ContractMismatchError, match=r"wants flow bound_px 20.0; .* has bound_px 15.0: ingest again"):
        evaluate(config)


def test_mlflow_holds_one_run_with_every_epoch_once(two_workers: tuple[Any, Any], folder: Path) -> None:
    client = client_for(f"sqlite:///{folder}/mlflow.db")
    experiment_id = client.get_experiment_by_name("twostream").experiment_id
    runs = [run for run in client.search_runs([experiment_id]) if run.info.run_name == "two"]
    assert len(runs) == 1 and runs[0].info.status == "FINISHED"
    assert runs[0].data.params["model.fusion.method"] == "conv"
    steps = [metric.step for metric in client.get_metric_history(runs[0].info.run_id, "train_loss")]
    assert sorted(steps) == [0, 1]


def test_a_settings_error_that_a_worker_meets_ends_the_run_at_once_and_binds_its_name_to_nothing(
    cluster: None, shard_set: ShardSet, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    missing = f"/{'deep/' * 60}weights.safetensors"
    training = TrainingConfig(epochs=1, global_batch=16)
    wrong = experiment(shard_set, folder, name="mended", training=training, workers=ONE_WORKER)
    model = replace(wrong.model, spatial=replace(TOWER, weights=missing))
    events: list[ProgressEvent] = []
    with monkeypatch.context() as patch:
        # As if the file were there for the driver alone.
        patch.setattr(train_module, "require_trainable", lambda *_, **__: None)
        with pytest.raises(StorageError, match=f"{missing}.*it does not exist; check the path"):
            train(replace(wrong, model=model), progress=events.append)
    assert not [event for event in events if isinstance(event, WorkersLost)]
    report = train(wrong)
    assert len(report.history) == 1
    client = client_for(report.run.tracking_uri)
    runs = client.search_runs([report.run.experiment_id], filter_string="attributes.run_name = 'mended'")
    failed, mended = sorted(runs, key=lambda run: int(run.info.start_time))
    assert (failed.info.status, mended.info.status) == ("FAILED", "FINISHED")
    assert missing in failed.data.tags["failure"] and "failure" not in mended.data.tags
    assert (failed.data.params["model.spatial.weights"], mended.data.params["model.spatial.weights"]) == (
        missing,
        "None",
    )


def test_an_unknown_split_is_refused_before_anything_starts(shard_set: ShardSet, folder: Path) -> None:
    config = experiment(shard_set, folder, name="nosplit")
    with pytest.raises(ShardError, match="has no split 'dev'"):
        train(replace(config, data=replace(config.data, train_split="dev")))


def test_a_network_gets_a_head_for_each_data_set_of_its_shards(shard_set: ShardSet, folder: Path) -> None:
    config = experiment(shard_set, folder)
    heads = (
        train_module.package_for(config, replace(shard_set, head_classes=(3, 1))).build(pretrained=False).head_classes
    )
    assert heads == (3, 1)
    assert train_module.package_for(config, shard_set).build(pretrained=False).head_classes == (4,)
    other = replace(config, model=replace(config.model, head_classes=(1, 3)))
    with pytest.raises(ConfigError, match=r"head_classes is \[1, 3\], but the data sets of .* have \[3, 1\] classes"):
        train_module.package_for(other, replace(shard_set, head_classes=(3, 1)))


def test_crops_too_small_for_the_network_are_refused_before_anything_starts(shard_set: ShardSet, folder: Path) -> None:
    config = experiment(shard_set, folder, name="toosmall")
    small = replace(config, data=replace(config.data, transforms=TransformConfig(crop_px=32)))
    with pytest.raises(ConfigError, match=r"data.transforms.crop_px=32 does not fit vgg_m_2048"):
        train(small)


@pytest.mark.soak
@pytest.mark.timeout(400)
def test_a_run_killed_within_an_epoch_goes_on_there_with_another_number_of_workers_and_ends_as_an_undisturbed_one(
    two_workers: tuple[Any, Any], shard_set: ShardSet, folder: Path
) -> None:
    config = experiment(shard_set, folder, name="killed", workers=WorkersConfig(checkpoint_every_steps=1))
    run_folder = Path(config.storage) / "killed"
    script = folder / "killed.py"
    script.write_text(
        "import pickle, sys\nfrom twostream_ray.runs.train.run import train\n"
        "train(pickle.load(open(sys.argv[1], 'rb')))\n"
    )
    import pickle

    (folder / "killed.pickle").write_bytes(pickle.dumps(config))
    process = subprocess.Popen(
        [sys.executable, str(script), str(folder / "killed.pickle")],
        stderr=subprocess.DEVNULL,
        start_new_session=True,
        env=dict(os.environ),
    )
    registered = run_folder / "checkpoint_manager_snapshot.json"
    while not (registered.exists() and "epoch-0001-step-" in registered.read_text()):
        assert process.poll() is None
        time.sleep(0.01)
    # All its processes at once, as when a machine loses power: Ray's would run for a while without their driver.
    for one in [*psutil.Process(process.pid).children(recursive=True), psutil.Process(process.pid)]:
        one.kill()
    process.wait()
    assert not (run_folder / "report.json").exists()
    assert not (run_folder / "epoch-0001").exists(), "killed within the epoch"
    events: list[ProgressEvent] = []
    resumed = train(replace(config, workers=WorkersConfig(num_workers=1)), progress=events.append)
    steps = [(event.epoch, event.step) for event in events if isinstance(event, StepEnded)]
    assert steps in ([(1, 2), (1, 3)], [(1, 3)]), "nothing is done twice"
    losses = [metrics["train_loss"] for metrics in resumed.history]
    assert losses == pytest.approx([metrics["train_loss"] for metrics in two_workers[0].history], abs=1e-5)
    client = client_for(f"sqlite:///{folder}/mlflow.db")
    experiment_id = client.get_experiment_by_name("twostream").experiment_id
    runs = [run for run in client.search_runs([experiment_id]) if run.info.run_name == "killed"]
    assert len(runs) == 1
    assert sorted(m.step for m in client.get_metric_history(runs[0].info.run_id, "train_loss")) == [0, 1]


@pytest.mark.timeout(300)
def test_a_loss_that_is_not_finite_ends_the_run_at_once_and_names_clips_and_the_way_out(
    cluster: None, shard_set: ShardSet, folder: Path
) -> None:
    config = experiment(shard_set, folder, name="diverges", workers=ONE_WORKER)
    events: list[ProgressEvent] = []
    with pytest.raises(
        TrainingError,
        match=r"run 'diverges': the loss is .* in epoch \d, step \d, from clips train/.*: lower "
        r"training.learning_rate, set training.clip_gradient_norm",
    ):
        train(replace(config, training=replace(config.training, learning_rate=1_000.0)), progress=events.append)
    assert not [event for event in events if isinstance(event, WorkersLost)], "starting again would not help"
