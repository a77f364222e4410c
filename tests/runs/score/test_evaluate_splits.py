import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from noise_shards import noise_model, noise_shards

from twostream_ray.cli import main
from twostream_ray.errors import ConfigError
from twostream_ray.runs.score.evaluate_splits import evaluate_splits
from twostream_ray.runs.score.score_table import read_table
from twostream_ray.runs.score.settings import EvaluateConfig


def test_each_split_has_the_model_of_its_place_or_of_its_name() -> None:
    listed = EvaluateConfig(model="a, b", shards="s", splits="test1,test2", out="out/")
    named = EvaluateConfig(model="runs/{split}/model", shards="s", splits="test1, test2")
    assert [(one.split, one.model, one.out) for one in listed.for_each_split()] == [
        ("test1", "a", "out/test1"),
        ("test2", "b", "out/test2"),
    ]
    assert [one.model for one in named.for_each_split()] == ["runs/test1/model", "runs/test2/model"]
    one = EvaluateConfig(model="a", shards="s", splits="test1,test2", one_model=True)
    assert [each.model for each in one.for_each_split()] == ["a", "a"]


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"model": "a", "splits": "test1,test2"}, "each split wants the model trained on its training split"),
        ({"model": "a,b", "splits": "test1,test2,test3"}, "model must name one for each of 3 splits"),
        ({"model": "a,b", "splits": "test1,test1"}, "splits must be different names with commas between"),
        ({"model": "a,b", "splits": "test1,"}, "splits must be different names with commas between"),
    ],
)
def test_a_model_too_few_or_one_for_all_splits_is_refused(given: dict[str, str], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        EvaluateConfig(shards="s", **given)


@pytest.mark.soak
def test_the_mean_over_splits_is_that_of_their_evaluations(
    cluster: None, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shards = noise_shards(str(tmp_path / "shards"), rows=(5,), num_fields=5, video=True, splits=("test1", "test2"))
    models = [str(noise_model(tmp_path / f"model {seed}", shards, seed=seed)) for seed in (1, 2)]
    out = tmp_path / "out"
    arguments = ["evaluate", ",".join(models), shards.uri, "--splits", "test1,test2", "--out", str(out)]
    assert main(arguments) == 0
    printed = capsys.readouterr().out
    assert "mean ± standard deviation over splits" in printed and "100.00% ± 0.00" in printed
    stored = json.loads((out / "splits.json").read_text())
    assert [one["split"] for one in stored["splits"]] == ["test1", "test2"]
    assert [one["intervals"][0]["top1"][1] for one in stored["splits"]] == [1, 1]
    assert stored["mean"]["top1"] == np.mean([one["metrics"]["top1"] for one in stored["splits"]]) == 1
    assert stored["standard_deviation"]["top1"] == 0
    tables = [read_table(str(out / split)) for split in ("test1", "test2")]
    assert [table.split for table in tables] == ["test1", "test2"]
    assert not np.array_equal(tables[0].logits, tables[1].logits)
    shutil.copytree(models[0], tmp_path / "copy")
    same = EvaluateConfig(model=f"{models[0]},{tmp_path}/copy", shards=shards.uri, splits="test1,test2", out=str(out))
    with pytest.raises(ConfigError, match=r"/copy has the same weights as the model of split test1"):
        evaluate_splits(same)
