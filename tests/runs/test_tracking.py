import itertools
import threading
import time
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import ray
from mlflow import MlflowClient
from mlflow_server import PASSWORD, USER, MlflowServer

from twostream_ray.data.loading.settings import DataConfig
from twostream_ray.data.sampling import SamplingConfig
from twostream_ray.data.shards.shards import ShardSet
from twostream_ray.data.transforms import TransformConfig
from twostream_ray.models.settings import FusionConfig, ModelConfig, TowerConfig
from twostream_ray.runs.experiment import ExperimentConfig
from twostream_ray.runs.train import worker_group
from twostream_ray.runs.train.events import EpochEnded, ProgressEvent
from twostream_ray.runs.train.run import train
from twostream_ray.runs.train.worker import train_worker
from twostream_ray.tracking import TrackingConfig
from twostream_ray.training.settings import TrainingConfig

TOWER = TowerConfig(backbone="vgg_small", width=4, dropout=0.0)
EPOCHS, LEAST_EPOCH_S, AWAY_S = 30, 4.0, 60.0


@pytest.mark.soak
@pytest.mark.timeout(600)
def test_a_training_whose_server_is_killed_for_a_minute_never_stops_and_is_recorded_whole(
    guarded: MlflowServer, shard_set: ShardSet, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    uri = f"http://{USER}:{PASSWORD}@127.0.0.1:{guarded.port}"
    config = ExperimentConfig(
        name="outage",
        data=DataConfig(
            shards=shard_set.uri,
            validation_split="val",
            sampling=SamplingConfig(
                num_snippets=1, min_stride_frames=1, max_stride_frames=1, test_times=1, flow_length=4
            ),
            transforms=TransformConfig(crop_px=48, size_jitter=0.0),
        ),
        model=ModelConfig(
            spatial=TOWER,
            temporal=TOWER,
            fusion=FusionConfig(method="conv", layers=("relu3",), temporal="pool2d"),
        ),
        training=TrainingConfig(epochs=EPOCHS, global_batch=16, learning_rate=0.01, schedule="constant"),
        storage=str(tmp_path / "runs"),
        tracking=TrackingConfig(uri=uri, register=False),
        seed=5,
    )

    def slow(arguments: dict[str, Any]) -> None:
        """The real worker, whose epochs take long enough for an outage of a minute to fall within the run."""
        from twostream_ray.runs.train.worker import _Worker

        at_once = _Worker.end_epoch

        def later(self: Any, metrics: dict[str, float]) -> bool:
            time.sleep(LEAST_EPOCH_S)
            return at_once(self, metrics)

        _Worker.end_epoch = later  # type: ignore[method-assign]
        train_worker(arguments)

    events: list[tuple[float, EpochEnded]] = []
    away: list[float] = []

    def outage() -> None:
        waiting = tmp_path / "runs/outage/tracking-journal/events"
        until = time.monotonic() + 60
        while any(waiting.glob("*.json")):  # what was logged before has arrived
            assert time.monotonic() < until
            time.sleep(0.01)
        guarded.kill()
        away.append(time.time())
        time.sleep(AWAY_S)
        guarded.start()
        away.append(time.time())

    killer = threading.Thread(target=outage)

    def watch(event: ProgressEvent) -> None:
        if isinstance(event, EpochEnded):
            events.append((time.time(), event))
            if event.epoch == 2:
                killer.start()

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(worker_group, "train_worker", slow)
        try:
            report = train(config, progress=watch)
        finally:
            ended = time.time()
            if killer.ident is not None:
                killer.join()  # else it would start a server that nobody ends
    assert away[1] < ended, "the server was back before the end"
    assert [event.epoch for _, event in events] == list(range(EPOCHS))
    within = [event.epoch for at, event in events if away[0] + 1 < at < away[0] + AWAY_S]
    assert len(within) >= 5, "epochs ended while the server was away"
    longest = max(later - earlier for (earlier, _), (later, _) in itertools.pairwise(events))
    assert longest < LEAST_EPOCH_S + 12, "no epoch was held up"

    client = MlflowClient(uri)
    runs = client.search_runs([client.get_experiment_by_name("twostream").experiment_id])
    assert [(run.info.run_name, run.info.status) for run in runs] == [("outage", "FINISHED")]
    assert report.run.run_id == runs[0].info.run_id
    recorded = {"train_loss", "val_top1", "data_wait", "device_matrix_rate_share", "system/cpu_utilization_percentage"}
    recorded |= {"system/system_memory_usage_percentage", "system/object_store_usage_megabytes"}
    assert recorded <= runs[0].data.metrics.keys()
    for name in runs[0].data.metrics:
        rows = client.get_metric_history(runs[0].info.run_id, name)
        assert Counter(row.step for row in rows) == dict.fromkeys(range(EPOCHS), 1), name
        times = {row.step: row.timestamp / 1000 for row in rows}
        for at, event in events:
            assert abs(times[event.epoch] - at) < 15, f"{name} keeps the time when it was logged"
        assert sum(away[0] < times[epoch] < away[0] + AWAY_S + 1 for epoch in within) >= len(within) - 1
    losses = {row.step: row.value for row in client.get_metric_history(runs[0].info.run_id, "train_loss")}
    assert losses == {int(row["epoch"]): row["train_loss"] for row in report.history}

    journal = tmp_path / "runs/outage/tracking-journal"
    assert sorted(path.name for path in journal.rglob("*") if path.is_file()) == ["mlflow.json", "run.json"]
    assert PASSWORD not in str(runs[0].to_dictionary()) + "".join(capfd.readouterr())
    session = Path(ray._private.worker._global_node.get_session_dir_path())
    for folder in (tmp_path / "runs", session / "logs"):
        files = [path for path in folder.rglob("*") if path.is_file()]
        assert files
        assert [path for path in files if PASSWORD.encode() in path.read_bytes()] == []
