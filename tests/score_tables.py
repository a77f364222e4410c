"""Score tables with given logits, as `evaluate` writes them."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from twostream_ray import storage
from twostream_ray.data.views import ViewKey
from twostream_ray.runs.score.score_table import FOLDER, ClipLogits, begin_table, encode_part, part_name
from twostream_ray.runs.score.table_record import TableRecord

PROTOCOL = {
    **{"name": "validation", "times": None, "snippets": None, "spread": False, "crops": "centre"},
    **{"mirrored": False, "average": "logits"},
}


def table_record(**changed: Any) -> TableRecord:
    """A record of 40 clips of 3 classes in blocks of 16; views and towers may be changed with the others."""
    values: dict[str, Any] = {
        "manifest_hash": "0a" * 32,
        "split": "test",
        "protocol": PROTOCOL,
        "model_sha256": "0b" * 32,
        "settings_sha256": "0c" * 32,
        "shards": "shards",
        "model": "models:/two-stream/1",
        "commit": "0d0d",
        "classes": ("a", "b", "c"),
        "head_classes": (),
        "towers": ("spatial", "temporal"),
        "views": (ViewKey(0, "centre", False), ViewKey(1, "centre", False)),
        "num_clips": 40,
        "num_blocks": 3,
        "num_expected": 40,
        "num_expected_by_head": None,
        "quarantined": (),
        "flow_contract_hash": "0e0e",
        "command": "twostream evaluate --model models:/two-stream/1 --shards shards --split test",
    }
    return TableRecord(**(values | changed))


def write_table(
    out: Path | str,
    logits: NDArray[np.float32],
    *,
    labels: Sequence[int] | None = None,
    clip_ids: Sequence[str] | None = None,
    groups: Sequence[str | None] | None = None,
    blocks: Sequence[int] | None = None,
    **changed: Any,
) -> TableRecord:
    """Write logits (n, V, S, K) as a table below `out`, in blocks of 16 clips, or only some of these `blocks`."""
    num_clips, num_views, num_towers, num_classes = logits.shape
    labels = [position % num_classes for position in range(num_clips)] if labels is None else labels
    clip_ids = [f"{position:04d}.avi" for position in range(num_clips)] if clip_ids is None else clip_ids
    cut = [list(range(start, min(start + 16, num_clips))) for start in range(0, num_clips, 16)]
    about = table_record(
        **{
            "classes": tuple(f"class {number}" for number in range(num_classes)),
            "towers": ("spatial", "temporal", "fused")[:num_towers],
            "views": tuple(ViewKey(number, "centre", False) for number in range(num_views)),
            "num_clips": num_clips,
            "num_expected": num_clips,
            "num_blocks": len(cut),
        }
        | changed
    )
    done = begin_table(str(out), about, blocks=cut)
    for block in range(len(cut)) if blocks is None else blocks:
        if block in done:
            continue
        rows = [
            ClipLogits(
                position=at,
                clip_id=str(clip_ids[at]),
                label=int(labels[at]),
                group=None if groups is None else groups[at],
                logits=logits[at],
            )
            for at in cut[block]
        ]
        storage.write_bytes(storage.join(str(out), FOLDER, part_name(block)), encode_part(about, rows))
    return about
