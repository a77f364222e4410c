"""A training run on a cluster of several nodes on this machine, and the ways in which it is disturbed.

As a program it is the driver of such a run: every worker writes down which clips each of its steps had.
"""

import json
import os
import pickle
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cluster.box.ray_nodes import PORTS, RayCluster, node_id, raylet_of
from cluster.box.server_process import ServerProcess, free_ports, kill_all
from twostream_ray.runs.cluster.private_cluster import authenticated, end_processes, environment

_DASHBOARD, _NICENESS, _IDLE = "RAY_API_SERVER_ADDRESS", "RAY_worker_niceness", "RAY_num_workers_soft_limit"
_LONGEST_JOINING_S = 20.0
"""Between the first and the last worker of a group, 1.5 s on a quiet machine; a smaller or larger group comes later."""
_OBJECT_STORE_BYTES = 2**30
STEP_S = 0.25
"""What a step takes at least by default, or most kills would fall between runs."""


def drive(config_file: str, log: str, step_s: str) -> None:
    """Train the pickled configuration; lines of `log`/*.steps say what each step had and when it began."""
    import ray

    from twostream_ray.runs.train import worker_group
    from twostream_ray.runs.train.events import WorkersLost
    from twostream_ray.runs.train.run import train
    from twostream_ray.runs.train.worker import train_worker

    def watched(arguments: dict[str, Any]) -> Any:
        import os
        import time
        from pathlib import Path

        import ray.train

        from twostream_ray.training.step import TrainingStep

        context = ray.train.get_context()
        lines = Path(log) / f"{time.time():.6f}-{context.get_world_rank()}-{os.getpid()}.steps"
        learn = TrainingStep.__call__

        def written_down(self: Any, batch: Any, *, epoch: int, step: int, num_steps: int) -> Any:
            clips = batch.clips[batch.weights.numpy() > 0].tolist()
            with lines.open("a") as file:
                file.write(json.dumps([time.time(), epoch, step, context.get_world_rank(), clips]) + "\n")
            time.sleep(float(step_s))
            return learn(self, batch, epoch=epoch, step=step, num_steps=num_steps)

        TrainingStep.__call__ = written_down  # type: ignore[method-assign]
        return train_worker(arguments)

    connect = ray.init

    def connected(*arguments: Any, **settings: Any) -> Any:
        context = connect(*arguments, **settings)
        (Path(log) / "joined").write_text(str(time.time()))
        return context

    ray.init = connected
    worker_group.train_worker = watched  # type: ignore[attr-defined]
    worker_group._RESIZE_INTERVAL_S = 5.0
    lost: list[str] = []
    report = train(
        pickle.loads(Path(config_file).read_bytes()),
        progress=lambda event: lost.append(event.reason) if isinstance(event, WorkersLost) else None,
    )
    (Path(log) / "report.json").write_text(
        json.dumps({"checkpoint": report.checkpoint, "history": report.history, "lost": lost})
    )


def steps_written(log: Path) -> list[tuple[float, int, int, int, list[int]]]:
    """(time, epoch, step, rank, clips) of every step begun so far, in the order of time."""
    lines = [line for path in log.glob("*.steps") for line in path.read_text().splitlines(keepends=True)]
    return sorted(tuple(json.loads(line)) for line in lines if line.endswith("\n"))


def settled_clips(log: Path) -> dict[tuple[int, int], list[int]]:
    """(epoch, step) -> clips, of the last time that each step was made: what came of earlier times was lost."""
    last: dict[tuple[int, int], tuple[float, dict[int, list[int]]]] = {}
    for begun, epoch, step, rank, clips in steps_written(log):
        before, by_rank = last.get((epoch, step), (begun, {}))
        # Workers of one group begin a step within moments of each other; another group takes seconds to start.
        together = begun - before < 1.5
        last[epoch, step] = (before if together else begun, (by_rank if together else {}) | {rank: clips})
    return {
        position: sorted(clip for clips in by_rank.values() for clip in clips)
        for position, (_, by_rank) in last.items()
    }


class Nodes:
    """A head without CPUs and two nodes of one, as processes of this machine."""

    def __init__(self) -> None:
        # Their driver, and what drains nodes here, have the token of this process.
        self._environment = ExitStack()
        self._environment.enter_context(authenticated())
        # Not pytest's folder: the paths of its sockets would be too long.
        self._folder = Path(tempfile.mkdtemp(prefix="nodes-"))
        # Workers of a node have it to themselves; here all nodes share one machine, and theirs would come last.
        # And a node has more CPUs than workers, as many as it keeps idle processes.
        settings = {_NICENESS: "0", _IDLE: "8", "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.2"}
        self._cluster = RayCluster(
            folder=self._folder, port=free_ports(PORTS), token=os.environ["RAY_AUTH_TOKEN"], environment=settings
        )
        # Ray Train's clean-up actors, on any node, must ask this dashboard: left to search, they ask the newest cluster
        # of the machine.
        self._environment.enter_context(environment({_DASHBOARD: self._cluster.dashboard}))
        self._started = [self._cluster.start_head(num_cpus=0, object_store_bytes=_OBJECT_STORE_BYTES)]
        self._cluster.wait_for_head(self._started[0])
        self.nodes = [self._start_node(), self._start_node()]
        for node in self.nodes:
            self._cluster.wait_for_node(node)

    @property
    def environment(self) -> dict[str, str]:
        """For the driver."""
        root = str(Path(__file__).resolve().parents[1])
        return os.environ | {
            "PYTHONPATH": os.pathsep.join([root, *filter(None, [os.environ.get("PYTHONPATH")])]),
            "RAY_ADDRESS": self._cluster.address,
            "RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S": "20",
        }

    def lose(self, number: int) -> None:
        """Kill a node with all its processes."""
        self.nodes.pop(number).kill()

    def replace(self) -> None:
        """Let a new node join."""
        node = self._start_node()
        self._cluster.wait_for_node(node)
        self.nodes.append(node)

    def _start_node(self) -> ServerProcess:
        node = self._cluster.start_node(len(self._started), num_cpus=1, object_store_bytes=_OBJECT_STORE_BYTES)
        self._started.append(node)
        return node

    def drain(self, number: int, *, seconds: float) -> None:
        """Give notice that a node will be taken away, as clouds do of spot instances."""
        from ray._raylet import GcsClient  # type: ignore[attr-defined]

        deadline = int((time.time() + seconds) * 1000)
        client = GcsClient(address=self._cluster.address)
        # 2: preemption
        client.drain_node(node_id(self.nodes[number]), 2, "spot instance reclaimed", deadline)

    def training_workers(self) -> list[int]:
        """Ids of the processes that train, on any node."""
        found: list[int] = []
        for node in self.nodes:
            raylet = raylet_of(node)
            assert raylet is not None, "a node without a raylet"
            listed = subprocess.run(
                ["pgrep", "-P", str(raylet[0]), "-f", "TrainWorker"], capture_output=True, text=True
            )
            found += map(int, listed.stdout.split())
        return found

    def orphans(self) -> dict[str, list[str]]:
        """Actors and placement groups that are still there."""
        code = (
            "import json, logging, ray\n"
            "ray.init(logging_level=logging.ERROR, log_to_driver=False)\n"
            "mine = ray.get_runtime_context().get_job_id()\n"
            "actors = [a['ActorClassName'] for a in ray._private.state.actors().values()\n"
            "          if a['State'] != 'DEAD' and a['JobID'] != mine]\n"
            "groups = [g['state'] for g in ray.util.placement_group_table().values() if g['state'] != 'REMOVED']\n"
            "print(json.dumps({'actors': actors, 'groups': groups}))\n"
        )
        done = subprocess.run([sys.executable, "-c", code], env=self.environment, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr[-2000:]
        return dict(json.loads(done.stdout.splitlines()[-1]))

    def shutdown(self) -> None:
        """End everything."""
        kill_all(self._started)
        end_processes(self._folder)
        shutil.rmtree(self._folder, ignore_errors=True)
        self._environment.close()


@contextmanager
def nodes() -> Iterator[Nodes]:
    """A cluster for as long as the block runs."""
    made = Nodes()
    try:
        yield made
    finally:
        made.shutdown()


class Driver:
    """A driver that can be killed and started again."""

    def __init__(self, config: Any, *, log: Path, on: Nodes, step_s: float = STEP_S) -> None:
        log.mkdir(parents=True)
        self.log, self._on, self._step_s = log, on, step_s
        self._config = log / "config.pickle"
        self._config.write_bytes(pickle.dumps(config))
        self.start()

    def start(self, config: Any = None) -> None:
        """Start, or start again with the same command, or with other settings."""
        if config is not None:
            self._config.write_bytes(pickle.dumps(config))
        self.process = subprocess.Popen(
            [sys.executable, __file__, str(self._config), str(self.log), str(self._step_s)],
            env=self._on.environment,
            stdout=(self.log / "out.txt").open("a"),
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )

    def kill(self) -> None:
        """kill -9."""
        self.process.send_signal(signal.SIGKILL)
        self.process.wait()

    def wait_for(self, reached: Callable[[list[Any]], bool], *, seconds: float = 120.0) -> None:
        """Wait until what was written down satisfies a condition."""
        self.wait_until(lambda: reached(steps_written(self.log)), seconds=seconds)

    def wait_until(self, reached: Callable[[], bool], *, seconds: float = 120.0) -> None:
        """Wait for a condition while the driver lives."""
        limit = time.time() + seconds
        while not reached():
            code = self.process.poll()
            assert code is None, f"the driver ended with {code}: {(self.log / 'out.txt').read_text()[-2000:]}"
            assert time.time() < limit, f"not in {seconds} s: {(self.log / 'out.txt').read_text()[-2000:]}"
            # Not oftener: this process takes its time from those that it watches.
            time.sleep(0.1)

    def end(self, *, seconds: float = 240.0) -> dict[str, Any]:
        """Wait for its end; gives its report."""
        code = self.process.wait(timeout=seconds)
        assert code == 0, (self.log / "out.txt").read_text()[-3000:]
        return dict(json.loads((self.log / "report.json").read_text()))


def groups_of(driver: Driver) -> list[dict[int, Path]]:
    """The groups of workers that have trained so far, each with its files by rank."""
    groups: list[dict[int, Path]] = []
    begun = 0.0
    for path in sorted(driver.log.glob("*.steps"), key=lambda path: float(path.name.split("-")[0])):
        started, rank = float(path.name.split("-")[0]), int(path.name.split("-")[1])
        if not groups or started - begun > _LONGEST_JOINING_S or rank in groups[-1]:
            groups.append({})
            begun = started
        groups[-1][rank] = path
    return groups


@dataclass(frozen=True, kw_only=True)
class Recovery:
    """What came of a kill: seconds to the first step of the new group."""

    replaced: float
    """From the kill of a worker; from the joining of the cluster by the new node or the new driver."""
    joined: float
    """From the moment when all of the new group of workers had joined."""
    calm: float
    """How long the group before had been making steps when it was disturbed."""


def disturb(driver: Driver, on: Nodes, *, kind: str, steps: int, rng: random.Random) -> Recovery:
    """Kill something once `steps` more steps have begun."""
    seen = len(steps_written(driver.log))
    driver.wait_for(lambda written: len(written) >= seen + 2 * steps)
    time.sleep(rng.random() * STEP_S)
    calm = time.time() - max(json.loads(text.splitlines()[0])[0] for text in _steps_of_last_group(driver))
    match kind:
        case "worker":
            os.kill(rng.choice(on.training_workers()), signal.SIGKILL)
        case "node":
            on.lose(rng.randrange(2))
            on.replace()
        case "driver":
            driver.kill()
            joined = driver.log / "joined"
            joined.unlink()
            driver.start()
            driver.wait_until(lambda: joined.exists() and bool(joined.read_text()))
    replaced = time.time()
    # A group that has not yet heard of the loss may begin another step.
    known = len(groups_of(driver))

    # Reading every step again and again would take its time from the workers.
    driver.wait_until(lambda: len(groups_of(driver)) > known and len(_steps_of_last_group(driver)) == 2)
    begun = max(json.loads(text.splitlines()[0])[0] for text in _steps_of_last_group(driver))
    together = max(float(path.name.split("-")[0]) for path in groups_of(driver)[-1].values())
    return Recovery(replaced=begun - replaced, joined=begun - together, calm=calm)


def _steps_of_last_group(driver: Driver) -> list[str]:
    """What its workers have written, of those that have begun a step; a file is created before its first line."""
    texts = [path.read_text() for path in groups_of(driver)[-1].values()]
    return [text for text in texts if "\n" in text]


if __name__ == "__main__":
    drive(*sys.argv[1:])
