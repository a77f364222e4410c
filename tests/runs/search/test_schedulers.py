from typing import Any

import pytest
from ray.tune.schedulers import FIFOScheduler

from twostream_ray.runs.search.records import TrialRecord
from twostream_ray.runs.search.schedulers import _FinishedTrial, scheduler_for
from twostream_ray.runs.search.settings import SearchConfig
from twostream_ray.runs.search.trial import EPOCHS_DONE, LAST, SCORE


def record(name: str, *scores: float) -> TrialRecord:
    history = [{"epoch": epoch, "val_top1": score} for epoch, score in enumerate(scores)]
    return TrialRecord(number=0, name=name, settings={}, parameters=1, history=history, status="finished")


def decision(scheduler: Any, *, epochs: int, score: float, last: bool = False) -> str:
    new = _FinishedTrial(f"new at {epochs} with {score}")
    scheduler.on_trial_add(None, new)
    return str(scheduler.on_trial_result(None, new, {EPOCHS_DONE: epochs, SCORE: score, LAST: last}))


@pytest.mark.parametrize("name", ["asha", "median"])
def test_trials_of_an_earlier_call_are_what_later_ones_are_compared_with(name: Any) -> None:
    config = SearchConfig(space={"seed": [0]}, scheduler=name, grace_epochs=2)
    scheduler = scheduler_for(config, epochs=9, past=[])
    assert decision(scheduler, epochs=2, score=0.1) == "CONTINUE", "nothing to compare with"
    past = [record(f"old{number}", 0.2, 0.6 + number / 20) for number in range(4)]
    scheduler = scheduler_for(config, epochs=9, past=past)
    assert decision(scheduler, epochs=1, score=0.0) == "CONTINUE", "within its grace"
    assert decision(scheduler, epochs=2, score=0.1) == "STOP"
    assert decision(scheduler, epochs=2, score=0.9) == "CONTINUE"
    assert decision(scheduler, epochs=9, score=0.1, last=True) == "CONTINUE", "it ends by itself"


def test_trials_shorter_than_their_grace_are_all_trained_to_their_end() -> None:
    config = SearchConfig(space={"seed": [0]}, grace_epochs=3)
    assert type(scheduler_for(config, epochs=3, past=[])) is FIFOScheduler
    assert type(scheduler_for(SearchConfig(space={"seed": [0]}, scheduler="none"), epochs=9, past=[])) is FIFOScheduler
