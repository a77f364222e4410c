"""Parquet schema of batch predictions: a row for each video, or for each window of one, including bad videos.

Axes: K classes, those of all requested heads, one head after the other. Classes, heads, model and settings are in the
file's metadata, a JSON object under the key `twostream_predictions`.
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
"""Key in the schema metadata of each file."""

Status = Literal["ok", "undecodable", "too_short", "too_long", "missing", "unreadable", "no_finite_score"]
"""Status of a video, in this order: scored; damaged; fewer than two frames; longer than max_frames; missing; not a
regular file, too large or access denied; scores that are not finite."""


@dataclass(frozen=True, kw_only=True, slots=True)
class PredictionRow:
    """Prediction for a video, or for a window of it."""

    uri: str
    """Absolute URI of the video."""
    status: Status
    """"ok", or why there is no prediction."""
    error: str | None = None
    """The error, in a sentence."""
    heads: tuple[HeadPrediction, ...] = ()
    """The prediction for each data set; () if the status is not ok."""
    start_seconds: float | None = None
    """Start of the window in the video."""
    end_seconds: float | None = None
    """End of the window, after its last frame."""
    frames: int | None = None
    """Number of frames of the window."""
    taken_seconds: float
    """Wall time of reading, decoding, flow and network."""


def encode_rows(rows: Sequence[PredictionRow], *, metadata: dict[str, Any]) -> bytes:
    """The rows as a Parquet file, in order."""
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
