"""Consistency of manifests: namespace, region, services that addresses name, existing clusters and accounts."""

from __future__ import annotations

import fnmatch
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any

from checks.documents import Document, Keys, Report, at

Found = tuple[Document, Keys, str]
"""A value, and where it stands."""

_ADDRESS = re.compile(r"(?:@|//)([a-z][a-z0-9-]*)(?:\.[a-z0-9-]+\.svc(?:\.cluster\.local)?)?(?::(\d+))?(?=[/\s'\"]|$)")
"""Of a service inside the cluster: a name without a domain, and its port."""
_PORTS = {"http": "80", "https": "443"}
_ROLE = "eks.amazonaws.com/role-arn"


def check_agreement(documents: Sequence[Document], report: Report) -> None:
    """Check manifests against each other."""
    spaces: list[Found] = [
        (one, ("metadata", "namespace"), str(at(one.values, "metadata", "namespace", default="default")))
        for one in documents
    ]
    require_one(spaces, "the namespace", report)
    regions = [
        (document, keys, str(at(entry, "value")))
        for document in documents
        for keys, entry in _entries(document.values)
        if at(entry, "name") == "AWS_DEFAULT_REGION" and at(entry, "value")
    ]
    require_one(regions, "AWS_DEFAULT_REGION", report)
    _check_servers(documents, report)
    _check_services(documents, report)
    _check_clusters(documents, report)
    _check_accounts(documents, report)


def require_one(found: Sequence[Found], what: str, report: Report) -> None:
    """Report each value that differs from the most common one."""
    counts = Counter(value for _, _, value in found)
    for document, keys, value in found:
        most = counts.most_common(1)[0][0]
        if value != most:
            report.add(document, keys, f"{what} is {value!r} here, {most!r} elsewhere: they have to be one")


def _check_servers(documents: Sequence[Document], report: Report) -> None:
    """Check that all manifests use the same MLflow server."""
    found: dict[str, tuple[Document, Keys]] = {}
    for document in documents:
        for keys, entry in _entries(document.values):
            if at(entry, "name") == "MLFLOW_TRACKING_URI" and re.match("https?://", str(at(entry, "value"))):
                found.setdefault(str(entry["value"]), (document, keys))
    for uri, (document, keys) in list(found.items())[1:]:
        report.add(document, keys, f"another MLflow server than in the other manifests: {uri}, {next(iter(found))}")
    inside = {f"{name}:{port}" for uri in found for name, port in _addresses(uri)}
    for document in documents:
        for keys, text in _texts(document.values):
            listed = re.search(r"--allowed-hosts[ =]'?([^'\s]+)", text)
            for address in sorted(inside) if listed else ():
                if listed and not any(fnmatch.fnmatch(address, one) for one in listed[1].split(",")):
                    what = f"--allowed-hosts lists no {address}, which MLFLOW_TRACKING_URI names: it would answer 403"
                    report.add(document, keys, what)


def _check_services(documents: Sequence[Document], report: Report) -> None:
    """An address without a domain is that of a service here, at a port that it has."""
    services = {
        str(at(one.values, "metadata", "name")): {str(at(port, "port")) for port in at(one.values, "spec", "ports")}
        for one in documents
        if at(one.values, "kind") == "Service"
    }
    for document in documents:
        for keys, text in _texts(document.values):
            for name, port in _addresses(text):
                if name not in services:
                    there = ", ".join(sorted(services)) or "none"
                    report.add(document, keys, f"no manifest here makes a service {name!r}: there are {there}")
                elif port not in services[name]:
                    wanted = " or ".join(sorted(services[name]))
                    report.add(document, keys, f"the service {name} has the port {wanted}, not {port}")


def _addresses(text: str) -> Iterator[tuple[str, str]]:
    scheme = text.partition("://")[0]
    for name, port in _ADDRESS.findall(text) if "://" in text else ():
        if name != "localhost" and scheme in ("http", "https", "postgresql"):
            yield name, port or _PORTS.get(scheme, "5432")


def _check_clusters(documents: Sequence[Document], report: Report) -> None:
    """A job that brings no cluster selects one that a manifest makes."""
    key = "ray.io/cluster"
    clusters = {at(one.values, "metadata", "name") for one in documents if at(one.values, "kind") == "RayCluster"}
    for document in documents:
        selector = at(document.values, "spec", "clusterSelector")
        if at(document.values, "kind") == "RayJob" and selector and at(selector, key) not in clusters:
            there = ", ".join(sorted(map(str, clusters))) or "none"
            text = f"wants {key}: a RayCluster of a manifest here ({there}), got {at(selector, key)!r}"
            report.add(document, ("spec", "clusterSelector"), text)


def _check_accounts(documents: Sequence[Document], report: Report) -> None:
    """Roles of accounts are ARNs; a head that scales its cluster may speak to Kubernetes."""
    mute = set()
    for document in documents:
        if at(document.values, "kind") != "ServiceAccount":
            continue
        if at(document.values, "automountServiceAccountToken") is False:
            mute.add(at(document.values, "metadata", "name"))
        role = at(document.values, "metadata", "annotations", _ROLE)
        if role is not None and not re.fullmatch(r"arn:aws:iam::\d{12}:role/[\w+=,.@/-]+", str(role)):
            text = f"wants a role's ARN (arn:aws:iam::ACCOUNT:role/NAME), got {role!r}"
            report.add(document, ("metadata", "annotations", _ROLE), text)
    for document in documents:
        for part in (("spec",), ("spec", "rayClusterSpec"), ("spec", "rayClusterConfig")):
            keys: Keys = (*part, "headGroupSpec", "template", "spec", "serviceAccountName")
            account = at(document.values, *keys)
            if at(document.values, *part, "enableInTreeAutoscaling") and account in mute:
                text = f"the head's autoscaler asks Kubernetes for pods, which {account} may not: it mounts no token"
                report.add(document, keys, text)


def _texts(values: Any, keys: Keys = ()) -> Iterator[tuple[Keys, str]]:
    if isinstance(values, str):
        yield keys, values
    pairs = values.items() if isinstance(values, dict) else enumerate(values) if isinstance(values, list) else ()
    for key, value in pairs:
        yield from _texts(value, (*keys, key))


def _entries(values: Any, keys: Keys = ()) -> Iterator[tuple[Keys, Any]]:
    """All environment variables of a manifest."""
    pairs = values.items() if isinstance(values, dict) else enumerate(values) if isinstance(values, list) else ()
    for key, value in pairs:
        if key == "env":
            yield from (((*keys, key, number), entry) for number, entry in enumerate(value or []))
        else:
            yield from _entries(value, (*keys, key))
