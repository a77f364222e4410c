"""KubeRay's kinds: what its operator alone refuses (its validation.go, v1.7), and what it lets through."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import yaml

from checks.commands import check_command, option_of
from checks.documents import Document, Keys, Report, at
from checks.pins import Pins
from checks.pods import amount, check_pod, check_ray_pod

LONGEST_NAMES = {"RayCluster": 53, "RayJob": 47, "RayService": 47}
"""Characters: services are named by it and "-serve-svc", clusters of jobs and services by it and five random ones."""

_OLDEST_WITH_TOKENS = (2, 52)
_DELETION_ORDER = ("DeleteWorkers", "DeleteCluster", "DeleteSelf")


def check_kuberay(root: Path, document: Document, pins: Pins, report: Report) -> None:
    """A RayCluster, RayJob or RayService."""
    values, kind = document.values, document.values["kind"]
    name = str(at(values, "metadata", "name", default=""))
    keys: Keys = ("metadata", "name")
    if len(name) > LONGEST_NAMES[kind]:
        text = f"a {kind}'s name has at most {LONGEST_NAMES[kind]} characters, got {len(name)}"
        report.add(document, keys, text)
    if not re.fullmatch(r"[a-z]([-a-z0-9]*[a-z0-9])?", name):
        report.add(document, keys, f"wants letters a-z, digits and hyphens, a letter first (DNS-1035), got {name!r}")
    cluster_keys: dict[str, Keys] = {
        "RayCluster": ("spec",),
        "RayJob": ("spec", "rayClusterSpec"),
        "RayService": ("spec", "rayClusterConfig"),
    }
    cluster = at(values, *cluster_keys[kind])
    if cluster is not None:
        _check_cluster(document, cluster_keys[kind], cluster, pins, report)
    if kind == "RayJob":
        _check_job(root, document, at(values, "spec", default={}), pins, report)
    elif kind == "RayService":
        _check_service(root, document, report)


def _groups(keys: Keys, cluster: Any) -> list[tuple[Keys, Any]]:
    workers = at(cluster, "workerGroupSpecs", default=[])
    return [
        ((*keys, "headGroupSpec"), at(cluster, "headGroupSpec", default={})),
        *(((*keys, "workerGroupSpecs", number), group) for number, group in enumerate(workers)),
    ]


def _check_cluster(document: Document, keys: Keys, cluster: Any, pins: Pins, report: Report) -> None:
    version = at(cluster, "rayVersion")
    if version != pins.ray:
        report.add(document, (*keys, "rayVersion"), f"wants {pins.ray}, as constraints.txt pins Ray, got {version}")
    if at(cluster, "authOptions", "mode") != "token":
        text = "wants authOptions: {mode: token}: without it whoever reaches the dashboard runs code here"
        report.add(document, (*keys, "authOptions"), text)
    elif tuple(map(int, re.findall(r"\d+", str(version))[:2])) < _OLDEST_WITH_TOKENS:
        report.add(document, (*keys, "rayVersion"), f"mode token wants rayVersion 2.52 or newer, got {version}")
    scales = bool(at(cluster, "enableInTreeAutoscaling"))
    is_second = at(cluster, "autoscalerOptions", "version") == "v2"
    if at(cluster, "autoscalerOptions") is not None and not scales:
        text = "autoscalerOptions do nothing without enableInTreeAutoscaling: true"
        report.add(document, (*keys, "autoscalerOptions"), text)
    images, names = set(), set()
    for here, group in _groups(keys, cluster):
        template = at(group, "template", default={})
        check_pod(document, (*here, "template"), template, pins, report)
        check_ray_pod(document, (*here, "template"), template, report)
        _check_group(document, here, group, report, scales=scales)
        policy = at(template, "spec", "restartPolicy")
        if scales and is_second and policy not in (None, "Never"):
            text = f"autoscaler v2 wants restartPolicy Never, got {policy}: it replaces pods itself"
            report.add(document, (*here, "template", "spec", "restartPolicy"), text)
        images.add(at(template, "spec", "containers", 0, "image"))
        if group.get("groupName") in names:
            report.add(document, (*here, "groupName"), f"two groups are called {group.get('groupName')}")
        names.add(group.get("groupName", "head"))
    if len(images) > 1:
        report.add(document, keys, f"all nodes run one image, got {', '.join(sorted(map(str, images)))}")


def _check_group(document: Document, keys: Keys, group: Any, report: Report, *, scales: bool) -> None:
    parameters = at(group, "rayStartParams", default={})
    both = [name for name in ("num-cpus", "num-gpus", "memory", "resources") if parameters.get(name)]
    if both and at(group, "resources"):
        text = f"resources stand in rayStartParams ({', '.join(both)}) and in resources: use one of them"
        report.add(document, (*keys, "resources"), text)
    if "labels" in parameters:
        report.add(document, (*keys, "rayStartParams"), "labels are no rayStartParams: write them under labels")
    if keys[-1] == "headGroupSpec":
        if parameters.get("num-cpus") != "0":
            text = 'wants num-cpus: "0": tasks on the head endanger the whole cluster'
            report.add(document, (*keys, "rayStartParams"), text)
        return
    least, most, now = (group.get(name) for name in ("minReplicas", "maxReplicas", "replicas"))
    least = least or 0
    if isinstance(most, int) and isinstance(least, int) and not 0 <= least <= most:
        report.add(document, (*keys, "minReplicas"), f"wants 0 <= minReplicas <= maxReplicas, got {least} and {most}")
    elif isinstance(now, int) and isinstance(most, int) and not least <= now <= most:
        text = f"wants minReplicas <= replicas <= maxReplicas, got {least}, {now} and {most}"
        report.add(document, (*keys, "replicas"), text)
    if not scales and isinstance(most, int) and isinstance(now, int) and now != most:
        text = f"nothing starts more than {now} pods without enableInTreeAutoscaling: true, got maxReplicas {most}"
        report.add(document, (*keys, "maxReplicas"), text)
    if group.get("suspend") and scales:
        report.add(document, (*keys, "suspend"), "a group cannot be suspended where the cluster scales itself")


def _check_job(root: Path, document: Document, spec: Any, pins: Pins, report: Report) -> None:
    keys: Keys = ("spec",)
    shuts_down = bool(at(spec, "shutdownAfterJobFinishes"))
    if at(spec, "ttlSecondsAfterFinished", default=0) and not shuts_down:
        text = "ttlSecondsAfterFinished wants shutdownAfterJobFinishes: true"
        report.add(document, (*keys, "ttlSecondsAfterFinished"), text)
    if not shuts_down and not at(spec, "deletionStrategy") and not at(spec, "clusterSelector"):
        text = "nothing ends the cluster: wants shutdownAfterJobFinishes: true or a deletionStrategy"
        report.add(document, keys, text)
    _check_deletion(document, spec, report, shuts_down=shuts_down)
    has_cluster, has_selector = "rayClusterSpec" in spec, bool(at(spec, "clusterSelector"))
    if has_cluster == has_selector:
        report.add(document, keys, "wants either rayClusterSpec or clusterSelector")
    if at(spec, "suspend") and (has_selector or not shuts_down):
        report.add(
            document, (*keys, "suspend"), "suspend wants a cluster of its own and shutdownAfterJobFinishes: true"
        )
    mode = at(spec, "submissionMode", default="K8sJobMode")
    if mode == "InteractiveMode" and at(spec, "backoffLimit", default=0) > 0:
        report.add(document, (*keys, "backoffLimit"), "InteractiveMode has no second attempts: leave backoffLimit out")
    if mode == "SidecarMode":
        for name in ("submitterPodTemplate", "submitterConfig", "clusterSelector"):
            if at(spec, name):
                report.add(document, (*keys, name), f"SidecarMode has no {name}")
    before, whole = at(spec, "preRunningDeadlineSeconds"), at(spec, "activeDeadlineSeconds")
    if before and whole and before >= whole:
        text = f"wants less than activeDeadlineSeconds ({whole}), got {before}: the job would never run"
        report.add(document, (*keys, "preRunningDeadlineSeconds"), text)
    submitter = at(spec, "submitterPodTemplate")
    if submitter is not None:
        check_pod(document, (*keys, "submitterPodTemplate"), submitter, pins, report)
    entrypoint = str(at(spec, "entrypoint", default=""))
    check_command(root, document, (*keys, "entrypoint"), entrypoint, report)
    _check_workers(document, spec, entrypoint, report)


def _check_deletion(document: Document, spec: Any, report: Report, *, shuts_down: bool) -> None:
    strategy = at(spec, "deletionStrategy")
    if strategy is None:
        return
    keys: Keys = ("spec", "deletionStrategy")
    rules = at(strategy, "deletionRules", default=[])
    of_old = {name for name in ("onSuccess", "onFailure") if name in strategy}
    if rules and shuts_down:
        report.add(document, keys, "deletionRules and shutdownAfterJobFinishes exclude each other")
    if bool(rules) == bool(of_old) or len(of_old) == 1:
        report.add(document, keys, "wants either deletionRules, or both onSuccess and onFailure")
    scales = at(spec, "rayClusterSpec", "enableInTreeAutoscaling")
    seen: dict[str, dict[str, int]] = {}
    for number, rule in enumerate(rules):
        here = (*keys, "deletionRules", number)
        condition, policy = at(rule, "condition", default={}), str(at(rule, "policy"))
        states = {name for name in ("jobStatus", "jobDeploymentStatus") if name in condition}
        if len(states) != 1:
            report.add(document, here, "a condition wants either jobStatus or jobDeploymentStatus")
            continue
        if policy == "DeleteWorkers" and scales:
            report.add(document, here, "DeleteWorkers does not go with enableInTreeAutoscaling")
        times = seen.setdefault(str(condition[states.pop()]), {})
        if policy in times:
            report.add(document, here, f"a second rule for {policy} in the same state")
        times[policy] = condition.get("ttlSeconds", 0)
        ordered = [times[one] for one in _DELETION_ORDER if one in times]
        if ordered != sorted(ordered):
            report.add(document, here, f"wants {' before '.join(_DELETION_ORDER)} by ttlSeconds, got {times}")
    for state in ("SUCCEEDED", "Failed") if rules and "rayClusterSpec" in spec else ():
        # A job that never ran, for want of GPUs, has no jobStatus: FAILED does not catch it.
        if not {"DeleteCluster", "DeleteSelf"} & seen.get(state, {}).keys():
            name = "jobStatus" if state == "SUCCEEDED" else "jobDeploymentStatus"
            report.add(document, keys, f"no rule deletes the cluster where {name} is {state}: it would stay, and cost")


def _check_workers(document: Document, spec: Any, entrypoint: str, report: Report) -> None:
    """A training or search takes all GPUs of its cluster, or the rest of them would cost money for nothing."""
    workers = option_of(entrypoint, "workers.num_workers")
    if workers is None or not workers.isdecimal():
        return
    gpus, wanted = 0, int(workers) * int(option_of(entrypoint, "search.concurrent_trials") or 1)
    for number, group in enumerate(at(spec, "rayClusterSpec", "workerGroupSpecs", default=[])):
        limits = at(group, "template", "spec", "containers", 0, "resources", "limits", default={})
        of_a_pod = int(amount(limits.get("nvidia.com/gpu", 0)))
        gpus += of_a_pod * group.get("replicas", 0)
        if of_a_pod and group.get("replicas") != group.get("minReplicas"):
            keys: Keys = ("spec", "rayClusterSpec", "workerGroupSpecs", number, "replicas")
            report.add(
                document, keys, "wants replicas = minReplicas: a job counts the GPUs that are there at its start"
            )
    if gpus and wanted != gpus:
        text = f"uses {wanted} GPUs (workers.num_workers x search.concurrent_trials), the worker groups have {gpus}"
        report.add(document, ("spec", "entrypoint"), text)


def _check_service(root: Path, document: Document, report: Report) -> None:
    keys: Keys = ("spec", "serveConfigV2")
    text = at(document.values, *keys)
    try:
        config = yaml.safe_load(text or "")
    except yaml.YAMLError as error:
        report.add(document, keys, f"no YAML: {' '.join(str(error).split())}")
        return
    from ray.serve.schema import ServeDeploySchema

    try:
        ServeDeploySchema.model_validate(config)
    except Exception as error:  # noqa: BLE001  (pydantic's, and what Ray's validators raise)
        report.add(document, keys, f"Ray Serve refuses it: {' '.join(str(error).split()):.300}")
        return
    _check_replicas(document, config, report)
    for application in at(config, "applications", default=[]):
        path = str(application.get("import_path", ""))
        module = path.partition(":")[0].replace(".", "/")
        if not any((root / one).exists() for one in (f"{module}.py", f"{module}/__init__.py")):
            report.add(document, keys, f"import_path {path!r} names no module of this repository")


def _check_replicas(document: Document, config: Any, report: Report) -> None:
    """The service listens for others, its settings are ones that it has, and the worker pods have room for it."""
    from twostream_ray.errors import TwoStreamError
    from twostream_ray.serving.settings import ServeConfig
    from twostream_ray.settings.parser import from_mapping

    keys: Keys = ("spec", "serveConfigV2")
    if at(config, "http_options", "host") != "0.0.0.0":  # noqa: S104  (of a pod, whom a service of Kubernetes reaches)
        report.add(document, keys, f"wants http_options.host 0.0.0.0, got {at(config, 'http_options', 'host')}")
    port, pods, cpus = at(config, "http_options", "port", default=8000), 0, []
    for here, group in _groups((), at(document.values, "spec", "rayClusterConfig", default={})):
        container = at(group, "template", "spec", "containers", 0)
        if port not in [at(one, "containerPort") for one in at(container, "ports", default=[])]:
            report.add(document, keys, f"http_options.port {port} is no containerPort of {here[0]}")
        if here[0] != "headGroupSpec":
            pods += at(group, "replicas", default=1)
            cpus.append(amount(at(container, "resources", "limits", "cpu")))
    for application in at(config, "applications", default=[]):
        try:
            replicas = from_mapping(ServeConfig, at(application, "args", default={})).replicas
        except TwoStreamError as error:
            report.add(document, keys, f"args: {error}")
            continue
        fits = pods * int(min(cpus, default=0) // replicas.cpus)
        if replicas.number > fits:
            text = f"wants {replicas.number} replicas of {replicas.cpus:g} CPUs, the worker pods have room for {fits}"
            report.add(document, keys, text)
