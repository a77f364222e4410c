"""Ray actors, one per node, that gather facts and measure clock skew."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from twostream_ray.runs.doctor.facts import AcceleratorFacts, NodeFacts, Questions, accelerator_facts, node_facts

_TIMEOUT_S = 180.0
"""More than the minute for which an unreachable store is retried."""
_GPU_TIMEOUT_S = 60.0
_CLOCK_QUESTIONS = 5


class NodeProbe:
    """Answers for one node; an actor, so that the clock is read without waiting for a process to start."""

    def facts(self, questions: Questions) -> NodeFacts:
        """All facts except the clock and what torch can do on the GPUs."""
        return node_facts(questions)

    def clock(self) -> float:
        """The node's time, in seconds since 1970."""
        return time.time()


def facts_of_nodes(questions: Questions) -> tuple[list[NodeFacts], list[str]]:
    """Facts of every living node, and the names of those that did not answer; inside `ray_session`."""
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    alive = [node for node in ray.nodes() if node["Alive"]]
    probe = ray.remote(NodeProbe)
    actors = {
        node["NodeID"]: probe.options(
            num_cpus=0, scheduling_strategy=NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)
        ).remote()
        for node in alive
    }
    gpus = _accelerators(alive)
    asked = {
        node["NodeID"]: actors[node["NodeID"]].facts.remote(replace(questions, resources=node["Resources"]))
        for node in alive
    }
    ready, _ = ray.wait(list(asked.values()), num_returns=len(asked), timeout=_TIMEOUT_S)
    found, silent = list[NodeFacts](), list[str]()
    for node in alive:
        key = node["NodeID"]
        if asked[key] not in ready:
            silent.append(f"{node['NodeManagerHostname']} ({node['NodeManagerAddress']})")
            continue
        try:
            facts: NodeFacts = ray.get(asked[key])
            skew, error = _skew(ray, actors[key])
        except ray.exceptions.RayError as error_of_node:
            silent.append(f"{node['NodeManagerHostname']} ({type(error_of_node).__name__})")
            continue
        found.append(replace(facts, clock_skew_s=skew, clock_error_s=error, accelerator=gpus(key)))
    for actor in actors.values():
        ray.kill(actor)
    return found, silent


def _skew(ray: Any, actor: Any) -> tuple[float, float]:
    """A node's clock minus this one's, and the error bound, both in seconds, by the fastest answer (Cristian 1989)."""
    answers = []
    for _ in range(_CLOCK_QUESTIONS):
        asked = time.time()
        there = ray.get(actor.clock.remote(), timeout=_TIMEOUT_S)
        answered = time.time()
        answers.append(((answered - asked) / 2, there - (asked + answered) / 2))
    error, skew = min(answers)
    return skew, error


def _accelerators(nodes: list[Mapping[str, Any]]) -> Any:
    """Start a task with a GPU on every node that has one; returns a function from a node's id to the task's result."""
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    look = ray.remote(accelerator_facts)
    asked = {
        node["NodeID"]: look.options(
            num_cpus=0, num_gpus=1, scheduling_strategy=NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)
        ).remote()
        for node in nodes
        if node["Resources"].get("GPU", 0) >= 1
    }
    ends = time.monotonic() + _GPU_TIMEOUT_S

    def found(node: str) -> AcceleratorFacts | None:
        if node not in asked:
            return None
        try:
            facts: AcceleratorFacts | None = ray.get(asked[node], timeout=max(0.0, ends - time.monotonic()))
        except ray.exceptions.GetTimeoutError:
            ray.cancel(asked[node], force=True)
            return None
        except ray.exceptions.RayError as error:
            return AcceleratorFacts(device="GPU", fault=" ".join(str(error).split())[:160])
        return facts

    return found
