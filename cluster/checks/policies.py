"""IAM policies: actions that AWS has (botocore's models), on resources that they have, and no wider than needed."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from functools import cache
from pathlib import Path
from typing import Any

from checks.documents import Document, Keys, Report, at

_ON_BUCKETS = {"ListBucket", "GetBucketLocation", "ListBucketMultipartUploads"}
_ON_OBJECTS = {"GetObject", "PutObject", "DeleteObject", "AbortMultipartUpload", "ListMultipartUploadParts"}
_WITHOUT_RESOURCE = re.compile(r"ec2:Describe\w+|ecr:GetAuthorizationToken|iam:ListInstanceProfiles|sts:\w+")
"""Actions that AWS lets nobody narrow to a resource."""
_ONLY_IAM = {"iam:PassRole"}
"""Permissions that are no operations."""
_PASSED_TO = {"StringEquals": {"iam:PassedToService": "ec2.amazonaws.com"}}


@cache
def _operations(service: str) -> frozenset[str]:
    import botocore.session

    return frozenset(botocore.session.get_session().get_service_model(service).operation_names)


def check_policy(document: Document, report: Report) -> None:
    """A policy, or a role's trust policy."""
    values = document.values
    if at(values, "Version") != "2012-10-17":
        report.add(document, ("Version",), "wants 2012-10-17: older ones know no policy variables")
    statements = at(values, "Statement", default=[])
    if not isinstance(statements, list) or not statements:
        report.add(document, ("Statement",), "wants a list of statements")
        return
    names = [at(one, "Sid") for one in statements]
    for number, statement in enumerate(statements):
        keys: Keys = ("Statement", number)
        for name in sorted(statement.keys() - {"Sid", "Effect", "Action", "Resource", "Condition", "Principal"}):
            report.add(
                document, (*keys, name), "an unknown element: there are Sid, Effect, Action, Resource, Condition"
            )
        if not re.fullmatch("[A-Za-z0-9]+", str(at(statement, "Sid"))) or names.count(at(statement, "Sid")) > 1:
            report.add(
                document, (*keys, "Sid"), f"wants letters and digits, once in a policy, got {at(statement, 'Sid')}"
            )
        if at(statement, "Effect") not in ("Allow", "Deny"):
            report.add(document, (*keys, "Effect"), f"wants Allow or Deny, got {at(statement, 'Effect')}")
        _check_actions(document, keys, statement, report)


def _check_actions(document: Document, keys: Keys, statement: Any, report: Report) -> None:
    actions, resources = texts(at(statement, "Action")), texts(at(statement, "Resource"))
    trusts = "Principal" in statement
    for action in actions:
        service, _, name = action.partition(":")
        if not _is_known(service, name):
            report.add(document, (*keys, "Action"), f"AWS has no action {action!r}, or it is more than is needed")
            continue
        if "*" in resources and not _WITHOUT_RESOURCE.fullmatch(action):
            report.add(document, (*keys, "Resource"), f"{action} on all resources: name those that it is for")
        if service == "s3":
            _check_bucket(document, (*keys, "Resource"), name, resources, report)
    if "iam:PassRole" in actions:
        if at(statement, "Condition") != _PASSED_TO:
            text = f"iam:PassRole wants the condition {_PASSED_TO}: else the role may be handed to any service"
            report.add(document, (*keys, "Condition"), text)
        for resource in resources:
            if not re.fullmatch(r"arn:aws:iam::\d{12}:role/[\w+=,.@/-]+", resource):
                text = f"iam:PassRole wants the ARN of one role (arn:aws:iam::ACCOUNT:role/NAME), got {resource}"
                report.add(document, (*keys, "Resource"), text)
    changes = {f"ec2:{name}Instances" for name in ("Terminate", "Stop", "Start")}
    if changes & set(actions) and "ray-cluster-name" not in str(at(statement, "Condition")):
        text = "wants a condition on the tag ray-cluster-name: else every instance of the account may be ended"
        report.add(document, (*keys, "Condition"), text)
    if not trusts and not resources:
        report.add(document, keys, "lacks Resource")
    for resource in resources:
        if resource != "*" and not re.match(r"arn:aws:[\w-]+:[\w*-]*:(\d{12}|\*|aws)?:\S+$", resource):
            report.add(document, (*keys, "Resource"), f"{resource!r} is no ARN")


def _is_known(service: str, name: str) -> bool:
    if service == "s3":
        return name in _ON_BUCKETS | _ON_OBJECTS
    if f"{service}:{name}" in _ONLY_IAM:
        return True
    return service in ("ec2", "ecr", "iam", "ssm", "sts") and name in _operations(service)


def _check_bucket(document: Document, keys: Keys, name: str, resources: Iterable[str], report: Report) -> None:
    """An action on a bucket wants the bucket's ARN, one on objects that of objects; the other grants nothing."""
    for resource in resources:
        is_bucket = re.fullmatch(r"arn:aws:s3:::[a-z0-9.-]+", resource) is not None
        if is_bucket != (name in _ON_BUCKETS):
            wanted = "arn:aws:s3:::BUCKET" if name in _ON_BUCKETS else "arn:aws:s3:::BUCKET/PREFIX*"
            report.add(document, keys, f"s3:{name} wants {wanted}, got {resource}")


def check_roles(policies: Sequence[Document], launcher: Document | None, report: Report) -> None:
    """The roles that may be passed are those that the launcher file gives to nodes, in regions that are its own."""
    if launcher is None:
        return
    types = at(launcher.values, "available_node_types", default={})
    profiles = {str(at(node, "node_config", "IamInstanceProfile", "Name")) for node in types.values()}
    passed = {
        resource.rpartition("/")[2]
        for document in policies
        for statement in statements_of(document)
        if "iam:PassRole" in texts(at(statement, "Action"))
        for resource in texts(at(statement, "Resource"))
    }
    for role in sorted(profiles - passed) if policies else ():
        text = f"no policy lets {role} be passed to instances: `ray up` and the head would be refused"
        report.add(launcher, ("available_node_types",), text)
    region = at(launcher.values, "provider", "region")
    for document in policies:
        for found in set(re.findall(r"arn:aws:\w+:([a-z0-9-]+):", str(document.values))):
            if found != region:
                report.add(document, (), f"names the region {found}, ray_cluster.yaml {region}")


def check_buckets(root: Path, policies: Sequence[Document], files: Sequence[str], report: Report) -> None:
    """Files that name a bucket name one that a policy grants."""
    granted = {name for one in policies for name in re.findall(r"arn:aws:s3:::([a-z0-9.-]+)", str(one.values))}
    for file in files if granted else ():
        for number, line in enumerate((root / file).read_text().splitlines(), start=1):
            for bucket in re.findall(r"s3://([^/\s'\"*$]+)", line):
                if bucket not in granted:
                    text = f"the bucket {bucket} is in no policy, which grant {', '.join(sorted(granted))}"
                    report.add(Document(file=file, values=None, lines={(): number}), (), text)


def statements_of(document: Document) -> Iterator[Any]:
    """The statements of a policy."""
    statements = at(document.values, "Statement", default=[])
    yield from statements if isinstance(statements, list) else []


def texts(value: Any) -> list[str]:
    """What a policy gives as a text or a list of them."""
    return value if isinstance(value, list) else [] if value is None else [value]
