import shutil
from collections.abc import Iterator
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


def scored(noise: ShardSet, model: Path, out: Path, *, workers: int = 1, protocol: str = "validation") -> Evaluation:
    config = EvaluateConfig(
        model=str(model),
        shards=noise.uri,
        out=str(out),
        protocol=protocol,
        workers=WorkersConfig(num_workers=workers),
    )
    return evaluate(config)


@pytest.fixture(scope="module", autouse=True)
def same_commit() -> Iterator[None]:
    """Files may be edited while tests run."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TWOSTREAM_GIT_COMMIT", "0a0a")
        yield


def parts(out: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in (out / "scores").iterdir()}


@pytest.fixture(scope="module")
def by_one(
    cluster: None, noise: ShardSet, model: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, Evaluation]:
    """The table that one worker has made, and what its evaluation says."""
    out = tmp_path_factory.mktemp("by-one")
    return out, scored(noise, model, out)


def test_every_clip_is_scored_once_and_the_table_is_the_same_bit_for_bit_for_1_2_and_3_workers_with_uneven_shares(
    by_one: tuple[Path, Evaluation], noise: ShardSet, model: Path, tmp_path: Path
) -> None:
    out, evaluation = by_one
    for workers in (2, 3):
        assert scored(noise, model, tmp_path / str(workers), workers=workers).report.coverage == "29 of 29 clips"
    assert evaluation.report.coverage == "29 of 29 clips"
    one, two, three = (parts(folder) for folder in (out, tmp_path / "2", tmp_path / "3"))
    assert one == two == three and len(one) == 8 + 1
    table = read_table(str(out))
    assert len(table.labels) == 29 and set(table.clip_ids.tolist()) == {f"{clip}.mp4" for clip in range(29)}


def test_an_evaluation_that_is_repeated_scores_only_what_is_missing(
    by_one: tuple[Path, Evaluation], noise: ShardSet, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, first = by_one
    shutil.copytree(out, tmp_path, dirs_exist_ok=True)
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


def test_another_protocol_replaces_the_table(
    by_one: tuple[Path, Evaluation], noise: ShardSet, model: Path, tmp_path: Path
) -> None:
    shutil.copytree(by_one[0], tmp_path, dirs_exist_ok=True)
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
