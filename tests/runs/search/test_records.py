import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from twostream_ray.data.loading.settings import DataConfig
from twostream_ray.errors import ConfigError
from twostream_ray.runs.run_folder import SearchFolder
from twostream_ray.runs.search.records import Spent, TrialRecord, TrialStore, as_csv, as_list, best_of, seconds_left
from twostream_ray.runs.search.settings import SearchConfig, TuneConfig

CONFIG = TuneConfig(
    name="search",
    data=DataConfig(shards="shards", validation_split="val"),
    search=SearchConfig(space={"seed": [0, 1]}, trials=4),
)


def folder_in(folder: Path) -> SearchFolder:
    return SearchFolder(uri=str(folder), what="search 'search'")


def record(number: int, *scores: float, **change: Any) -> TrialRecord:
    history = [{"epoch": epoch, "val_top1": score} for epoch, score in enumerate(scores)]
    made = TrialRecord(
        number=number, name=f"search-{number:04d}", settings={"seed": number}, parameters=10, history=history
    )
    return replace(made, **change)


def test_what_was_written_is_there_again(tmp_path: Path) -> None:
    store = TrialStore(CONFIG, folder=folder_in(tmp_path))
    store.put(record(0, 0.5, status="finished"))
    store.put(record(1))
    store.end_epoch(1, {"epoch": 0, "val_top1": 0.25}, seconds=1800.0)
    store.store_seconds(7200.0)
    again = TrialStore(CONFIG, folder=folder_in(tmp_path))
    assert again.records == store.records
    assert again.spent(gpus_per_trial=2) == Spent(trials=2, epochs=2, hours=2.0, gpu_hours=1.0)


def test_an_epoch_that_is_reported_again_counts_once(tmp_path: Path) -> None:
    store = TrialStore(CONFIG, folder=folder_in(tmp_path))
    store.put(record(0, 0.5, 0.75))
    assert not store.end_epoch(0, {"epoch": 1, "val_top1": 0.75}, seconds=0.0)
    assert store.end_epoch(0, {"epoch": 2, "val_top1": 0.5}, seconds=0.0)
    assert [metrics["epoch"] for metrics in store.records[0].history] == [0, 1, 2]
    assert store.records[0].score == 0.75


@pytest.mark.parametrize(
    "budget", [{"trials": 9}, {"max_epochs": 9}, {"max_hours": 9.0}, {"max_gpu_hours": 9.0}, {"concurrent_trials": 9}]
)
def test_a_search_goes_on_with_another_budget(tmp_path: Path, budget: dict[str, Any]) -> None:
    TrialStore(CONFIG, folder=folder_in(tmp_path)).put(record(0))
    TrialStore(replace(CONFIG, search=replace(CONFIG.search, **budget)), folder=folder_in(tmp_path))


def test_a_search_does_not_go_on_with_other_settings(tmp_path: Path) -> None:
    TrialStore(CONFIG, folder=folder_in(tmp_path)).put(record(0, 0.5))
    other = replace(CONFIG, search=replace(CONFIG.search, scheduler="none"))
    with pytest.raises(
        ConfigError,
        match=r"search 'search' was started with search.scheduler=asha, now search.scheduler=none is requested: choose",
    ):
        TrialStore(other, folder=folder_in(tmp_path))


def left(records: list[TrialRecord], *, hours: float = 1.0, trials: int = 10, **budget: Any) -> float | None:
    """Hours left of a search whose trials have at most 6 epochs."""
    epochs = sum(len(one.history) for one in records)
    spent = Spent(trials=len(records), epochs=epochs, hours=hours, gpu_hours=2 * hours)
    config = SearchConfig(space={"seed": [0]}, **budget)
    seconds = seconds_left(records, spent, config=config, trials=trials, epochs=6)
    return None if seconds is None else seconds / 3600


def test_time_left_is_that_of_the_epochs_ahead_at_the_pace_so_far() -> None:
    assert left([]) is None and left([record(0)]) is None, "before an epoch has ended nobody knows"
    one = record(0, 0.1, 0.2, 0.3)
    assert left([one], trials=1) == pytest.approx(1.0), "3 epochs are done, 3 ahead"
    assert left([one], trials=3) == pytest.approx((3 + 6 + 6) / 3)
    ended = [record(0, *[0.1] * 6, status="finished"), record(1, *[0.1] * 2, status="stopped early")]
    assert left(ended, trials=4) == pytest.approx(2 * 4 / 8), "trials ahead are as long as those that ended were"
    assert left([*ended, record(2, 0.1), record(3, *[0.1] * 4)], trials=4) == pytest.approx((3 + 1) / 13)
    assert left(ended, trials=2) == 0.0


def test_time_left_is_at_most_what_the_budget_leaves() -> None:
    ended = [record(0, *[0.1] * 6, status="finished")]
    assert left(ended) == pytest.approx(9.0)
    assert left(ended, max_hours=1.5) == pytest.approx(0.5)
    assert left(ended, max_epochs=9) == pytest.approx(0.5)
    assert left(ended, max_gpu_hours=2.5) == pytest.approx(0.25)
    assert left(ended, max_gpu_hours=1.0) == 0.0


@pytest.mark.parametrize(
    ("budget", "words"),
    [
        ({}, None),
        ({"max_epochs": 41}, None),
        ({"max_epochs": 40}, "40 of 40 epochs"),
        ({"max_hours": 1.5}, "1.5 of 1.5 hours"),
        ({"max_gpu_hours": 2.0}, "3 of 2 GPU-hours"),
    ],
)
def test_a_spent_budget_is_named(budget: dict[str, Any], words: str | None) -> None:
    spent = Spent(trials=7, epochs=40, hours=1.5, gpu_hours=3.0)
    assert spent.over(replace(CONFIG.search, **budget)) == words


def test_the_best_trial_is_the_most_accurate_and_of_equals_the_smallest() -> None:
    records = [
        record(0, 0.5),
        record(1, 0.9, 0.8, parameters=30),
        record(2, 0.9, parameters=20, status="stopped early"),
        record(3, 1.0, status="failed"),
        record(4),
    ]
    best = best_of(records)
    assert best is not None and best.number == 2
    assert best_of(records[3:]) is None


def test_the_table_has_a_column_for_every_setting_that_some_trial_has() -> None:
    records = [
        record(0, 0.5, settings={"model.architecture": "late"}, status="finished"),
        record(1, settings={"model.architecture": "fused", "model.fusion.layers": ["relu2", "relu4"]}),
    ]
    header, first, second = as_csv(records).splitlines()
    assert header == ("trial,model.architecture,model.fusion.layers,score,parameters,epochs,seconds,status,reason")
    assert first == "search-0000,late,,0.5,10,1,0.0,finished,"
    assert second == 'search-0001,fused,"[""relu2"", ""relu4""]",,10,0,0.0,running,'
    assert json.loads(json.dumps(records[1].row()))["score"] is None


def test_the_list_of_a_search_begins_with_its_best_trial_and_leaves_out_what_failed_or_has_no_score() -> None:
    records = [
        record(0, 0.5, status="finished", parameters=20, settings={"model.fusion.layers": ["relu2", "relu4"]}),
        record(1, 0.5, status="finished"),
        record(2, 0.9, status="failed"),
        record(3),
        record(4, 0.25, 0.75, status="finished", settings={"training.learning_rate": 0.01234}),
    ]
    best = best_of(records)
    assert best is not None and best.name == "search-0004"
    assert as_list(records).splitlines() == [
        "1. **75.0%** search-0004 (10 parameters, 2 epochs, finished): learning_rate 0.0123",
        "1. **50.0%** search-0001 (10 parameters, 1 epochs, finished): seed 1",
        "1. **50.0%** search-0000 (20 parameters, 1 epochs, finished): layers relu2+relu4",
    ]
    assert len(as_list(records, most=2).splitlines()) == 2


DAMAGE = ["", "{", "[]", "null", '{"a": NaN}', "[" * 100_000, '{"seconds": "x"}', '{"number": 7}']


@pytest.mark.parametrize("content", DAMAGE, ids=range(len(DAMAGE)))
@pytest.mark.parametrize("name", ["search.json", "state.json", "trials/0001.json"])
def test_a_damaged_file_of_a_search_is_named_in_one_line_with_the_way_out(
    tmp_path: Path, name: str, content: str
) -> None:
    store = TrialStore(CONFIG, folder=folder_in(tmp_path))
    store.put(record(0, 0.5))
    store.put(record(1))
    store.store_seconds(1.0)
    (tmp_path / name).write_text(content)
    with pytest.raises(ConfigError, match=rf"was wanted at {tmp_path}/{name}, .*(choose another --name|delete it)"):
        TrialStore(CONFIG, folder=folder_in(tmp_path))


@pytest.mark.parametrize(
    "change",
    [
        {"name": "../../x"},
        {"name": "/tmp/x"},
        {"number": 3},
        {"settings": {"storage": "/tmp/x"}},
        {"settings": {"model.class_path": "os.system"}},
        {"status": "well"},
        {"history": [{"epoch": 0}]},
        {"history": [{"epoch": 0, "val_top1": "x"}]},
        {"seconds": -1},
        {"more": 1},
    ],
)
def test_a_trial_that_would_lead_elsewhere_is_refused(tmp_path: Path, change: dict[str, Any]) -> None:
    TrialStore(CONFIG, folder=folder_in(tmp_path)).put(record(0, 0.5))
    path = tmp_path / "trials/0000.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(ConfigError, match=r"trial search-0000 was wanted at .*/trials/0000\.json"):
        TrialStore(CONFIG, folder=folder_in(tmp_path))
