"""SkyPilot's task YAML: its fields (those of its documentation), and versions as in the other files."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from checks.commands import check_command
from checks.documents import Document, Report, at
from checks.fields import ANY, NUMBER, TEXT, TEXTS, TRUTH, WHOLE, Schema, block, many
from checks.pins import Pins, check_image
from checks.pods import SILENT
from checks.schemas import Validator, check_against

_EITHER: Schema = {"type": ["string", "integer", "number"]}
_ONE: dict[str, Schema] = {
    "infra": TEXT,
    "accelerators": {"type": ["string", "object", "array"]},
    "cpus": _EITHER,
    "memory": _EITHER,
    "instance_type": TEXT,
    "use_spot": TRUTH,
    "disk_size": _EITHER,
    "disk_tier": {"enum": ["low", "medium", "high", "ultra", "best"]},
    "network_tier": {"enum": ["standard", "best"]},
    "max_hourly_cost": NUMBER,
    "image_id": TEXT,
    "ports": ANY,
    "labels": TEXTS,
    "autostop": ANY,
    "job_recovery": block(strategy=TEXT, max_restarts_on_errors=WHOLE, recover_on_exit_codes=ANY),
}
TASK = block(
    "resources run",
    name=TEXT,
    workdir=TEXT,
    num_nodes=WHOLE,
    resources=block(any_of=many(block(**_ONE)), ordered=many(block(**_ONE)), **_ONE),
    envs=TEXTS,
    secrets={"type": "object", "additionalProperties": {"type": ["string", "null"]}},
    file_mounts=ANY,
    setup=TEXT,
    run=TEXT,
    config=ANY,
)


def check_skypilot(root: Path, document: Document, pins: Pins, report: Report) -> None:
    """A task of `sky launch` and `sky jobs launch`."""
    check_against(Validator(TASK), document, report)
    values = document.values
    image = str(at(values, "resources", "image_id", default=""))
    wrong = (
        check_image(image.removeprefix("docker:"), pins)
        if image.startswith("docker:")
        else f"wants docker:IMAGE, got {image!r}"
    )
    if wrong:
        report.add(document, ("resources", "image_id"), wrong)
    settings: dict[str, Any] = at(values, "envs", default={})
    for name, value in {"RAY_AUTH_MODE": "token", **SILENT}.items():
        if settings.get(name) != value:
            report.add(document, ("envs",), f"wants {name}: {value!r}, got {settings.get(name)!r}")
    for name in settings:
        if re.search("PASSWORD|SECRET|TOKEN|ACCESS_KEY", name):
            report.add(document, ("envs", name), f"{name} belongs under secrets, which are not shown")
    for name, value in at(values, "secrets", default={}).items():
        if value:
            report.add(document, ("secrets", name), f"{name} stands here in clear: write null, and give it by --secret")
    for name in ("cpus", "memory"):
        amount = str(at(values, "resources", name, default="1"))
        if not re.fullmatch(r"\d+(\.\d+)?(x|GB)?\+?", amount):
            report.add(document, ("resources", name), f"wants a number, or N+ for at least so many, got {amount!r}")
    script = str(at(values, "run", default=""))
    for command in _commands(script):
        check_command(root, document, ("run",), command, report)
    if not _commands(script):
        report.add(document, ("run",), "starts no `twostream VERB` or `python jobs/VERB.py`")


def _commands(script: str) -> list[str]:
    """The lines of a shell's script that start a verb, continued lines joined."""
    lines = script.replace("\\\n", " ").splitlines()
    return [line.strip() for line in lines if re.match(r"\s*(twostream |python jobs/)", line)]
