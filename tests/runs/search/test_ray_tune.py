import json
import os
import re
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import psutil
import pytest
import yaml

from twostream_ray.data.loading.settings import DataConfig
from twostream_ray.data.shards.shards import ShardSet
from twostream_ray.errors import ConfigError
from twostream_ray.runs.search import ray_tune as tune_module
from twostream_ray.runs.search.ray_tune import tune
from twostream_ray.runs.search.report import STATUS_TAG
from twostream_ray.runs.search.settings import SearchConfig, TuneConfig
from twostream_ray.runs.search.trial import assign_resources
from twostream_ray.settings.parser import from_arguments
from twostream_ray.tracking.connection import client_for

pytestmark = pytest.mark.own_cluster

SMALL = {"backbone": "vgg_small", "width": 8, "dropout": 0.0}


def recipe(shard_set: ShardSet, folder: Path, **search: Any) -> Path:
    """A search of small networks, as a file."""
    values = {
        "name": "search",
        "storage": str(folder / "runs"),
        "data": {
            "shards": shard_set.uri,
            "validation_split": "val",
            "lanes": 4,
            "read_tasks": 1,
            "sampling": {"num_snippets": 1, "min_stride_frames": 1, "max_stride_frames": 1, "test_times": 1},
            "transforms": {"crop_px": 48, "size_jitter": 0.0, "flip": False},
        },
        "model": {
            "spatial": SMALL,
            "temporal": SMALL,
            "fusion": {"method": "conv", "layers": ["relu3"], "temporal": "pool2d"},
        },
        "training": {"epochs": 2, "global_batch": 16, "learning_rate": 0.1, "schedule": "constant"},
        "workers": {"num_workers": 1, "max_failures": 0},
        "tracking": {"uri": f"sqlite:///{folder}/mlflow.db", "model_name": "searched"},
        "search": {"concurrent_trials": 2, **search},
    }
    path = folder / "search.yaml"
    path.write_text(yaml.safe_dump(values))
    return path


def started(*arguments: str, cwd: Path | None = None) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [str(Path(sys.executable).with_name("twostream")), "tune", *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env=dict(os.environ),
        start_new_session=True,
        cwd=cwd,
    )


def children(folder: Path) -> tuple[Any, dict[str, Any]]:
    """The search's MLflow run, and its trials' by name."""
    client = client_for(f"sqlite:///{folder}/mlflow.db")
    experiment = client.get_experiment_by_name("twostream")
    runs = client.search_runs([experiment.experiment_id])
    (parent,) = [run for run in runs if run.info.run_name == "search"]
    nested = [run for run in runs if run.data.tags.get("mlflow.parentRunId") == parent.info.run_id]
    assert len(runs) == 1 + len(nested)
    by_name = {run.info.run_name: run for run in nested}
    assert len(by_name) == len(nested), "each trial once"
    return parent, by_name


def test_trials_share_half_of_the_cpus_and_all_gpus() -> None:
    config = TuneConfig(
        name="x", data=DataConfig(shards="s", validation_split="val"), search=SearchConfig(space={"seed": [1]})
    )
    two = assign_resources(config, cpus=2, gpus=0, trials_at_once=2).workers
    assert two.num_workers == 1 and 2 * (two.cpus_per_worker or 9) < 1
    eight = assign_resources(config, cpus=64, gpus=8, trials_at_once=2).workers
    assert eight.num_workers == 4 and 8 * (eight.cpus_per_worker or 9) < 32


def test_the_keys_of_stores_do_not_travel_in_the_runtime_environment_of_trials(monkeypatch: pytest.MonkeyPatch) -> None:
    from ray.tune.execution.class_cache import _ActorClassCache

    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN", "AWS_SECURITY_TOKEN"):
        monkeypatch.setenv(name, "planted:/@%#")
    monkeypatch.setenv("RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", "0.25")

    class Trial:
        pass

    with tune_module._quiet_tune():
        sent = _ActorClassCache().get(Trial)._default_options["runtime_env"]["env_vars"]
    assert "planted:/@%#" not in sent.values()
    assert sent["RAY_TRAIN_HEALTH_CHECK_INTERVAL_S"] == "0.25"


def test_a_cluster_without_dashboard_is_refused(
    cluster: None, shard_set: ShardSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tune_module, "_DASHBOARD_PATIENCE_SECONDS", 0.0)
    path = recipe(shard_set, tmp_path, space={"seed": [0, 1]})
    with pytest.raises(ConfigError, match="tune needs a Ray cluster with a dashboard"):
        tune(from_arguments(TuneConfig, ["--config", str(path)]))
    parent, trials = children(tmp_path)
    assert parent.info.status == "FAILED" and not trials


def test_a_space_without_a_network_is_refused_before_a_trial_starts(shard_set: ShardSet, tmp_path: Path) -> None:
    space = {"data.transforms.crop_px": [4, 6], "model.spatial.backbone": ["vgg_m_2048"]}
    path = recipe(shard_set, tmp_path, space=space)
    with pytest.raises(ConfigError, match="none of 2 combinations is a valid network"):
        tune(from_arguments(TuneConfig, ["--config", str(path)]))
    assert not (tmp_path / "mlflow.db").exists()
    assert not (tmp_path / "runs/search/trials").exists()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("search")


@pytest.fixture(scope="module")
def searched(shard_set: ShardSet, folder: Path) -> str:
    """What a search says that has a trial which cannot start: its weights are not there."""
    space = {"model.spatial.weights": [None, str(folder / "absent.safetensors")], "training.learning_rate": [0.1]}
    path = recipe(shard_set, folder, space=space, searcher="grid", scheduler="median", trials=2)
    # In a file named relative to this directory: trials run in others.
    process = started("--config", str(path), "--tracking.uri", "sqlite:///mlflow.db", cwd=folder)
    output, _ = process.communicate(timeout=500)
    assert process.returncode == 0, output
    return output


@pytest.mark.timeout(600)
def test_a_trial_that_fails_does_not_end_the_search(searched: str, folder: Path) -> None:
    rows = json.loads((folder / "runs/search/trials.json").read_text())
    assert [(row["status"], row["epochs"]) for row in rows] == [("finished", 2), ("failed", 0)]
    assert "absent.safetensors" in rows[1]["reason"]
    assert "search-0001 failed" in searched


def test_clips_are_decoded_once_an_epoch_and_once_for_validation_and_the_disk_is_given_back(
    searched: str, folder: Path
) -> None:
    train, val, epochs = 48, 8, 2
    counted = f"clips decoded: {epochs * train + val}; without sharing them between trials: {epochs * (train + val)}"
    assert counted in searched
    kept = Path(tune_module._samples_folder(from_arguments(TuneConfig, ["--config", str(folder / "search.yaml")])))
    assert not kept.exists()


def test_mlflow_has_the_search_with_its_trials_below_it(searched: str, folder: Path) -> None:
    parent, trials = children(folder)
    assert parent.info.status == "FINISHED"
    assert {name: run.info.status for name, run in trials.items()} == {
        "search-0000": "FINISHED",
        "search-0001": "FAILED",
    }
    assert trials["search-0000"].data.tags[STATUS_TAG] == "finished"
    assert trials["search-0001"].data.tags[STATUS_TAG].startswith("failed: ")
    assert trials["search-0000"].data.params["training.learning_rate"] == "0.1"
    assert trials["search-0000"].data.tags["mlflow.source.name"] == "twostream tune"
    assert "search-0000 (" in parent.data.tags["mlflow.note.content"]
    client = client_for(f"sqlite:///{folder}/mlflow.db")
    assert {file.path for file in client.list_artifacts(parent.info.run_id)} == {
        "recipe.yaml",
        "trials.csv",
        "trials.json",
        "pictures",
    }
    pictures = {Path(file.path).name for file in client.list_artifacts(parent.info.run_id, "pictures")}
    assert pictures == {"parallel_coordinates.png", "importance.png", "pareto.png"}
    history = client.get_metric_history(trials["search-0000"].info.run_id, "val_top1")
    assert sorted(metric.step for metric in history) == [0, 1]


def test_the_best_trial_is_registered_as_champion_on_the_validation_split(searched: str, folder: Path) -> None:
    client = client_for(f"sqlite:///{folder}/mlflow.db")
    champion = client.get_model_version_by_alias("searched", "champion")
    _, trials = children(folder)
    report = json.loads((folder / "runs/search/report.json").read_text())
    assert champion.run_id == trials[report["best"]["trial"]].info.run_id
    evaluation = json.loads((folder / f"runs/search/{report['best']['trial']}/evaluation/report.json").read_text())
    assert evaluation["split"] == "val"
    assert evaluation["top1"] == report["best"]["score"]
    assert "8 of 8 clips" in searched


def test_a_finished_search_is_not_repeated(searched: str, folder: Path) -> None:
    process = started("--config", str(folder / "search.yaml"))
    output, _ = process.communicate(timeout=120)
    assert process.returncode == 0
    assert "search search is finished already: 2 of 2 trials" in output
    assert len(children(folder)[1]) == 2


@pytest.fixture(scope="module")
def halved(shard_set: ShardSet, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """The folder and the words of a search in which asha stops trials: two learning rates teach nothing."""
    folder = tmp_path_factory.mktemp("halved")
    space = {"training.learning_rate": [0.1, 0.05, 1e-7, 1e-8, 1e-9]}
    path = recipe(shard_set, folder, space=space, searcher="grid", scheduler="asha", reduction_factor=2, trials=4)
    process = started("--config", str(path), "--training.epochs", "6")
    output, _ = process.communicate(timeout=560)
    assert process.returncode == 0, output
    return folder, output


def versions(folder: Path) -> int:
    return len(client_for(f"sqlite:///{folder}/mlflow.db").search_model_versions("name = 'searched'"))


@pytest.mark.soak
@pytest.mark.timeout(600)
def test_mlflow_and_the_table_tell_one_truth_of_every_trial_also_of_those_that_asha_stopped(
    halved: tuple[Path, str],
) -> None:
    folder, output = halved
    rows = {row["trial"]: row for row in json.loads((folder / "runs/search/trials.json").read_text())}
    assert {row["status"] for row in rows.values()} == {"finished", "stopped early"}, output
    client = client_for(f"sqlite:///{folder}/mlflow.db")
    _, trials = children(folder)
    assert trials.keys() == rows.keys()
    for name, run in trials.items():
        history = client.get_metric_history(run.info.run_id, "val_top1")
        assert sorted(metric.step for metric in history) == list(range(rows[name]["epochs"]))
        assert run.data.metrics["best_val_top1"] == max(metric.value for metric in history) == rows[name]["score"]
        if rows[name]["status"] == "stopped early":
            assert rows[name]["reason"] == f"by asha after {rows[name]['epochs']} of 6 epochs"
            assert run.data.tags[STATUS_TAG] == f"stopped early {rows[name]['reason']}"
    report = json.loads((folder / "runs/search/report.json").read_text())
    assert report["best"]["score"] == max(row["score"] for row in rows.values())
    evaluation = json.loads((folder / f"runs/search/{report['best']['trial']}/evaluation/report.json").read_text())
    assert evaluation["top1"] == report["best"]["score"], "a trial's score is what evaluate says of its checkpoint"


@pytest.mark.soak
@pytest.mark.timeout(600)
def test_a_search_shows_time_left_and_with_a_larger_budget_and_the_same_best_registers_nothing(
    halved: tuple[Path, str],
) -> None:
    folder, output = halved
    assert re.search(r"search-000\d running, \d epochs, .*; \d+:\d\d elapsed, about \d+:\d\d left", output)
    assert "\nregistered as searched: " in output and versions(folder) == 1
    again = started("--config", str(folder / "search.yaml"), "--training.epochs", "6", "--search.trials", "5")
    output, _ = again.communicate(timeout=560)
    assert again.returncode == 0, output
    assert "ended: 5 of 5 trials" in output and "\nregistered by an earlier call searched: " in output
    assert versions(folder) == 1
    third = started("--config", str(folder / "search.yaml"), "--training.epochs", "6", "--search.trials", "5")
    output, _ = third.communicate(timeout=560)
    assert "is finished already" in output and versions(folder) == 1


@pytest.mark.soak
@pytest.mark.timeout(600)
def test_the_command_that_a_search_ends_with_trains_the_best_longer(halved: tuple[Path, str]) -> None:
    folder, output = halved
    (command,) = re.findall(r"^train the best longer: twostream (train .+)$", output, re.MULTILINE)
    arguments = [str(Path(sys.executable).with_name("twostream")), *shlex.split(command)]
    assert str(folder / "runs/search/best.yaml") in arguments
    done = subprocess.run(arguments, capture_output=True, text=True, env=dict(os.environ), timeout=560, cwd="/")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "epoch 12/12" in done.stdout and versions(folder) == 2


def trial_files(folder: Path) -> dict[str, dict[str, Any]]:
    return {path.stem: json.loads(path.read_text()) for path in sorted((folder / "runs/search/trials").glob("*.json"))}


def wait_for(process: subprocess.Popen[str], happened: Any, *, seconds: float = 400) -> None:
    deadline = time.monotonic() + seconds
    while not happened():
        assert process.poll() is None, process.communicate()[0]
        assert time.monotonic() < deadline
        time.sleep(0.05)


def processes_of(process: subprocess.Popen[str]) -> list[psutil.Process]:
    """Processes below a command, whatever session they are in."""
    return list(psutil.Process(process.pid).children(recursive=True))


def is_alive(process: psutil.Process) -> bool:
    return bool(process.is_running() and process.status() != psutil.STATUS_ZOMBIE)


@pytest.mark.soak
@pytest.mark.timeout(1500)
def test_a_search_survives_a_killed_worker_and_goes_on_after_a_killed_driver(
    shard_set: ShardSet, tmp_path: Path
) -> None:
    """Four trials, two at a time: a worker is killed in the second pair, then the driver alone."""
    space = {"training.learning_rate": [0.1, 0.05, 0.02, 0.01]}
    path = recipe(shard_set, tmp_path, space=space, searcher="grid", scheduler="none", trials=4)
    # Long enough for the trial whose worker survives not to end before the other one has started again.
    longer = ("--training.epochs", "24", "--workers.max_failures", "2")
    process = started("--config", str(path), *longer)

    def epochs(number: str) -> int:
        return len(trial_files(tmp_path).get(number, {}).get("history", []))

    wait_for(process, lambda: epochs("0002") >= 1 and epochs("0003") >= 1)
    workers = [one for one in processes_of(process) if "ray::RayTrainWorker" in " ".join(one.cmdline())]
    workers[0].kill()
    before = {number: epochs(number) for number in ("0002", "0003")}
    wait_for(process, lambda: all(min(before[number] + 2, 24) <= epochs(number) for number in before))
    below = processes_of(process)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    killed = trial_files(tmp_path)
    finished = [number for number, trial in killed.items() if trial["status"] == "finished"]
    running = [number for number, trial in killed.items() if trial["status"] == "running"]
    assert len(finished) >= 2 and running and len(finished) + len(running) == 4
    reports = {number: tmp_path / f"runs/search/search-{number}/report.json" for number in finished}
    stamps = {number: report.stat().st_mtime_ns for number, report in reports.items()}
    # Its processes end by themselves; until then they might write to the same files.
    deadline = time.monotonic() + 120
    while any(map(is_alive, below)) and time.monotonic() < deadline:
        time.sleep(0.5)
    assert not [one for one in below if is_alive(one)]
    again = started("--config", str(path), *longer)
    output, _ = again.communicate(timeout=600)
    assert again.returncode == 0, output
    for number, stamp in stamps.items():
        assert reports[number].stat().st_mtime_ns == stamp, "not repeated"
        assert trial_files(tmp_path)[number] == killed[number]
    parent, trials = children(tmp_path)
    assert parent.info.status == "FINISHED" and len(trials) == 4
    client = client_for(f"sqlite:///{tmp_path}/mlflow.db")
    for run in trials.values():
        assert run.info.status == "FINISHED"
        steps = [metric.step for metric in client.get_metric_history(run.info.run_id, "val_top1")]
        assert sorted(steps) == list(range(24)), "every epoch once"
    train, val = 48, 8
    shown = 4 * 24 * (train + val)
    (decoded,) = re.findall(rf"clips decoded: ([\d,]+); without sharing them between trials: {shown:,}", output)
    assert int(decoded.replace(",", "")) <= 24 * train + val, "each clip once an epoch, not once a trial"
    for number in running:
        reported = [line for line in output.splitlines() if line.startswith(f"search-{number} running, ")]
        # The first line says how far it had come; it resumed from there.
        assert int(reported[0].split(", ")[1].split()[0]) == len(killed[number]["history"]) > 0


@pytest.mark.soak
@pytest.mark.timeout(600)
def test_ctrl_c_leaves_a_search_that_goes_on(shard_set: ShardSet, tmp_path: Path) -> None:
    space = {"training.learning_rate": [0.1, 0.05]}
    path = recipe(shard_set, tmp_path, space=space, searcher="grid", scheduler="none", trials=2)
    process = started("--config", str(path), "--training.epochs", "50")
    wait_for(process, lambda: any(trial["history"] for trial in trial_files(tmp_path).values()))
    process.send_signal(signal.SIGINT)
    output, _ = process.communicate(timeout=120)
    assert process.returncode == 130
    assert "interrupted; what was finished is kept, run the same command again to resume" in output
    assert "Traceback" not in output
    parent, trials = children(tmp_path)
    assert {run.info.status for run in (parent, *trials.values())} == {"KILLED"}
    # With a budget of what it has had it ends at once, and says so; and resumes with more another time.
    spent = sum(len(trial["history"]) for trial in trial_files(tmp_path).values())
    again = started("--resume", "search", "--storage", str(tmp_path / "runs"), "--search.max_epochs", str(spent))
    output, _ = again.communicate(timeout=300)
    assert again.returncode == 0, output
    assert f"ended: {spent} of {spent} epochs" in output
