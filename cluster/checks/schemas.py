"""Documents held against schemas: the own tables of fields, and KubeRay's where they are at hand."""

from __future__ import annotations

import difflib
import gzip
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jsonschema
import yaml

from checks.documents import Document, Keys, Report

Validator = jsonschema.Draft202012Validator


def check_against(validator: Any, document: Document, report: Report, *, values: Any = None, keys: Keys = ()) -> None:
    """Add what a schema refuses, in words."""
    for error in validator.iter_errors(document.values if values is None else values):
        where = (*keys, *error.absolute_path)
        known = error.schema.get("properties", {}) if isinstance(error.schema, dict) else {}
        if error.validator == "additionalProperties" and known:
            for name in sorted(set(map(str, error.instance)) - known.keys()):
                near = difflib.get_close_matches(name, known, n=3) or sorted(known)
                report.add(document, (*where, name), f"an unknown field: did you mean {' or '.join(near)}?")
        elif error.validator == "required":
            missing = [name for name in error.validator_value if name not in error.instance]
            report.add(document, where, f"lacks {', '.join(missing)}")
        elif error.validator in ("enum", "const"):
            wanted = error.validator_value if error.validator == "enum" else [error.validator_value]
            report.add(document, where, f"wants {' or '.join(map(str, wanted))}, got {error.instance!r}")
        elif error.validator == "type":
            wanted = (
                error.validator_value if isinstance(error.validator_value, str) else "/".join(error.validator_value)
            )
            report.add(document, where, f"wants a value of the type {wanted}, got {error.instance!r:.60}")
        else:
            report.add(document, where, f"{error.message:.200}")


def read_schemas(folder: Path | None) -> dict[str, Any]:
    """Validators of KubeRay's kinds by name, from a folder; none where there is no such folder.

    The files are either a CustomResourceDefinition as KubeRay publishes it and `kubectl get crd -o yaml` writes it
    (*.yaml), or its openAPIV3Schema of v1 as JSON, gzipped or not (rayjobs_v1.schema.json.gz). Keys that a schema does
    not list are refused, which an API server would drop without a word.
    """
    found: dict[str, Any] = {}
    for path in sorted(folder.iterdir()) if folder is not None and folder.is_dir() else ():
        kind = next((kind for kind in ("RayCluster", "RayJob", "RayService") if f"{kind.lower()}s" in path.name), None)
        if kind is None:
            continue
        if path.suffix in (".yaml", ".yml"):
            definition = yaml.load(path.read_text(), Loader=yaml.CSafeLoader)
            schema = next(v for v in definition["spec"]["versions"] if v["name"] == "v1")["schema"]["openAPIV3Schema"]
        elif path.suffix == ".gz":
            schema = json.loads(gzip.decompress(path.read_bytes()))
        elif path.suffix == ".json":
            schema = json.loads(path.read_text())
        else:
            continue
        found[kind] = Validator(_closed(schema, is_root=True))
    return found


def pod_template_of(schemas: Mapping[str, Any]) -> Any:
    """KubeRay's schema of a pod, which is Kubernetes' own, for pods of other kinds; None where it is not at hand."""
    if "RayCluster" not in schemas:
        return None
    spec = schemas["RayCluster"].schema["properties"]["spec"]["properties"]
    return Validator(spec["headGroupSpec"]["properties"]["template"])


def _closed(schema: Any, *, is_root: bool = False) -> Any:
    """A schema in which objects with listed properties have no others; metadata of the root is an API server's own."""
    if isinstance(schema, list):
        return [_closed(one) for one in schema]
    if not isinstance(schema, dict):
        return schema
    closed = {name: _closed(one) for name, one in schema.items() if name not in ("properties", "default", "enum")}
    closed |= {name: schema[name] for name in ("enum",) if name in schema}
    if isinstance(schema.get("properties"), dict):
        closed["properties"] = {name: _closed(one) for name, one in schema["properties"].items()}
        if not schema.get("x-kubernetes-preserve-unknown-fields"):
            closed.setdefault("additionalProperties", False)
    if is_root and "metadata" in closed.get("properties", {}):
        closed["properties"]["metadata"] = {"type": "object"}
    return closed
