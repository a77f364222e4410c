"""Quarantine table of a shard set: unusable videos with their reasons and splits."""

from __future__ import annotations

import csv
import io
import json
import logging
from collections.abc import Mapping
from typing import Any

from twostream_ray import storage
from twostream_ray.data.shards.shards import ShardSet
from twostream_ray.errors import MissingError
from twostream_ray.storage.json_files import LIMIT_BYTES

_log = logging.getLogger(__name__)


def read_quarantine(shard_set: ShardSet, *, split: str) -> tuple[Mapping[str, str], ...]:
    """clip_id, uri and reason of each quarantined video of a split, sorted by URI.

    () with a warning where the table is not that of the manifest, which has their number in any case: an ingest has
    added to the shards since, or one of before did not say which splits a video is of.

    Raises:
        StorageError: the store does not answer.
    """
    expected = shard_set.quarantined.get(split, 0)
    if not expected:
        return ()
    uri = storage.join(shard_set.uri, "quarantine.csv")
    try:
        content = storage.read_bytes(uri, limit_bytes=LIMIT_BYTES).decode("utf-8", "replace")
        rows = list(csv.DictReader(io.StringIO(content, newline=""), strict=True))
        members = [row for row in rows if split in _splits_of(row, otherwise=split)]
        found = tuple({name: str(row[name]) for name in ("clip_id", "uri", "reason")} for row in members)
    except (MissingError, csv.Error, ValueError, KeyError, TypeError) as error:
        _log.warning("%s does not say which %d videos of %s are in quarantine (%s)", uri, expected, split, error)
        return ()
    if len(found) != expected:
        _log.warning("%s has %d videos of %s in quarantine, the manifest says %d", uri, len(found), split, expected)
        return ()
    return found


def _splits_of(row: Mapping[str, Any], *, otherwise: str) -> list[str]:
    return list(json.loads(row["splits"])) if "splits" in row else [otherwise]
