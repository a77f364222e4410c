"""JSON reading with validation against a JSON Schema (draft 2020-12).

A file on a disk or in a bucket may be truncated, mixed up or written by another program. It is validated on reading, so
that callers can rely on every key, type and bound in the schema.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from functools import lru_cache
from typing import Any

from jsonschema import Draft202012Validator

from twostream_ray import storage
from twostream_ray.errors import TwoStreamError
from twostream_ray.redaction import brief, one_line

Schema = Mapping[str, Any]
"""A JSON Schema, defined as a dictionary in the module that owns the document."""

LIMIT_BYTES = 256 << 20
"""Maximum file size, far above that of any document of this package."""

SHA256 = {"type": "string", "pattern": r"^[0-9a-f]{64}\Z"}
"""A SHA-256 as hexadecimal digits, the only form that may become part of a path."""

FILE_NAME = {"type": "string", "pattern": r"^[A-Za-z0-9][A-Za-z0-9._-]{0,200}\Z"}
"""A safe file name: no directory part, not hidden."""

WORD = {"type": "string", "minLength": 1, "maxLength": 1000}
"""A user-given name, of a class, split or clip."""

MOST = 2**53
"""The largest count: up to here a JSON number is exact in every reader."""

COUNT = {"type": "integer", "minimum": 0, "maximum": MOST}
"""A count or a size in bytes."""


def record(required: Mapping[str, Any], optional: Mapping[str, Any] | None = None, *, others: bool = False) -> Schema:
    """The schema of a JSON object with these keys; further keys are refused unless `others` are allowed."""
    return {
        "type": "object",
        "properties": {**required, **(optional or {})},
        "required": sorted(required),
        "additionalProperties": others,
    }


def list_of(items: Schema, *, at_least: int = 0, at_most: int = 10_000_000) -> Schema:
    """The schema of a JSON array of `items`."""
    return {"type": "array", "items": items, "minItems": at_least, "maxItems": at_most}


def read_json(
    uri: str,
    schema: Schema,
    *,
    what: str,
    way_out: str,
    error: type[TwoStreamError],
    limit_bytes: int = LIMIT_BYTES,
    metrics: bool = False,
) -> Any:
    """Read and validate a JSON file; see `parse_json`.

    Raises:
        StorageError: the file is missing or cannot be read.
        TwoStreamError: of the kind `error`: the file does not match the schema.
    """
    content = storage.read_bytes(uri, limit_bytes=limit_bytes)
    return parse_json(content, schema, where=uri, what=what, way_out=way_out, error=error, metrics=metrics)


def parse_json(
    content: bytes | str,
    schema: Schema,
    *,
    where: str,
    what: str,
    way_out: str,
    error: type[TwoStreamError],
    metrics: bool = False,
) -> Any:
    """Parse JSON and validate it against a schema; `what` ("a manifest of shards") and `where` are for error messages.

    NaN and infinities, which Python accepts although JSON has none, and duplicate keys are refused; in a document
    with `metrics` of training, where a loss may be either, both are accepted.

    Raises:
        TwoStreamError: of the kind `error`, in one line that ends with the `way_out`.
    """
    try:
        text = content if isinstance(content, str) else content.decode("utf-8")
        values = json.loads(
            text,
            parse_constant=float if metrics else _refuse_constant,
            parse_float=_finite,
            object_pairs_hook=_refuse_duplicate_keys,
        )
    except (ValueError, RecursionError) as fault:
        raise error(f"{what} was wanted at {where}, it is not valid JSON ({one_line(fault)}): {way_out}") from fault
    check(values, schema, where=where, what=what, way_out=way_out, error=error)
    return values


def check(values: Any, schema: Schema, *, where: str, what: str, way_out: str, error: type[TwoStreamError]) -> None:
    """Validate values in JSON's types against a schema.

    Raises:
        TwoStreamError: of the kind `error`, which names the first value that differs.
    """
    faults = _validator(json.dumps(schema, sort_keys=True)).iter_errors(values)
    try:
        fault = next(iter(faults), None)
    except RecursionError:
        raise error(f"{what} was wanted at {where}, it is nested too deeply: {way_out}") from None
    if fault is not None:
        inside = ".".join(map(str, fault.absolute_path))
        raise error(
            f"{what} was wanted at {where}, {f'its {inside}' if inside else 'it'} {_described(fault)}: {way_out}"
        )


def _described(fault: Any) -> str:
    """A short description of a validation error; the validator's own may quote a whole file."""
    if fault.validator == "required":
        return f"lacks {', '.join(sorted(set(fault.validator_value) - set(fault.instance)))}"[:200]
    if fault.validator == "additionalProperties":
        unknown = set(fault.instance) - set(fault.schema["properties"])
        return f"has the unknown key {brief(min(unknown))}"
    wanted = {
        "type": "wants type {}, has {}",
        "minimum": "wants at least {}, has {}",
        "maximum": "wants at most {}, has {}",
        "exclusiveMinimum": "wants more than {}, has {}",
        "exclusiveMaximum": "wants less than {}, has {}",
        "enum": "wants one of {}, has {}",
        "const": "wants {}, has {}",
        "pattern": "wants a text like {}, has {}",
        "minItems": "wants at least {} values, has {}",
        "maxItems": "wants at most {} values, has {}",
        "minLength": "wants at least {} characters, has {}",
        "maxLength": "wants at most {} characters, has {}",
        "uniqueItems": "has a value twice: {1}",
    }.get(fault.validator, "is against the rule {}, with {}")
    return wanted.format(brief(fault.validator_value), brief(fault.instance))


@lru_cache(maxsize=64)
def _validator(schema: str) -> Draft202012Validator:
    return Draft202012Validator(json.loads(schema))


def _refuse_constant(name: str) -> float:
    raise ValueError(f"{name} is not a number")


def _finite(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise ValueError(f"{text[:80]} is too large for a number")
    return value


def _refuse_duplicate_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    values = dict(pairs)
    if len(values) < len(pairs):
        keys = [key for key, _ in pairs]
        twice = next(key for key in keys if keys.count(key) > 1)
        raise ValueError(f"duplicate key {twice!r}")
    return values
