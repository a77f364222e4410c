from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from noise_shards import noise_model, noise_shards

from twostream_ray.data.protocols import PROTOCOLS
from twostream_ray.data.shards.shards import ShardSet
from twostream_ray.errors import DecodeError
from twostream_ray.model_package import load_model
from twostream_ray.runs.score.evaluate import Evaluation, evaluate
from twostream_ray.runs.score.score_table import read_table
from twostream_ray.runs.score.scorer import plan_blocks, score_clips
from twostream_ray.runs.score.settings import EvaluateConfig
from twostream_ray.runs.workers import WorkersConfig
from twostream_ray.view_scorer import ViewScorer


def indexed(shard: list[int], row: list[int], members: list[int] | None = None) -> Any:
    index = pa.table({"shard": pa.array(shard, pa.int32()), "row": pa.array(row, pa.int32())})
    chosen = np.arange(len(shard)) if members is None else np.asarray(members)
    return SimpleNamespace(index=index, split=lambda name: chosen)


def test_a_block_is_of_one_row_group_and_every_clip_in_one_block() -> None:
    shard, row = [0] * 40 + [1] * 9, [*range(40), *range(9)]
    blocks = plan_blocks(indexed(shard, row), "test")
    assert [len(block) for block in blocks] == [4] * 8 + [4, 4] + [4, 4, 1]
    assert [clip for block in blocks for clip in block] == list(range(49))
    for block in blocks:
        assert len({(shard[clip], row[clip] // 16) for clip in block}) == 1


def test_blocks_of_a_large_split_are_whole_row_groups() -> None:
    blocks = plan_blocks(indexed([0] * 600, list(range(600))), "test")
    assert [len(block) for block in blocks] == [16] * 37 + [8]
    some = plan_blocks(indexed([0] * 600, list(range(600)), members=[3, 17, 18, 40]), "test")
    assert some == ((3,), (17, 18), (40,))


@pytest.fixture(scope="module")
def noise(tmp_path_factory: pytest.TempPathFactory) -> ShardSet:
    """29 clips of noise, of which the last block has one; four classes by number."""
    folder = str(tmp_path_factory.mktemp("noise"))
    return noise_shards(folder, rows=(16, 13), num_fields=5, video=True, splits=("test",))


@pytest.fixture(scope="module")
def model(noise: ShardSet, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return noise_model(tmp_path_factory.mktemp("model"), noise)


def scored(noise: ShardSet, model: Path, out: Path, *, workers: int = 2, protocol: str = "validation") -> Evaluation:
    config = EvaluateConfig(
        model=str(model),
        shards=noise.uri,
        out=str(out),
        protocol=protocol,
        workers=WorkersConfig(num_workers=workers),
    )
    return evaluate(config)


@pytest.fixture(autouse=True)
def same_commit(monkeypatch: pytest.MonkeyPatch) -> None:
    """Files may be edited while tests run."""
    monkeypatch.setenv("TWOSTREAM_GIT_COMMIT", "0a0a")


def parts(out: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in (out / "scores").iterdir()}


def test_the_table_is_the_same_bit_for_bit_for_1_2_and_3_workers_with_uneven_shares(
    cluster: None, noise: ShardSet, model: Path, tmp_path: Path
) -> None:
    for workers in (1, 2, 3):
        evaluation = scored(noise, model, tmp_path / str(workers), workers=workers)
        assert evaluation.report.coverage == "29 of 29 clips"
    one, two, three = (parts(tmp_path / str(workers)) for workers in (1, 2, 3))
    assert one == two == three
    assert len(one) == 8 + 1 and len(read_table(str(tmp_path / "1")).labels) == 29


@pytest.mark.slow
def test_499_clips_on_3_workers_are_scored_once_each_and_no_more(cluster: None, tmp_path: Path) -> None:
    shards = noise_shards(
        str(tmp_path / "shards"), rows=(128, 128, 128, 115), num_fields=3, video=True, splits=("test",)
    )
    evaluation = scored(shards, noise_model(tmp_path / "model", shards), tmp_path / "out", workers=3, protocol="fast")
    table = read_table(str(tmp_path / "out"))
    assert evaluation.report.coverage == "499 of 499 clips"
    assert table.logits.shape[:2] == (499, 1) and len(set(table.clip_ids.tolist())) == 499


def test_an_evaluation_that_is_repeated_scores_only_what_is_missing(
    cluster: None, noise: ShardSet, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = scored(noise, model, tmp_path)
    whole = parts(tmp_path)
    (tmp_path / "scores/part-00003.parquet").unlink()
    (tmp_path / "scores/part-00005.parquet").write_bytes(b"cut")
    before = {path: path.stat().st_ino for path in (tmp_path / "scores").iterdir()}
    again = scored(noise, model, tmp_path)
    assert parts(tmp_path) == whole and np.array_equal(first.logits, again.logits)
    after = {path: path.stat().st_ino for path in (tmp_path / "scores").iterdir()}
    assert {path.name for path in after if after[path] != before.get(path)} == {
        "part-00003.parquet",
        "part-00005.parquet",
    }
    monkeypatch.setattr("twostream_ray.runs.score.scorer.ray_session", lambda: pytest.fail("nothing is left to score"))
    assert np.array_equal(scored(noise, model, tmp_path).logits, first.logits)


def test_another_protocol_replaces_the_table(cluster: None, noise: ShardSet, model: Path, tmp_path: Path) -> None:
    scored(noise, model, tmp_path)
    (tmp_path / "scores.npz").write_bytes(b"what an earlier version wrote")
    evaluation = scored(noise, model, tmp_path, protocol="paper_2014")
    table = read_table(str(tmp_path))
    assert table.logits.shape == (29, 250, 2, 1)
    assert table.protocol["name"] == "paper_2014" and evaluation.protocol == PROTOCOLS["paper_2014"]
    assert not (tmp_path / "scores.npz").exists()


def test_a_clip_that_is_damaged_is_named_with_where_it_is_stored(noise: ShardSet, model: Path) -> None:
    network, package = load_model(model)
    scorer = ViewScorer(network, package, protocol=PROTOCOLS["fast"])
    assert len(score_clips(scorer, noise, [0, 1, 2])) == 3
    with pytest.raises(DecodeError, match=r"clip \d+\.mp4, row 0 of .*\.parquet: .*; ingest again"):
        score_clips(scorer, noise, [0, 1], want_flow=False)
