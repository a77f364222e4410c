"""Record of a score table, as JSON: the data, model and protocol of its scores, and a hash of these."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any

from twostream_ray.data.views import ViewKey
from twostream_ray.errors import StorageError
from twostream_ray.heads import Head, heads_of
from twostream_ray.storage.json_files import COUNT, SHA256, WORD, list_of, parse_json, record

FORMAT = 1
"""Version of the layout; another one is refused."""

_TEXT = {"type": "string", "maxLength": 10_000}
_FORMAT_ONLY = record({"format": {"type": "integer"}, "identity": {"type": "string"}}, others=True)
_TABLE = record(
    {
        "format": {"const": FORMAT},
        "identity": SHA256,
        "manifest_hash": SHA256,
        "split": WORD,
        "protocol": {"type": "object"},
        "model_sha256": SHA256,
        "settings_sha256": SHA256,
        "shards": _TEXT,
        "model": _TEXT,
        "commit": {"type": ["string", "null"]},
        "classes": list_of(WORD, at_least=1, at_most=1_000_000),
        "head_classes": list_of({**COUNT, "minimum": 1}, at_most=1000),
        "towers": list_of(WORD, at_least=1, at_most=100),
        "views": list_of(
            {
                "type": "array",
                "prefixItems": [{"type": "integer", "minimum": 0, "maximum": 32767}, WORD, {"type": "boolean"}],
                "minItems": 3,
                "maxItems": 3,
            },
            at_least=1,
            at_most=32767,
        ),
        "num_clips": {**COUNT, "minimum": 1},
        "num_blocks": {**COUNT, "minimum": 1},
        "num_expected": COUNT,
        "num_expected_by_head": {"anyOf": [{"type": "null"}, list_of(COUNT, at_most=1000)]},
        "quarantined": list_of(record({"clip_id": _TEXT, "uri": _TEXT, "reason": _TEXT})),
        "flow_contract_hash": WORD,
        "command": _TEXT,
    }
)


@dataclass(frozen=True, kw_only=True, eq=False)
class TableRecord:
    """Metadata of a score table, stored in table.json and in each of its parts.

    Axes: n clips, V views, S towers, K classes.
    """

    manifest_hash: str
    """sha256 of the data's manifest."""
    split: str
    """The scored split."""
    protocol: Mapping[str, Any]
    """All fields of the test-time protocol, None where the model's settings apply; `average` is softmax or logits."""
    model_sha256: str
    """sha256 of model.safetensors."""
    settings_sha256: str
    """sha256 of the model's network, sampling, crops, classes and flow contract, as JSON."""
    shards: str
    """URI of the shards."""
    model: str
    """The model, as named by the user."""
    commit: str | None
    """Git commit of the code; None outside a repository."""
    classes: tuple[str, ...]
    """K class names."""
    head_classes: tuple[int, ...]
    """Number of classes of each data set; () for a single data set."""
    towers: tuple[str, ...]
    """S names of the towers that have logits."""
    views: tuple[ViewKey, ...]
    """V views of each clip."""
    num_clips: int
    """n: clips in the complete table."""
    num_blocks: int
    """Parts of the complete table."""
    num_expected: int
    """N: clips of the split, including quarantined ones."""
    num_expected_by_head: tuple[int, ...] | None
    """N of each data set; None for a single one, or if the ingest did not count quarantined clips by data set."""
    quarantined: tuple[Mapping[str, str], ...]
    """clip_id, uri and reason of each quarantined clip of the split; () if the ingest did not record the splits."""
    flow_contract_hash: str
    """Hash of the model's flow contract."""
    command: str
    """The command that makes this table, without --out."""

    @property
    def identity(self) -> str:
        """sha256 of what the scores depend on: data, split, protocol and model."""
        names = ("manifest_hash", "split", "protocol", "model_sha256", "settings_sha256")
        known = {"format": FORMAT, **{name: getattr(self, name) for name in names}}
        return hashlib.sha256(json.dumps(known, sort_keys=True).encode()).hexdigest()

    @property
    def heads(self) -> tuple[Head, ...]:
        """The data sets."""
        return heads_of(self.classes, self.head_classes)

    def to_dict(self) -> dict[str, Any]:
        """The record as JSON types."""
        values = {one.name: getattr(self, one.name) for one in fields(TableRecord)}
        return {"format": FORMAT, "identity": self.identity, **json.loads(json.dumps(values))}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> TableRecord:
        """The record from validated JSON types."""
        found = {one.name: values[one.name] for one in fields(TableRecord)}
        for name in ("classes", "head_classes", "towers", "quarantined", "num_expected_by_head"):
            found[name] = None if found[name] is None else tuple(found[name])
        return TableRecord(**(found | {"views": tuple(ViewKey(*view) for view in found["views"])}))


def settings_hash(package: Any) -> str:
    """sha256 of a model package's settings: all that its scores depend on besides the weights."""
    values = asdict(package)
    del values["lineage"]
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()


def parse_record(content: bytes, *, where: str) -> TableRecord:
    """Parse the bytes of table.json.

    Raises:
        StorageError: it is not a record, of another version, or contradicts itself.
    """
    terms: dict[str, Any] = {
        "where": where,
        "what": "a score table",
        "way_out": "delete its folder and evaluate again",
        "error": StorageError,
    }
    values = parse_json(content, _FORMAT_ONLY, **terms)
    if values["format"] != FORMAT:
        raise StorageError(
            f"{where} has format {values['format']}, this version reads format {FORMAT}: evaluate again into another "
            "--out"
        )
    about = TableRecord.from_dict(parse_json(content, _TABLE, **terms))
    sizes = about.head_classes
    if about.identity != values["identity"] or (sizes and sum(sizes) != len(about.classes)):
        raise StorageError(
            f"a score table was wanted at {where}, but its record contradicts itself: {terms['way_out']}"
        )
    return about
