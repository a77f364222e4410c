import io
import json
from pathlib import Path

import pandas as pd
import pyarrow.parquet as pq
import pytest

from twostream_ray.inference import HeadPrediction
from twostream_ray.runs.score.prediction_table import METADATA_KEY, PredictionRow, encode_rows

METADATA = {"model": "m", "settings": {"protocol": {"name": "fast"}}, "classes": ["x/a", "x/b", "y/a"]}


def rows() -> list[PredictionRow]:
    heads = (
        HeadPrediction(
            name="x", top=(("x/b", 0.75),), classes=("x/a", "x/b"), probabilities=(0.25, 0.75), logits=(0, 1)
        ),
        HeadPrediction(name="y", top=(("y/a", 1.0),), classes=("y/a",), probabilities=(1.0,), logits=(2.0,)),
    )
    good = PredictionRow(
        uri="/a.mp4", status="ok", heads=heads, start_seconds=0.0, end_seconds=2.0, frames=50, taken_seconds=0.1
    )
    return [good, PredictionRow(uri="/b.mp4", status="missing", error="it does not exist", taken_seconds=0.0)]


def test_a_row_has_all_numbers_in_the_order_of_the_classes_in_the_metadata() -> None:
    table = pq.read_table(io.BytesIO(encode_rows(rows(), metadata=METADATA)))
    assert json.loads(table.schema.metadata[METADATA_KEY]) == METADATA
    good, bad = table.to_pylist()
    assert good["probabilities"] == [0.25, 0.75, 1.0] and good["logits"] == [0, 1, 2]
    assert good["top"] == [{"class": "x/b", "probability": 0.75}, {"class": "y/a", "probability": 1.0}]
    assert (good["protocol"], good["model"], good["frames"], good["end_seconds"]) == ("fast", "m", 50, 2.0)
    assert bad["error"] == "it does not exist" and bad["top"] is bad["logits"] is bad["frames"] is None


@pytest.mark.parametrize("chosen", [slice(0, 1), slice(1, 2), slice(0, 2), slice(0, 0)])
def test_a_folder_reads_as_one_table_whatever_else_is_in_its_job_folder(tmp_path: Path, chosen: slice) -> None:
    (tmp_path / "part-00000-00000.parquet").write_bytes(encode_rows(rows()[chosen], metadata=METADATA))
    (tmp_path / "part-00000-00001.parquet").write_bytes(encode_rows(rows(), metadata=METADATA))
    (tmp_path / "_job").mkdir()
    (tmp_path / "_job" / "job.json").write_text("{}")
    frame = pd.read_parquet(tmp_path)
    assert len(frame) == chosen.stop - chosen.start + 2
    assert len(frame[frame.status == "ok"].explode("top")) >= 2
