"""What the IAM policies are for: rights that each has to grant, who may take a role, and names that they agree on."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from checks.agreement import Found, require_one
from checks.documents import Document, Keys, Report, at
from checks.pins import OURS
from checks.policies import statements_of, texts

_BUCKET = {"s3:ListBucket", "s3:GetObject", "s3:PutObject", "s3:DeleteObject", "s3:AbortMultipartUpload"}
_NODES = {"ec2:DescribeInstances", "ec2:RunInstances", "ec2:CreateTags", "ec2:TerminateInstances", "iam:PassRole"}
NEEDED = {
    "bucket.json": _BUCKET,
    "mlflow_bucket.json": _BUCKET,
    "head.json": _NODES | {"ssm:GetParameters"},
    "person.json": _NODES | {"ssm:GetParameters", "iam:GetInstanceProfile"},
    "pull_image.json": {"ecr:GetAuthorizationToken", "ecr:BatchGetImage", "ecr:GetDownloadUrlForLayer"},
}
"""Policy -> actions without which what it is for fails half-way."""
_MADE_FROM = ("image", "instance", "key-pair", "network-interface", "security-group", "subnet", "volume")
"""What RunInstances is asked about: all of it, or an instance does not start."""
_OPERATOR = re.compile(
    r"(ForA(ll|ny)Values?:)?((String|Arn)(Not)?(Equals|Like)|StringEqualsIgnoreCase|Numeric\w+|Date\w+|Bool|Null"
    r"|(Not)?IpAddress)(IfExists)?"
)
_TAG = re.compile(r"aws:(Request|Resource)Tag/ray-cluster-name")


def check_rights(
    policies: Sequence[Document], manifests: Sequence[Document], launcher: Document | None, report: Report
) -> None:
    """Hold policies against what they are for, and against manifests and the launcher's file."""
    accounts: list[Found] = [
        (one, (), number)
        for one in (*policies, *manifests)
        for number in re.findall(r"arn:aws:\w+:[a-z0-9-]*:(\d{12}):", str(one.values))
    ]
    require_one(accounts, "the AWS account", report)
    for document in policies:
        _check_needed(document, report)
        _check_conditions(document, at(launcher and launcher.values, "cluster_name"), report)
        for number, statement in enumerate(statements_of(document)):
            if "Principal" in statement:
                _check_trust(document, ("Statement", number), statement, manifests, report)
    _check_artefacts(policies, manifests, report)


def _check_needed(document: Document, report: Report) -> None:
    allowed = [one for one in statements_of(document) if at(one, "Effect") == "Allow"]
    granted = {action for one in allowed for action in texts(at(one, "Action"))}
    for action in sorted(NEEDED.get(Path(document.file).name, set()) - granted):
        report.add(document, ("Statement",), f"does not allow {action}, without which it is of no use")
    buckets: dict[bool, set[str]] = {True: set(), False: set()}
    kinds: set[str] = set()
    for statement in allowed:
        actions, resources = texts(at(statement, "Action")), texts(at(statement, "Resource"))
        for resource in resources:
            if found := re.fullmatch(r"arn:aws:s3:::([^/]+)(/.*)?", resource):
                buckets[found[2] is None].add(found[1])
            if "ec2:RunInstances" in actions:
                kinds.add(resource.rpartition(":")[2].partition("/")[0])
            if "ecr:BatchGetImage" in actions and resource.partition("repository/")[2] not in OURS:
                text = f"wants the repository of an image that is built here, {' or '.join(OURS)}, got {resource}"
                report.add(document, ("Statement",), text)
    if buckets[True] != buckets[False]:
        names = [", ".join(sorted(buckets[one])) or "none" for one in (True, False)]
        report.add(document, ("Statement",), f"lists the bucket {names[0]}, but reads objects of {names[1]}")
    missing = [kind for kind in _MADE_FROM if kind not in kinds]
    if kinds and missing:
        report.add(document, ("Statement",), f"ec2:RunInstances wants resources of the kinds {', '.join(missing)} too")


def _check_conditions(document: Document, cluster: Any, report: Report) -> None:
    for number, statement in enumerate(statements_of(document)):
        keys: Keys = ("Statement", number, "Condition")
        condition = at(statement, "Condition", default={})
        for operator, tested in condition.items():
            if not _OPERATOR.fullmatch(operator):
                report.add(document, keys, f"AWS has no operator {operator!r}: StringEquals and StringLike are some")
            for name, value in tested.items() if isinstance(tested, dict) else ():
                if _TAG.fullmatch(name) and cluster is not None and value != cluster:
                    report.add(document, keys, f"{name} is {value!r}, cluster_name of ray_cluster.yaml {cluster!r}")
        starts = "ec2:RunInstances" in texts(at(statement, "Action"))
        of_instances = any(":instance/" in one for one in texts(at(statement, "Resource")))
        if starts and of_instances and "aws:RequestTag/ray-cluster-name" not in str(condition):
            text = "wants a condition on aws:RequestTag/ray-cluster-name: else instances of any kind may be started"
            report.add(document, keys, text)


def _check_trust(document: Document, keys: Keys, statement: Any, manifests: Sequence[Document], report: Report) -> None:
    """Who may take a role: instances of EC2, or pods of accounts that are named."""
    principal, actions = at(statement, "Principal"), texts(at(statement, "Action"))
    if at(statement, "Effect") != "Allow":
        report.add(document, (*keys, "Effect"), "wants Allow: nobody could take this role")
    if principal == {"Service": "ec2.amazonaws.com"}:
        if actions != ["sts:AssumeRole"]:
            report.add(document, (*keys, "Action"), f"instances take a role by sts:AssumeRole, got {actions}")
        return
    provider = str(at(principal, "Federated", default=""))
    issuer = provider.partition(":oidc-provider/")[2]
    if not issuer or set(principal) != {"Federated"}:
        text = f"wants instances ({{Service: ec2.amazonaws.com}}) or a cluster's accounts (Federated), got {principal}"
        report.add(document, (*keys, "Principal"), text)
        return
    condition = at(statement, "Condition", default={})
    subjects = texts(at(condition, "StringEquals", f"{issuer}:sub"))
    if not subjects or set(condition) != {"StringEquals"} or at(condition, "StringEquals", f"{issuer}:aud") is None:
        text = f"wants StringEquals of {issuer}:aud and :sub: else every pod of the cluster could take this role"
        report.add(document, (*keys, "Condition"), text)
    known = {
        f"system:serviceaccount:{at(one.values, 'metadata', 'namespace', default='default')}:"
        f"{at(one.values, 'metadata', 'name')}"
        for one in manifests
        if at(one.values, "kind") == "ServiceAccount"
    }
    for subject in subjects if known else ():
        if subject not in known:
            report.add(
                document, (*keys, "Condition"), f"no manifest makes {subject}: there are {', '.join(sorted(known))}"
            )


def _check_artefacts(policies: Sequence[Document], manifests: Sequence[Document], report: Report) -> None:
    """MLflow's server may write where it keeps artefacts, and nodes may not."""
    found = [re.search(r"--artifacts-destination[ =]s3://([\w./-]+)", str(one.values)) for one in manifests]
    for match in filter(None, found):
        place = f"arn:aws:s3:::{match[1].rstrip('/')}/*"
        for name, effect in (("mlflow_bucket.json", "Allow"), ("bucket.json", "Deny")):
            for document in policies:
                held = {
                    action
                    for one in statements_of(document)
                    if at(one, "Effect") == effect and place in texts(at(one, "Resource"))
                    for action in texts(at(one, "Action"))
                }
                if Path(document.file).name == name and "s3:PutObject" not in held:
                    what = "MLflow keeps artefacts there" if effect == "Allow" else "only MLflow is to write there"
                    report.add(document, ("Statement",), f"wants {effect} s3:PutObject for {place}: {what}")
