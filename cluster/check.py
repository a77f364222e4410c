"""Checks the files that describe clusters, offline (`python cluster/check.py`): exit 1 and a line for each mistake.

It holds ray_cluster.yaml against Ray's own schema and AWS's parameters (botocore's models), manifests against tables
of fields (`checks/fields.py`) and what KubeRay's operator alone refuses, the IAM policies against the actions that AWS
has, commands against the settings of their verbs, and all of them against the versions that this repository pins.
KubeRay's own schemas are used too where they are at hand: a folder with its custom resource definitions (`kubectl get
crd rayjobs.ray.io -o yaml > crds/rayjobs.yaml`, and so rayclusters and rayservices) is named by --schemas.

What is yours to write is marked FILL IN: those places are listed, and with --ready a place that is left is a mistake.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
for folder in (HERE, HERE.parent):
    if str(folder) not in sys.path:
        sys.path.insert(0, str(folder))

from checks import schemas as schema_files  # noqa: E402
from checks.agreement import check_agreement  # noqa: E402
from checks.documents import Blank, Document, Report, at, blanks, read_json, read_yaml, unmarked_placeholders  # noqa: E402
from checks.kuberay import LONGEST_NAMES, check_kuberay  # noqa: E402
from checks.kubernetes import check_kind, check_names, check_workload  # noqa: E402
from checks.launcher import check_launcher  # noqa: E402
from checks.pins import (  # noqa: E402
    Pins,
    check_dockerfile,
    check_driver_in_words,
    check_server_dockerfile,
    read_pins,
)
from checks.policies import check_buckets, check_policy, check_roles  # noqa: E402
from checks.rights import check_rights  # noqa: E402
from checks.skypilot import check_skypilot  # noqa: E402

LAUNCHER = "ray_cluster.yaml"
SKYPILOT = "cluster/skypilot.yaml"


@dataclass(kw_only=True)
class Checked:
    """Results of a check."""

    mistakes: list[str]
    """A line each."""
    blanks: list[Blank]
    """Values that the user has to fill in."""
    files: list[str]
    schemas: list[str] = field(default_factory=list)
    """KubeRay's kinds whose own schemas were given."""


def check(root: Path, schemas: dict[str, Any], more: Sequence[str] = ()) -> Checked:
    """Check every file below a checkout's root, and more manifests, as `twostream submit --kuberay` writes them."""
    report, pins = Report(), read_pins(root)
    manifests = sorted(str(path.relative_to(root)) for path in (root / "cluster").glob("*.yaml"))
    manifests = [file for file in manifests if file != SKYPILOT]
    policies = sorted(str(path.relative_to(root)) for path in (root / "cluster/policies").glob("*.json"))
    launcher = next(iter(read_yaml(root, LAUNCHER, report)), None) if (root / LAUNCHER).exists() else None
    if launcher is not None:
        check_launcher(launcher, pins, report)
    known = _check_manifests(root, [*manifests, *more], schemas, pins, report)
    documents = [one for file in policies if (one := read_json(root, file, report)) is not None]
    for document in documents:
        check_policy(document, report)
    check_roles(documents, launcher, report)
    check_rights(documents, known, launcher, report)
    files = [file for file in (LAUNCHER, *manifests, SKYPILOT) if (root / file).exists()]
    check_buckets(root, documents, files, report)
    if (root / SKYPILOT).exists():
        for document in read_yaml(root, SKYPILOT, report):
            check_skypilot(root, document, pins, report)
    check_dockerfile(root, pins, report)
    check_server_dockerfile(root, pins, report)
    for file in [*files, *(str(path.relative_to(root)) for path in _pages(root))]:
        check_driver_in_words(root, file, pins, report)
    for file in files:
        for line in unmarked_placeholders(root, file):
            whole = Document(file=file, values=None, lines={(): line})
            report.add(whole, (), "a placeholder that no FILL IN announces: mark its line")
    found = [blank for file in (*files, *policies) for blank in blanks(root, file)]
    checked = [*files, *policies, *more]
    return Checked(mistakes=report.mistakes, blanks=found, files=checked, schemas=sorted(schemas))


def _check_manifests(
    root: Path, files: list[str], schemas: dict[str, Any], pins: Pins, report: Report
) -> list[Document]:
    documents = [document for file in files for document in read_yaml(root, file, report)]
    known = [document for document in documents if check_kind(document, schemas, report)]
    pod_schema = schema_files.pod_template_of(schemas)
    for document in known:
        if document.values["kind"] in LONGEST_NAMES:
            check_kuberay(root, document, pins, report)
        else:
            check_workload(document, pod_schema, pins, report)
    check_names(known, report)
    check_agreement(known, report)
    names = [(one.values["kind"], at(one.values, "metadata", "name")) for one in known]
    for number, document in enumerate(known):
        if names[number] in names[:number]:
            report.add(document, ("metadata", "name"), f"a second {' '.join(map(str, names[number]))}")
    return known


def _pages(root: Path) -> Iterator[Path]:
    yield root / "cluster/Dockerfile"
    yield from sorted((root / "cluster").glob("*.md"))
    yield from sorted((root / "docs").glob("*cluster*.md"))


def main(arguments: list[str] | None = None) -> int:
    """Check, print the results and return the exit code."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("manifests", nargs="*", help="further manifests, as `twostream submit --kuberay` writes them")
    parser.add_argument("--root", type=Path, default=HERE.parent, help="the checkout")
    parser.add_argument("--schemas", type=Path, help="a folder with KubeRay's custom resource definitions")
    parser.add_argument("--ready", action="store_true", help="a FILL IN place that is left is a mistake too")
    given = parser.parse_args(arguments)
    beside = given.root / "../shared/reference/kuberay"
    more = [str(Path(one).resolve()) for one in given.manifests]
    checked = check(given.root, schema_files.read_schemas(given.schemas or beside), more)
    left = [blank for blank in checked.blanks if not blank.filled]
    for blank in checked.blanks:
        print(f"{blank.file}:{blank.line}: {'look at' if blank.filled else 'FILL IN'}: {blank.text}")  # noqa: T201
    mistakes = checked.mistakes + [f"{one.file}:{one.line}: not filled in: {one.text}" for one in left if given.ready]
    for mistake in mistakes:
        print(mistake, file=sys.stderr)  # noqa: T201
    own = f"KubeRay's schemas of {', '.join(checked.schemas)}" if checked.schemas else "no KubeRay schemas at hand"
    print(  # noqa: T201
        f"{len(checked.files)} files, {len(mistakes)} mistakes, {len(left)} places to fill in ({own})"
    )
    return 1 if mistakes else 0


if __name__ == "__main__":
    sys.exit(main())
