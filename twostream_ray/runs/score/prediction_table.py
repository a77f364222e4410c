"""Parquet table of batch predictions: a row for each video, or for each window of one, good or bad.

Axes: K classes, those of all heads that were asked for, one head after the other. Classes, heads, model and settings
are once in the file's metadata, key `twostream_predictions`, a JSON object.
"""

from __future__ import annotations

import io
import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    import pyarrow as pa

    from twostream_ray.inference import HeadPrediction

METADATA_KEY = b"twostream_predictions"
"""In the schema's metadata of each file."""

Status = Literal["ok", "undecodable", "too_short", "too_long", "missing", "unreadable", "no_finite_score"]
"""What became of a video: scored; damaged; fewer than two frames; longer than max_frames; not there; no regular file,
too large or denied; the network's answer is no number."""


@dataclass(frozen=True, kw_only=True, slots=True)
class PredictionRow:
    """What the model says about a video, or about a window of it."""

    uri: str
    """Of the video, absolute."""
    status: Status
    """"ok", or why there is no answer."""
    error: str | None = None
    """What went wrong, in a sentence."""
    heads: tuple[HeadPrediction, ...] = ()
    """The answer of each data set; () where the status is not ok."""
    start_seconds: float | None = None
    """Where the row's part of the video begins."""
    end_seconds: float | None = None
    """Where it ends: behind its last frame."""
    frames: int | None = None
    """Frames of that part."""
    taken_seconds: float
    """Wall time of reading, decoding, flow and network."""


def encode_rows(rows: Sequence[PredictionRow], *, metadata: dict[str, Any]) -> bytes:
    """A Parquet file of rows in their order."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    columns = {
        "uri": [row.uri for row in rows],
        "status": [row.status for row in rows],
        "error": [row.error for row in rows],
        "start_seconds": [row.start_seconds for row in rows],
        "end_seconds": [row.end_seconds for row in rows],
        "frames": [row.frames for row in rows],
        "top": [
            [{"class": name, "probability": share} for head in row.heads for name, share in head.top]
            if row.heads
            else None
            for row in rows
        ],
        "probabilities": [_joined(row, "probabilities") for row in rows],
        "logits": [_joined(row, "logits") for row in rows],
        "taken_seconds": [row.taken_seconds for row in rows],
        "model": [metadata["model"]] * len(rows),
        "protocol": [metadata["settings"]["protocol"]["name"]] * len(rows),
    }
    table = pa.table(columns, schema=_schema(metadata))
    file = io.BytesIO()
    pq.write_table(table, file, compression="zstd")
    return file.getvalue()


def _joined(row: PredictionRow, name: str) -> list[float] | None:
    return [value for head in row.heads for value in getattr(head, name)] if row.heads else None


def _schema(metadata: dict[str, Any]) -> pa.Schema:
    import pyarrow as pa

    top = pa.list_(pa.struct([("class", pa.string()), ("probability", pa.float32())]))
    return pa.schema(
        [
            ("uri", pa.string()),
            ("status", pa.string()),
            ("error", pa.string()),
            ("start_seconds", pa.float64()),
            ("end_seconds", pa.float64()),
            ("frames", pa.int32()),
            ("top", top),
            ("probabilities", pa.list_(pa.float32())),
            ("logits", pa.list_(pa.float32())),
            ("taken_seconds", pa.float64()),
            ("model", pa.string()),
            ("protocol", pa.string()),
        ],
        metadata={METADATA_KEY: json.dumps(metadata, sort_keys=True)},
    )
