import json
from dataclasses import asdict, replace
from pathlib import Path

from twostream_ray.data.loading.settings import DataConfig
from twostream_ray.runs.experiment import ExperimentConfig, fixed_settings
from twostream_ray.runs.submit.estimate import expected_use
from twostream_ray.runs.workers import WorkersConfig

NODES = [{"resources_total": {"CPU": 8.0, "GPU": 4.0}}, {"resources_total": {"CPU": 8.0, "GPU": 4.0}}]


def experiment(storage: Path, name: str = "next") -> ExperimentConfig:
    config = ExperimentConfig(name=name, data=DataConfig(shards="shards"), storage=str(storage))
    return replace(config, training=replace(config.training, epochs=9))


def ended(config: ExperimentConfig, *, seconds: list[float]) -> None:
    folder = Path(config.storage) / config.name
    folder.mkdir(parents=True)
    (folder / "experiment.json").write_text(json.dumps(fixed_settings(config)))
    (folder / "report.json").write_text(json.dumps({"history": [{"seconds": one} for one in seconds]}))


def test_hours_and_cost_follow_from_the_last_epochs_of_a_run_with_the_same_network(tmp_path: Path) -> None:
    config = experiment(tmp_path)
    ended(replace(config, name="before"), seconds=[9000.0, 400.0, 400.0, 400.0])
    rows = dict(expected_use(config, nodes=NODES, gpus=0, price=3.0))
    assert rows["workers"] == "8, a GPU each"
    assert rows["hours"].startswith("about 1: 9 epochs of 400 s, as those of run 'before'")
    assert rows["cost"] == "about 24.00: 24.00 an hour for 8 GPUs"


def test_a_run_of_another_network_tells_nothing(tmp_path: Path) -> None:
    config = experiment(tmp_path)
    assert "has no finished run of this network" in dict(expected_use(config, nodes=NODES, gpus=0, price=None))["hours"]
    other = replace(
        config, name="other", data=replace(config.data, sampling=replace(config.data.sampling, num_snippets=1))
    )
    assert asdict(other)["data"]["sampling"] != asdict(config)["data"]["sampling"]
    ended(other, seconds=[1.0])
    assert "has no finished run of this network" in dict(expected_use(config, nodes=NODES, gpus=0, price=None))["hours"]


def test_fewer_workers_than_gpus_are_paid_for(tmp_path: Path) -> None:
    config = replace(experiment(tmp_path), workers=WorkersConfig(num_workers=2))
    rows = dict(expected_use(config, nodes=NODES, gpus=0, price=2.0))
    assert rows["workers"] == "2, a GPU each" and rows["cost"] == "4.00 an hour for 2 GPUs"
    cpus = [{"resources_total": {"CPU": 2.0}}]
    assert dict(expected_use(config, nodes=cpus, gpus=0, price=None))["workers"] == "2, on CPU cores"
