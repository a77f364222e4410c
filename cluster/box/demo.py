"""End-to-end demo on the single-machine cluster, by submitted jobs: from videos in a bucket to a prediction."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil

from cluster.box.machine_cluster import BUCKET, NODES, Addresses, MachineCluster, Say, down, found, up
from cluster.box.ray_nodes import raylet_of
from twostream_ray.errors import ClusterError

_VIDEOS, _SHARDS = f"s3://{BUCKET}/videos", f"s3://{BUCKET}/shards"
_RUNS, _RUN = f"s3://{BUCKET}/runs", "cluster-demo"
_CHAMPION = "models:/two-stream@champion"
_CLIPS = (
    *("--clips.group", "motion", "--clips.size_px", "48"),
    *("--clips.train_clips", "320", "--clips.val_clips", "40", "--clips.test_clips", "40"),
)
_NETWORK = (
    *("--config", "demo", "--data.shards", _SHARDS, "--data.validation_split", "val", "--storage", _RUNS),
    *("--data.transforms.crop_px", "48", "--training.global_batch", "16", "--model.spatial.width", "8"),
    *("--model.temporal.width", "8", "--training.learning_rate", "0.05"),
    # More than half a node each, so that every node gets one worker.
    *("--workers.num_workers", str(NODES), "--workers.cpus_per_worker", "0.6"),
)
_TRAINING_MAY_TAKE_S = 600.0
_MARK = "cluster-demo.txt"


@dataclass
class Demo:
    """One run through all stages."""

    cluster: MachineCluster
    out: Path
    say: Say
    seconds: dict[str, float] = field(default_factory=dict)
    """Wall-clock time of each stage."""

    def stage(self, name: str, *arguments: str, submitted: bool = True) -> None:
        """Run a verb, as a job on the cluster or as its client on this machine.

        Raises:
            ClusterError: it did not end well.
        """
        command = ["submit", *arguments] if submitted else [*arguments]
        self.say(f"\n=== {name}: twostream {' '.join(command)}")
        began = time.monotonic()
        done = subprocess.run(  # noqa: S603
            [sys.executable, "-m", "twostream_ray", *command], env=self.environment, check=False
        )
        self.seconds[name] = time.monotonic() - began
        if done.returncode:
            raise ClusterError(
                f"{name} ended with {done.returncode}; the cluster is still up, its logs are in "
                f"{self.cluster.addresses.folder}; `make cluster-down` ends it"
            )
        self.say(f"=== {name} took {self.seconds[name]:.0f} s")

    @property
    def environment(self) -> dict[str, str]:
        """Environment of a client, without variables of other clusters or tracking servers."""
        own = {key: value for key, value in os.environ.items() if not key.startswith(("RAY_", "MLFLOW_", "AWS_"))}
        return own | self.cluster.client_environment


def submitted_commands(tracking_uri: str) -> dict[str, tuple[str, ...]]:
    """Stage -> verb and settings, for the stages that run on the cluster."""
    # Not where the recipe has it: on this machine alone.
    network = (*_NETWORK, "--tracking.uri", tracking_uri)
    search = (
        *("--search.space", "{model.fusion.method: [sum, max]}", "--search.searcher", "grid"),
        *("--search.scheduler", "none", "--search.trials", "2", "--search.concurrent_trials", "1"),
    )
    return {
        "ingest": (
            *("ingest", "--catalog.root", _VIDEOS, "--flow.short_side_px", "48"),
            *("--rows_per_shard", "64", "--out", _SHARDS),
        ),
        "train": ("train", *network, "--name", _RUN, "--training.epochs", "6"),
        "tune": ("tune", *network, "--name", f"{_RUN}-search", "--training.epochs", "2", *search),
        "evaluate": ("evaluate", _CHAMPION, _SHARDS, "--out", f"s3://{BUCKET}/evaluation"),
        "promote": ("promote",),
        "predict": ("predict", f"{_VIDEOS}/test", "--model", _CHAMPION, "--out", f"s3://{BUCKET}/predictions"),
    }


def run_demo(addresses: Addresses, *, out: Path, kill: bool, say: Say, clip: Path | None = None) -> dict[str, Any]:
    """Run all stages and write the results to `out`/result.json.

    A cluster that was not up before is ended behind them, unless one failed.

    Args:
        addresses: where the cluster is, or is to be.
        out: folder for the champion, the answers and the result.
        kill: kill one node with all its processes while both train, and let another one join.
        say: where lines go.
        clip: a video that the champion is asked about at the end; by default one that nothing was trained on.

    Raises:
        ClusterError: the folder is somebody else's, the cluster did not start, or a stage did not end well.
    """
    began = time.monotonic()
    _make_room(out)
    was_up = found(addresses) is not None
    cluster = up(addresses, say=say)
    demo = Demo(cluster=cluster, out=out, say=say, seconds={"up": time.monotonic() - began})
    videos = out / "videos"
    demo.stage("synthesize", "synthesize", str(videos), *_CLIPS, submitted=False)
    with _timed(demo, "upload"):
        demo.cluster.store.upload(videos, bucket=BUCKET, prefix="videos")
    jobs = submitted_commands(cluster.mlflow.uri)
    demo.stage("ingest", *jobs["ingest"])
    with _node_lost(demo, wanted=kill) as lost:
        demo.stage("train", *jobs["train"])
    if kill and not lost:
        raise ClusterError("the training ended before a node could be killed: more clips or epochs are needed")
    for name in ("tune", "evaluate", "promote"):
        demo.stage(name, *jobs[name])
    demo.stage("pull", "pull", str(out / "champion"), submitted=False)
    demo.stage("trained", "pull", str(out / "trained"), "--model", "models:/two-stream/1", submitted=False)
    demo.stage("predict", *jobs["predict"])
    asked = clip or next(iter(sorted((videos / "test").glob("*/*.mp4"))))
    demo.stage("answer", "predict", str(asked), "--model", str(out / "champion"), submitted=False)
    result = {
        "seconds": {name: round(taken, 1) for name, taken in demo.seconds.items()},
        "total_seconds": round(time.monotonic() - began, 1),
        "killed": lost,
        "trained_weights_sha256": _digest(out / "trained"),
        "champion_weights_sha256": _digest(out / "champion"),
    }
    (out / "result.json").write_text(json.dumps(result, indent=2))
    for name, taken in demo.seconds.items():
        say(f"{name:10} {taken:6.0f} s")
    say(f"{'all':10} {result['total_seconds']:6.0f} s; {out}/result.json")
    if not was_up:
        down(addresses, say=say)
    return result


def _make_room(out: Path) -> None:
    """Delete the output of an earlier demo, and nothing else.

    Raises:
        ClusterError: the folder holds something else.
    """
    if out.is_dir() and any(out.iterdir()):
        if not (out / _MARK).is_file():
            raise ClusterError(
                f"{out} was not written by an earlier demo and is not overwritten: name another folder with --out"
            )
        shutil.rmtree(out)
    out.mkdir(parents=True, exist_ok=True)
    (out / _MARK).write_text("written by `make cluster-demo`, which overwrites this folder\n")


def _digest(model: Path) -> str:
    """SHA-256 of a model's weights."""
    (weights,) = sorted(model.rglob("*.safetensors"))
    return hashlib.sha256(weights.read_bytes()).hexdigest()


@contextmanager
def _timed(demo: Demo, name: str) -> Iterator[None]:
    began = time.monotonic()
    yield
    demo.seconds[name] = time.monotonic() - began


@contextmanager
def _node_lost(demo: Demo, *, wanted: bool) -> Iterator[list[str]]:
    """During the block, kill a node once both train and a checkpoint exist, and replace it; yields the lost node."""
    lost: list[str] = []
    over = threading.Event()

    def watch() -> None:
        deadline = time.monotonic() + _TRAINING_MAY_TAKE_S
        while not over.wait(0.5) and time.monotonic() < deadline:
            if len(_training(demo.cluster)) == NODES and _has_checkpoint(demo.cluster):
                with suppress(psutil.Error):
                    pid = _training(demo.cluster)["node1"]
                    demo.say(f"=== killing node1, with worker {pid} that trains on it")
                    demo.cluster.lose_node(1)
                    lost.append("node1")
                    demo.cluster.replace_node(1)
                    demo.say("=== another node1 has joined")
                    return

    watcher = threading.Thread(target=watch, daemon=True)
    if wanted:
        watcher.start()
    try:
        yield lost
    finally:
        over.set()
        if wanted:
            watcher.join(timeout=180)


def _training(cluster: MachineCluster) -> dict[str, int]:
    """Node -> id of the training process on it, for nodes that have one."""
    found_there = {}
    for number in range(1, NODES + 1):
        name = f"node{number}"
        raylet = raylet_of(cluster.processes[name])
        with suppress(psutil.Error):
            for child in psutil.Process(raylet[0]).children() if raylet else []:
                if any("TrainWorker" in part for part in child.cmdline()):
                    found_there[name] = child.pid
    return found_there


def _has_checkpoint(cluster: MachineCluster) -> bool:
    """Whether the run has saved a checkpoint."""
    return any(".safetensors" in key for key in cluster.store.keys(bucket=BUCKET, prefix=f"runs/{_RUN}/"))
