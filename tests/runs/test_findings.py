import json
import re
from dataclasses import replace
from pathlib import Path

import pytest
from noise_shards import noise_shards

from twostream_ray.cli import main
from twostream_ray.data.sources.synthetic import SyntheticConfig
from twostream_ray.errors import ConfigError
from twostream_ray.runs import findings
from twostream_ray.runs.compared_networks import comparisons
from twostream_ray.runs.findings import ComparisonRow
from twostream_ray.runs.settings import FindingsConfig


def test_mean_and_spread_are_those_of_the_seeds() -> None:
    row = ComparisonRow(group="binding", network="x", parameters=1, top1=(0.5, 0.6, 0.7), clips="4 of 4 clips")
    assert row.sentence() == "60.0% ± 10.0%"
    assert replace(row, top1=(0.5,)).sentence() == "50.0%"


def test_the_interval_is_over_clips_with_what_all_seeds_make_of_each(tmp_path: Path) -> None:
    shard_set = noise_shards(str(tmp_path), rows=(40, 60), num_fields=1, splits=("test",))
    alike = findings._interval(shard_set, [{"wrong": list(range(40))}] * 3)
    unlike = findings._interval(shard_set, [{"wrong": list(range(start, start + 40))} for start in (0, 30, 60)])
    assert alike is not None and unlike is not None and alike.low < unlike.low < 0.6 < unlike.high < alike.high
    assert alike == findings._interval(shard_set, [{"wrong": list(range(40))}]), "seeds are no further clips"
    assert findings._interval(shard_set, [{"wrong": []}, {}]) is None


def test_no_seed_at_all_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(ConfigError, match="num_seeds must be at least 1, got 0"):
        FindingsConfig(num_seeds=0)
    assert main(["findings", "--num_seeds", "0"]) == 2
    assert "num_seeds must be at least 1" in capsys.readouterr().err


@pytest.mark.usefixtures("cluster")
def test_trainings_are_kept_and_not_repeated_and_the_same_seed_gives_the_same_figure(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    comparison = comparisons()["binding"]
    small = replace(
        comparison,
        clips=SyntheticConfig(train_clips=16, val_clips=0, test_clips=8, size_px=96),
        training=replace(comparison.training, epochs=1, global_batch=8),
        networks={name: comparison.networks[name] for name in ("motion alone", "conv at relu3")},
    )
    shards = findings.prepare(FindingsConfig(out=str(tmp_path)), small, progress=lambda *_: None)
    monkeypatch.setattr(findings, "comparisons", lambda towers: {"binding": small})
    results = {name: findings._train_one("binding", name, 0, shards) for name in small.networks}
    kept = tmp_path / "results"
    kept.mkdir()
    for name, result in results.items():
        (kept / f"binding, {name}, seed 0.json").write_text(json.dumps(result | {"top1": 0.125}))
    asked: list[tuple[int, int]] = []
    found = findings.findings(
        FindingsConfig(out=str(tmp_path), num_seeds=1),
        {"binding": shards},
        progress=lambda done, total: asked.append((done, total)),
    )
    assert [row.top1 for row in found] == [(0.125,)] * 2, "what was there is taken, not trained again"
    assert asked[-1] == (2, 2)
    again = findings._train_one("binding", "conv at relu3", 0, shards)
    assert again["losses"] == results["conv at relu3"]["losses"]
    assert again["clips"] == "8 of 8 clips" and len(again["wrong"]) == 8 - round(8 * again["top1"])
    assert findings._train_one("binding", "conv at relu3", 1, shards)["losses"] != again["losses"]
    findings.write(FindingsConfig(out=str(tmp_path)), found)
    assert re.search(
        r"\| binding \| motion alone \| 12.5% \| \[[\d.]+, [\d.]+\] \| 8 of 8 clips \| 26,388 \|",
        (tmp_path / "findings.md").read_text(),
    )
    assert (tmp_path / "findings.png").stat().st_size > 5000
