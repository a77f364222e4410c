"""The subcommand `doctor`: diagnostics of a cluster. Heavy modules are imported when needed."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from twostream_ray.runs.doctor.checks import Check
    from twostream_ray.runs.doctor.measurement import Measured
    from twostream_ray.runs.doctor.stages import Prediction

_NODES_NAMED = 3


def diagnose(arguments: list[str]) -> int:
    """Check whether a training can run on the cluster; exit code 0 (right), 1 (doubtful) or 2 (wrong)."""
    import json
    from dataclasses import asdict

    from twostream_ray.console import console
    from twostream_ray.redaction import redact
    from twostream_ray.runs.doctor.settings import DoctorConfig
    from twostream_ray.verbs.commands import parse

    spelt_out = ["--format=json" if argument == "--json" else argument for argument in arguments]
    config = parse("doctor", DoctorConfig, spelt_out)
    from twostream_ray.runs.doctor import diagnosis
    from twostream_ray.runs.doctor.checks import worst

    def say(what: str) -> None:
        if console.is_terminal and config.format == "text":
            console.print(f"checking {what}")

    found = diagnosis.diagnose(config, progress=say)
    code = worst(found.checks)
    if config.format == "json":
        print(redact(json.dumps(asdict(found) | {"exit_code": code}, default=str)))  # noqa: T201
        return code
    _show_checks(found.checks)
    if found.prediction is not None and found.measured is not None:
        _show_speed(found.prediction, found.measured)
    console.sentence(_VERDICTS[code])
    return code


_VERDICTS = (
    "all is well: exit code 0",
    "it works, but see to what is doubtful: exit code 1",
    "a training cannot work before what is wrong is mended: exit code 2",
)


def _show_speed(prediction: Prediction, measured: Measured) -> None:
    from twostream_ray.console import console, table

    table(
        f"{measured.workers} workers, batches of {measured.global_batch}, {measured.matrix_rate / 1e12:.3g} TFLOP/s of "
        f"large matrix products on each {measured.device}",
        ["stage", "needs", "has", "", "%"],
        [
            [stage.name, f"{stage.needs:,.4g}", f"{stage.has:,.4g}", stage.unit, f"{stage.use:.0%}"]
            for stage in prediction.stages
        ],
    )
    console.sentence(prediction.sentence)


def _show_checks(checks: Sequence[Check]) -> None:
    from twostream_ray.console import console

    rows = grouped(checks)
    name_width, status_width, where_width = (
        max((len(row[column]) for row in rows), default=0) for column in ("name", "status", "where")
    )
    for row in rows:
        begin = f"{row['name']:<{name_width}}  {row['status']:<{status_width}}  {row['where']:<{where_width}}  "
        console.sentence(f"{begin}{row['found']}", indent=len(begin))
        if row["status"] in ("wrong", "doubtful") and row["way_out"]:
            console.sentence(f"{'':<{name_width}}  -> {row['way_out']}", indent=name_width + 5)


def grouped(checks: Sequence[Check]) -> list[dict[str, Any]]:
    """Checks as rows; equal results of several nodes become one row, so that a hundred nodes fit on a screen."""
    rows: dict[tuple[str, str, str], dict[str, Any]] = {}
    for check in checks:
        key = (check.name, check.status, "" if check.status == "ok" else check.found)
        row = rows.setdefault(
            key,
            {"name": check.name, "status": check.status, "found": check.found, "way_out": check.way_out, "nodes": []},
        )
        if check.node:
            row["nodes"].append(check.node)
        if check.found != row["found"]:
            row["more"] = True
    names = list(dict.fromkeys(check.name for check in checks))
    in_order = sorted(rows.values(), key=lambda row: names.index(row["name"]))
    for row in in_order:
        nodes = list(dict.fromkeys(row.pop("nodes")))
        row["where"] = ", ".join(nodes) if len(nodes) <= _NODES_NAMED else f"{nodes[0]} and {len(nodes) - 1} more nodes"
        if row.pop("more", False):
            row["found"] += ", and the like"
    return in_order
