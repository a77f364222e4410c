import logging

import pyarrow as pa
import pytest

from twostream_ray.data.flow import FlowContract
from twostream_ray.data.loading.settings import DataConfig
from twostream_ray.data.shards.index import INDEX_SCHEMA
from twostream_ray.data.shards.shards import ShardSet
from twostream_ray.errors import ShardError
from twostream_ray.runs.experiment import ExperimentConfig
from twostream_ray.runs.score.evaluate import reserve_output
from twostream_ray.runs.score.settings import EvaluateConfig
from twostream_ray.runs.splits import (
    count_clips_trained_on,
    split_options,
    warn_of_clips_trained_on,
    warn_of_shared_clips,
)
from twostream_ray.runs.train.preflight import SPLITS, require_splits

OFFICIAL = [
    ("train1", "train2", "test3"),
    ("train1", "test2", "train3"),
    ("test1", "train2", "train3"),
    ("train1", "train2", "train3"),
]


def shard_set_of(*splits: tuple[str, ...]) -> ShardSet:
    rows = [
        {"clip_id": f"c/{row}.avi", "label": 0, "splits": list(names), "num_frames": 9, "shard": 0, "row": row}
        for row, names in enumerate(splits)
    ]
    return ShardSet(
        uri="shards",
        hash="0" * 64,
        classes=("c",),
        head_classes=(),
        contract=FlowContract(),
        shard_names=("a",),
        shard_sha256=("0" * 64,),
        shard_bytes=(1,),
        quarantined={},
        index=pa.Table.from_pylist(rows, schema=INDEX_SCHEMA),
    )


@pytest.mark.parametrize(
    ("splits", "settings", "options"),
    [
        (OFFICIAL, {}, "--data.train_split train1 --data.test_split test1"),
        (OFFICIAL, {"train_split": "train2"}, "--data.test_split test2"),
        (OFFICIAL, {"test_split": "test3"}, "--data.train_split train3"),
        (
            OFFICIAL,
            {"train_split": "train1", "test_split": "test1", "validation_split": "val"},
            "--data.validation_split null --data.validation_fraction 0.1",
        ),
        ([("train",), ("val",)], {"validation_split": "valid"}, "--data.validation_split val --data.test_split SPLIT"),
        ([("train",), ("test",)], {"train_split": "training"}, "--data.train_split train"),
    ],
)
def test_what_refuses_splits_names_all_the_options_to_give_at_once(
    splits: list[tuple[str, ...]], settings: dict[str, str], options: str
) -> None:
    shard_set = shard_set_of(*splits)
    config = ExperimentConfig(name="n", data=DataConfig(shards="shards", **settings))
    with pytest.raises(ShardError) as met:
        require_splits(config, shard_set, SPLITS)
    assert str(met.value).endswith(f": give {options}")
    assert f"it has {', '.join(shard_set.split_names)}: " in str(met.value)


def test_clips_that_are_in_no_split_are_to_be_ingested_with_one() -> None:
    options = split_options(DataConfig(shards="shards"), shard_set_of(("all",), ("all",)))
    assert options == "ingest again with --catalog.split '[0.7, 0.15, 0.15]' (train, val, test)"


def test_evaluation_of_a_split_that_is_not_there_names_its_option() -> None:
    config = EvaluateConfig(model="m", shards="shards", out="out")
    with (
        pytest.raises(ShardError, match=r"has no split 'test', it has .* train3: give --split test1$"),
        reserve_output(config, shard_set_of(*OFFICIAL)),
    ):
        pass


def said(data: DataConfig, shard_set: ShardSet, caplog: pytest.LogCaptureFixture) -> list[str]:
    caplog.clear()
    with caplog.at_level(logging.WARNING):
        warn_of_shared_clips(data, shard_set)
    return [record.getMessage() for record in caplog.records]


def test_choosing_by_the_test_split_is_said_and_so_is_training_on_it(caplog: pytest.LogCaptureFixture) -> None:
    official = {"shards": "shards", "train_split": "train1", "test_split": "test1"}
    shard_set = shard_set_of(*OFFICIAL)
    assert said(DataConfig(**official), shard_set, caplog) == []
    (words,) = said(DataConfig(**official, validation_split="test1"), shard_set, caplog)
    assert words.startswith("1 of the 1 clips of test1 are in test1 too: the checkpoint is chosen by them, so")
    assert words.endswith(
        "--data.validation_split null --data.validation_fraction 0.1 validates on clips of the training split"
    )
    (words,) = said(DataConfig(**official | {"test_split": "test2"}), shard_set, caplog)
    assert words.startswith("1 of the 1 clips of test2 are in train1 too: they are trained on, so accuracy on them")
    (words,) = said(DataConfig(**official, validation_split="test2"), shard_set, caplog)
    assert words.startswith("1 of the 1 clips of test2 are in train1 too: they are trained on, so they select")


def test_a_part_that_validates_shares_no_clip_with_the_others(caplog: pytest.LogCaptureFixture) -> None:
    data = DataConfig(shards="shards", train_split="train1", test_split="test1", validation_fraction=0.3)
    assert said(data, shard_set_of(*OFFICIAL), caplog) == []


def test_clips_that_a_model_was_trained_on_are_counted_in_every_split_and_part_of_one() -> None:
    shard_set = shard_set_of(*[("train",)] * 6, *[("train", "val")] * 2, *[("test",)] * 3)
    counted = {split: count_clips_trained_on("train", shard_set, split) for split in ("train", "val", "test")}
    assert counted == {"train": 8, "val": 2, "test": 0}
    part = "train.validation-0.25"
    assert count_clips_trained_on("train", shard_set, part) == len(shard_set.split(part)) > 0
    assert count_clips_trained_on("train.training-0.25", shard_set, part) == 0
    assert count_clips_trained_on(None, shard_set, "train") == count_clips_trained_on("gone", shard_set, "train") == 0


def test_an_evaluation_on_clips_of_the_training_says_so(caplog: pytest.LogCaptureFixture) -> None:
    shard_set = shard_set_of(*[("train",)] * 6, *[("train", "val")] * 2, *[("test",)] * 3)
    with caplog.at_level(logging.WARNING):
        warn_of_clips_trained_on("train", shard_set, "test", model="m")
        warn_of_clips_trained_on(None, shard_set, "train", model="m")
        assert not caplog.messages
        warn_of_clips_trained_on("train", shard_set, "val", model="m")
    assert caplog.messages == [
        "m was trained on 2 of the 2 clips of val (they are in train): accuracy on them does not generalise"
    ]
