import json
import os
import random
import signal
import sys
import time
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from s3 import FaultyProxy, reached_at
from safetensors.torch import load_file
from survival import Driver, Nodes, Recovery, disturb, groups_of, nodes, settled_clips, steps_written

from twostream_ray import storage
from twostream_ray.data.loading.settings import DataConfig
from twostream_ray.data.sampling import SamplingConfig
from twostream_ray.data.shards.shards import ShardSet
from twostream_ray.data.transforms import TransformConfig
from twostream_ray.models.settings import FusionConfig, ModelConfig, TowerConfig
from twostream_ray.runs.experiment import ExperimentConfig
from twostream_ray.runs.train.events import WorkersLost
from twostream_ray.runs.train.run import train
from twostream_ray.runs.workers import WorkersConfig
from twostream_ray.tracking import TrackingConfig
from twostream_ray.tracking.connection import client_for
from twostream_ray.training.settings import TrainingConfig

pytestmark = pytest.mark.own_cluster

OUTAGE_S = 20

# With dropout and batch normalisation: both must come back as they were.
TOWER = TowerConfig(backbone="vgg_small", width=4, dropout=0.3)


WAYS: dict[str, dict[str, Any]] = {
    "threads": {"decode_at": "worker", "decode_processes": 0},
    "worker": {"decode_at": "worker", "decode_processes": 1},
    "device": {"decode_at": "device"},
    "stream": {"decode_at": "stream"},
}
"""Of decoding; samples are the same, bit for bit."""


def experiment(
    shard_set: ShardSet, folder: Path, *, epochs: int, way: str = "threads", **training: Any
) -> ExperimentConfig:
    return ExperimentConfig(
        name="survivor",
        data=DataConfig(
            shards=shard_set.uri,
            read_tasks=1,
            **WAYS[way],
            sampling=SamplingConfig(
                num_snippets=1, min_stride_frames=1, max_stride_frames=1, test_times=1, flow_length=4
            ),
            transforms=TransformConfig(crop_px=40),
        ),
        model=ModelConfig(
            spatial=TOWER, temporal=TOWER, fusion=FusionConfig(method="conv", layers=("relu3",), temporal="pool2d")
        ),
        training=TrainingConfig(
            **{"epochs": epochs, "global_batch": 8, "learning_rate": 0.02, "schedule": "cosine"} | training
        ),
        workers=WorkersConfig(num_workers=2, cpus_per_worker=0.6, checkpoint_every_steps=2, max_failures=100),
        storage=str(folder / "runs"),
        tracking=TrackingConfig(uri=f"sqlite:///{folder}/mlflow.db", register=False),
        seed=3,
    )


def assert_every_clip_once(log: Path, shard_set: ShardSet, *, epochs: int) -> None:
    settled = settled_clips(log)
    for epoch in range(epochs):
        clips = Counter(clip for (of, _), part in settled.items() if of == epoch for clip in part)
        assert clips == Counter(shard_set.split("train").tolist()), f"epoch {epoch}"


def assert_one_mlflow_run_with_every_epoch_once(folder: Path, *, epochs: int) -> None:
    client = client_for(f"sqlite:///{folder}/mlflow.db")
    (run,) = client.search_runs([client.get_experiment_by_name("twostream").experiment_id])
    assert run.info.status == "FINISHED"
    steps = [metric.step for metric in client.get_metric_history(run.info.run_id, "train_loss")]
    assert sorted(steps) == list(range(epochs))


def assert_equal_weights(first: Path, second: Path) -> None:
    """Bit for bit."""
    weights, wanted = load_file(first), load_file(second)
    assert weights.keys() == wanted.keys()
    assert all(weights[name].equal(wanted[name]) for name in wanted)


def undisturbed_and_disturbed(
    shard_set: ShardSet,
    folder: Path,
    kinds: list[str],
    *,
    epochs: int,
    most_steps: int,
    seed: int,
    way: str = "threads",
    **training: Any,
) -> None:
    """Both end with the same weights, bit for bit; prints the seconds to the next step by kind of kill.

    A kill comes 1 to `most_steps` steps after the last one was recovered from. The disturbed run decodes in the given
    way, the undisturbed one by threads of its workers.
    """
    rng = random.Random(seed)
    recoveries: dict[str, list[Recovery]] = {}
    (folder / "quiet").mkdir()
    lost: list[str] = []
    expected = train(
        experiment(shard_set, folder / "quiet", epochs=epochs, **training),
        progress=lambda event: lost.append(event.reason) if isinstance(event, WorkersLost) else None,
    )
    assert lost == []
    with nodes() as on:
        config = experiment(shard_set, folder / "disturbed", epochs=epochs, way=way, **training)
        driver = Driver(config, log=folder / "disturbed/log", on=on)
        for kind in kinds:
            recovery = disturb(driver, on, kind=kind, steps=rng.randint(1, most_steps), rng=rng)
            recoveries.setdefault(kind, []).append(recovery)
        report = driver.end()
        left = orphans_after_a_while(on)
    assert_every_clip_once(folder / "disturbed/log", shard_set, epochs=epochs)
    assert [epoch["train_loss"] for epoch in report["history"]] == [e["train_loss"] for e in expected.history]
    assert_equal_weights(*(Path(uri) / "model.safetensors" for uri in (report["checkpoint"], expected.checkpoint)))
    assert_one_mlflow_run_with_every_epoch_once(folder / "disturbed", epochs=epochs)
    assert left == {"actors": [], "groups": []}
    for kind, all_of_kind in sorted(recoveries.items()):
        for each in sorted(all_of_kind, key=lambda recovery: recovery.calm):
            sys.stdout.write(
                f"{kind} lost after {each.calm:.1f} s of steps: "
                f"next one {each.replaced:.1f} s after the replacement, {each.joined:.1f} s after the group joined\n"
            )


def orphans_after_a_while(on: Nodes) -> dict[str, Any]:
    """Without the services of Ray Data and Ray Train that live as long as the cluster does."""
    services = ("_StatsActor", "TrainStateActor", "_AutoscalingCoordinatorActor")
    for _ in range(30):
        left = on.orphans()
        left["actors"] = [name for name in left["actors"] if name not in services]
        if not any(left.values()):
            break
        time.sleep(1)
    return left


@pytest.mark.timeout(400)
@pytest.mark.parametrize(
    "way", ["threads", *(pytest.param(way, marks=pytest.mark.soak) for way in ("worker", "device", "stream"))]
)
def test_a_run_survives_the_loss_of_worker_node_and_driver_and_ends_with_the_weights_of_an_undisturbed_one(
    shard_set: ShardSet, tmp_path: Path, way: str
) -> None:
    kinds = ["worker", "node", "driver"]
    undisturbed_and_disturbed(shard_set, tmp_path, kinds, epochs=3, most_steps=4, seed=1, way=way)


@pytest.mark.soak
@pytest.mark.timeout(400)
def test_both_moments_and_averaged_weights_survive_the_loss_of_worker_node_and_driver(
    shard_set: ShardSet, tmp_path: Path
) -> None:
    modern = {"optimiser": "adamw", "learning_rate": 1e-3, "layer_decay": 0.8, "average_decay": 0.9}
    kinds = ["worker", "node", "driver"]
    undisturbed_and_disturbed(shard_set, tmp_path, kinds, epochs=3, most_steps=4, seed=2, **modern)


@pytest.mark.soak
@pytest.mark.timeout(1800)
def test_a_run_survives_21_kills_at_random_steps(shard_set: ShardSet, tmp_path: Path) -> None:
    kinds = ["worker", "node", "driver"] * 7
    random.Random(7).shuffle(kinds)
    undisturbed_and_disturbed(shard_set, tmp_path, kinds, epochs=40, most_steps=16, seed=7)


@pytest.mark.soak
@pytest.mark.timeout(400)
@pytest.mark.parametrize("way", WAYS)
def test_2_then_1_then_2_workers_within_an_epoch_see_every_clip_once_and_learn_the_same(
    shard_set: ShardSet, tmp_path: Path, way: str
) -> None:
    config = experiment(shard_set, tmp_path, epochs=1, way=way)
    # Without dropout and batch normalisation: then a step does not depend on how many share it.
    tower = TowerConfig(backbone="vgg_m_2048", width=4, dropout=0.0)
    config = replace(
        config,
        data=replace(config.data, lanes=2, transforms=TransformConfig(crop_px=224)),
        model=ModelConfig(
            spatial=tower, temporal=tower, fusion=FusionConfig(method="conv", layers=("relu5",), temporal="pool2d")
        ),
        training=replace(config.training, global_batch=2),
    )
    quiet = replace(config, storage=str(tmp_path / "quiet"))
    elastic = replace(config, workers=replace(config.workers, num_workers=(1, 2)))
    with nodes() as on:
        expected = Driver(quiet, log=tmp_path / "quiet-log", on=on, step_s=0.0).end()
        driver = Driver(elastic, log=tmp_path / "log", on=on, step_s=1.5)
        driver.wait_for(lambda written: len(written) >= 8)
        on.lose(0)
        driver.wait_until(lambda: len(groups_of(driver)[-1]) == 1 and len(groups_of(driver)) > 1)
        alone = len(groups_of(driver))
        on.replace()
        driver.wait_until(lambda: len(groups_of(driver)) > alone and len(groups_of(driver)[-1]) == 2)
        report = driver.end()
    assert_every_clip_once(tmp_path / "log", shard_set, epochs=1)
    losses = [epoch["train_loss"] for epoch in report["history"]]
    assert losses == pytest.approx([epoch["train_loss"] for epoch in expected["history"]], abs=1e-4)


@pytest.mark.soak
@pytest.mark.timeout(300)
def test_notice_that_a_node_will_be_taken_away_is_used_to_keep_the_epoch(shard_set: ShardSet, tmp_path: Path) -> None:
    config = experiment(shard_set, tmp_path, epochs=2)
    config = replace(config, workers=replace(config.workers, checkpoint_every_steps=None))
    with nodes() as on:
        driver = Driver(config, log=tmp_path / "log", on=on, step_s=2.0)
        driver.wait_for(lambda written: len(written) >= 2)
        on.drain(0, seconds=8)
        kept = tmp_path / "runs/survivor"
        driver.wait_until(lambda: any(kept.glob("epoch-0000-step-*")))
        time.sleep(8)
        on.lose(0)
        on.replace()
        report = driver.end()
    assert_every_clip_once(tmp_path / "log", shard_set, epochs=2)
    first_of_second_group = min(
        tuple(json.loads(path.read_text().splitlines()[0])[1:3]) for path in groups_of(driver)[1].values()
    )
    assert first_of_second_group > (0, 0)
    assert len(report["history"]) == 2


@pytest.mark.soak
@pytest.mark.timeout(300)
def test_a_worker_that_hangs_is_found_and_named_and_the_run_goes_on(shard_set: ShardSet, tmp_path: Path) -> None:
    config = experiment(shard_set, tmp_path, epochs=2)
    config = replace(config, workers=replace(config.workers, timeout_s=10.0))
    with nodes() as on:
        driver = Driver(config, log=tmp_path / "log", on=on)
        driver.wait_for(lambda written: len(written) >= 6)
        os.kill(on.training_workers()[0], signal.SIGSTOP)
        report = driver.end()
    assert_every_clip_once(tmp_path / "log", shard_set, epochs=2)
    assert "a worker did not answer for 10 s" in report["lost"][0]


@pytest.mark.soak
@pytest.mark.timeout(600)
def test_checkpoints_in_an_object_store_survive_kills_a_bad_network_and_an_outage(
    shard_set: ShardSet, tmp_path: Path, object_store: int
) -> None:
    proxy = FaultyProxy(object_store, fail_fraction=0.05, seed=2)
    rng = random.Random(3)
    config = experiment(shard_set, tmp_path / "local", epochs=4)
    with reached_at(proxy.endpoint), nodes() as on:
        expected = Driver(config, log=tmp_path / "local-log", on=on).end()
        away = replace(config, storage="s3://archive/runs", tracking=experiment(shard_set, tmp_path, epochs=4).tracking)
        driver = Driver(away, log=tmp_path / "log", on=on)
        for kind in ("worker", "driver", "node"):
            disturb(driver, on, kind=kind, steps=rng.randint(1, 3), rng=rng)
        proxy.go_away()
        time.sleep(OUTAGE_S)
        began = len(steps_written(driver.log))
        proxy.start()
        report = driver.end()
        assert len(steps_written(driver.log)) > began, "the store was away before the end"
        (tmp_path / "model.safetensors").write_bytes(
            storage.read_bytes(storage.join(report["checkpoint"], "model.safetensors"))
        )
    proxy.go_away()
    assert_every_clip_once(tmp_path / "log", shard_set, epochs=4)
    assert_equal_weights(tmp_path / "model.safetensors", Path(expected["checkpoint"]) / "model.safetensors")
    assert proxy.requests.total() > 100 and min(proxy.requests[fault] for fault in ("busy", "cut", "lost")) >= 1
