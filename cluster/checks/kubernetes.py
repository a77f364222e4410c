"""Kubernetes' own kinds, and names that one manifest takes from another."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from checks.documents import Document, Keys, Report, at
from checks.fields import KINDS
from checks.pins import Pins
from checks.pods import check_pod
from checks.schemas import Validator, check_against

_WITH_PODS = ("Deployment", "StatefulSet")


def check_kind(document: Document, schemas: dict[str, Any], report: Report) -> bool:
    """Hold a manifest against the fields of its kind; gives whether it is of a kind that is known."""
    kind = at(document.values, "kind")
    if kind not in KINDS:
        report.add(document, ("kind",), f"wants a kind out of {', '.join(KINDS)}, got {kind!r}")
        return False
    # KubeRay's own schema is stricter about what it has, and lets through words that only the operator checks.
    check_against(Validator(KINDS[kind]), document, report)
    if kind in schemas:
        check_against(schemas[kind], document, report)
    return True


def check_workload(document: Document, pod_schema: Any, pins: Pins, report: Report) -> None:
    """A Deployment or StatefulSet: its pods, and a selector that finds them."""
    if at(document.values, "kind") not in _WITH_PODS:
        return
    keys: Keys = ("spec", "template")
    template = at(document.values, *keys, default={})
    check_pod(document, keys, template, pins, report)
    if pod_schema is not None:
        check_against(pod_schema, document, report, values=template, keys=keys)
    wanted, labels = (
        at(document.values, "spec", "selector", "matchLabels"),
        at(template, "metadata", "labels", default={}),
    )
    if not wanted or any(labels.get(name) != value for name, value in wanted.items()):
        report.add(document, ("spec", "selector"), f"matchLabels {wanted} do not find the template's labels {labels}")


def check_names(documents: Sequence[Document], report: Report) -> None:
    """Service accounts and services that a manifest names are in another one."""
    accounts = {at(one.values, "metadata", "name") for one in documents if at(one.values, "kind") == "ServiceAccount"}
    for document in documents:
        for keys, value in _found(document.values, "serviceAccountName"):
            if value not in accounts:
                there = ", ".join(sorted(accounts)) or "none"
                text = f"no manifest here makes a service account {value!r}: there are {there}"
                report.add(document, keys, text)
    for document in documents:
        if at(document.values, "kind") != "Service":
            continue
        selector = at(document.values, "spec", "selector", default={})
        ports = {str(at(port, "targetPort", default=at(port, "port"))) for port in at(document.values, "spec", "ports")}
        for other in documents:
            template = at(other.values, "spec", "template", default={})
            labels = at(template, "metadata", "labels", default={})
            if selector and all(labels.get(name) == value for name, value in selector.items()):
                found = at(template, "spec", "containers", 0, "ports", default=[])
                open_ports = {str(at(port, name)) for port in found for name in ("name", "containerPort")}
                if not ports <= open_ports:
                    text = f"targetPort {', '.join(sorted(ports - open_ports))} is no port of the pods it selects"
                    report.add(document, ("spec", "ports"), text)
                break
        else:
            if selector and not any(name.startswith("ray.io/") for name in selector):
                report.add(document, ("spec", "selector"), f"selects the pods of no manifest here: {selector}")


def _found(values: Any, name: str, keys: Keys = ()) -> list[tuple[Keys, Any]]:
    pairs = values.items() if isinstance(values, dict) else enumerate(values) if isinstance(values, list) else ()
    found = []
    for key, value in pairs:
        found += [((*keys, key), value)] if key == name else _found(value, name, (*keys, key))
    return found
