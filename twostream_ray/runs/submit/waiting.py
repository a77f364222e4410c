"""Why a job is pending: its resource requests compared with the cluster's nodes, by Ray's state API."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from twostream_ray.runs.submit.dashboard import ENDED, Dashboard, Job
from twostream_ray.runs.submit.submission import may_grow

_PENDING = ("PENDING_CREATION", "DEPENDENCIES_UNREADY", "RESTARTING")
_SHOWN = ("CPU", "GPU", "memory")

State = Mapping[str, Any]


def reasons(job: Job, dashboard: Dashboard) -> list[str]:
    """Why a job makes no progress, one sentence each; or that it does.

    Raises:
        ClusterError: the cluster cannot be reached.
    """
    nodes = dashboard.nodes()
    return explain(
        job,
        actors=[one for one in dashboard.state("actors") if one.get("state") in _PENDING],
        groups=[one for one in dashboard.state("placement_groups") if one.get("state") in ("PENDING", "RESCHEDULING")],
        nodes=nodes,
        grows=may_grow(nodes, dashboard),
        others=[one for one in dashboard.jobs() if one["status"] == "RUNNING"],
    )


def explain(
    job: Job,
    *,
    actors: Sequence[State],
    groups: Sequence[State],
    nodes: Sequence[State],
    grows: bool,
    others: Sequence[Job],
) -> list[str]:
    """`reasons` from data already fetched: pending actors and placement groups, nodes, running jobs."""
    name = str(job["submission_id"])
    if job["status"] in ENDED:
        return [f"the job {name} waits for nothing: it is {job['status']}"]
    if job["status"] == "PENDING":
        supervisor = next((one for one in actors if str(one.get("name")).endswith(f"job_actor_{name}")), {})
        wanted = [_shown(supervisor.get("required_resources") or {})]
        kind = "its process wants"
        # Without resources of its own it only waits for its files.
        if not wanted[0]:
            return [
                f"the job {name} waits for its runtime environment: the node unpacks its files, which takes seconds; "
                "if it takes longer, runtime_env_setup-*.log on the head says why"
            ]
    else:
        number = job.get("job_id")
        asked = [
            bundle.get("unit_resources") or {}
            for one in groups
            if number and one.get("creator_job_id") == number
            for bundle in one.get("bundles") or []
        ]
        asked += [one.get("required_resources") or {} for one in actors if number and one.get("job_id") == number]
        wanted = [one for one in map(_shown, asked) if one]
        kind = "its workers want"
        if not wanted:
            return [f"the job {name} runs and waits for nothing: `twostream jobs logs {name}` follows it"]
    lines = [f"the job {name} waits for room: {kind} {_described(wanted)}, the cluster has {_of_nodes(nodes)}"]
    lines += _remedy(name, wanted, nodes=nodes, grows=grows, others=others)
    return lines


def _remedy(
    name: str,
    wanted: Sequence[Mapping[str, float]],
    *,
    nodes: Sequence[State],
    grows: bool,
    others: Sequence[Job],
) -> list[str]:
    never = [one for one in wanted if not any(_fits(one, node.get("resources_total") or {}) for node in nodes)]
    if never and not grows:
        return [
            f"no node will ever have {_described(never[:1])}, and there is no autoscaler: add such a node, or stop the "
            f"job (`twostream jobs stop {name}`) and ask for less"
        ]
    if never:
        return [
            f"its autoscaler has to add a node with {_described(never[:1])}: `ray status` on the head shows progress"
        ]
    running = [str(one["submission_id"]) for one in others if one["submission_id"] != name]
    return [f"other jobs use it: {', '.join(running)}"] if running else ["other work on the cluster uses it"]


def _shown(resources: Mapping[str, Any]) -> dict[str, float]:
    return {key: float(value) for key, value in resources.items() if key in _SHOWN and value}


def _fits(wanted: Mapping[str, float], node: Mapping[str, float]) -> bool:
    return all(node.get(key, 0.0) >= amount - 1e-6 for key, amount in wanted.items())


def _of_nodes(nodes: Sequence[State]) -> str:
    return _described([{"CPU": 0.0, "GPU": 0.0, **_shown(one.get("resources_total") or {})} for one in nodes])


def _described(many: Sequence[Mapping[str, float]]) -> str:
    """As in "2 x (1 CPU, 1 GPU)"."""
    kinds = Counter(
        ", ".join(_amount(key, one[key]) for key in _SHOWN if key in one and (key != "memory" or one[key] > 0))
        for one in many
    )
    return " and ".join(f"{number} x ({words})" for words, number in kinds.items()) or "no node"


def _amount(key: str, amount: float) -> str:
    return f"{amount / 2**30:.1f} GiB of memory" if key == "memory" else f"{amount:g} {key}"
