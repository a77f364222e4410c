import json
from collections import Counter
from dataclasses import replace
from typing import Any

import pytest

from twostream_ray.data.loading.settings import DataConfig
from twostream_ray.errors import ConfigError
from twostream_ray.models.settings import FusionConfig, ModelConfig, TowerConfig
from twostream_ray.runs.experiment import ExperimentConfig
from twostream_ray.runs.search.proposals import Proposer
from twostream_ray.runs.search.settings import SearchConfig, TuneConfig
from twostream_ray.runs.search.space import Dimension, Space, TrialSettings
from twostream_ray.settings.parser import from_arguments

SMALL = TowerConfig(backbone="vgg_small", width=16, dropout=0.0)
BASE = ExperimentConfig(
    name="base",
    data=DataConfig(shards="shards", validation_split="val"),
    model=ModelConfig(
        spatial=SMALL, temporal=SMALL, fusion=FusionConfig(method="conv", layers=("relu3",), temporal="pool2d")
    ),
)
FUSIONS: dict[str, Any] = {
    "model.architecture": ["late", "fused"],
    "model.fusion.method": ["sum", "conv"],
    "model.fusion.temporal": ["pool2d", "conv3d"],
    "model.fusion.initialisation": ["official", "gaussian"],
}


def space(**written: Any) -> Space:
    return Space(written, base=BASE)


def proposer(written: dict[str, Any], *, check: Any = lambda settings: 1, seed: int = 0, **settings: Any) -> Proposer:
    return Proposer(Space(written, base=BASE), config=SearchConfig(space=written, **settings), seed=seed, check=check)


def taken(some: Proposer, count: int, *, score: Any = lambda settings: 0.5) -> list[TrialSettings]:
    made = []
    for number in range(count):
        proposal = some.propose(number)
        assert proposal is not None
        some.observe(number, score(proposal.settings))
        made.append(proposal.settings)
    return made


def test_settings_that_a_network_does_not_read_are_not_proposed() -> None:
    points = list(Space(FUSIONS, base=BASE).grid())
    # late reads no fusion; sum with 2D pooling learns no fusion, so it has no initialisation.
    assert len(points) == 1 + 1 + 2 + 2 + 2
    assert {"model.architecture": "late"} in points
    unlearned = {"model.architecture": "fused", "model.fusion.method": "sum", "model.fusion.temporal": "pool2d"}
    assert unlearned in points
    assert len({json.dumps(point, sort_keys=True) for point in points}) == len(points)


def test_momentum_is_proposed_for_sgd_alone() -> None:
    written = {
        "training.momentum": [0.5, 0.9],
        "training.optimiser": ["sgd", "adamw"],
        "training.layer_decay": [None, 0.8],
    }
    points = list(Space(written, base=BASE).grid())
    assert len(points) == 2 * 2 + 2
    assert all(("training.momentum" in point) == (point["training.optimiser"] == "sgd") for point in points)


def test_the_order_in_the_recipe_does_not_matter_to_conditions() -> None:
    backwards = dict(reversed(FUSIONS.items()))
    as_written, reversed_ = (
        Counter(json.dumps(point, sort_keys=True) for point in Space(written, base=BASE).grid())
        for written in (FUSIONS, backwards)
    )
    assert as_written == reversed_


def test_a_condition_of_the_recipe_holds() -> None:
    written = {
        "training.schedule": ["cosine", "constant"],
        "training.warmup_epochs": {"choices": [1.0, 2.0], "when": {"training.schedule": ["cosine"]}},
    }
    assert list(Space(written, base=BASE).grid()) == [
        {"training.schedule": "cosine", "training.warmup_epochs": 1.0},
        {"training.schedule": "cosine", "training.warmup_epochs": 2.0},
        {"training.schedule": "constant"},
    ]


def test_a_kept_temporal_tower_is_what_its_loss_weight_waits_for() -> None:
    written = {"training.temporal_loss_weight": [0.5, 2.0], "model.keep_temporal_tower": [True, False]}
    points = list(Space(written, base=BASE).grid())
    assert points.count({"model.keep_temporal_tower": False}) == 1 and len(points) == 3


def test_several_settings_can_take_one_value() -> None:
    both = space(**{"model.spatial.dropout, model.temporal.dropout": [0.0, 0.5]})
    settings = list(both.grid())[1]
    model = both.experiment(settings, name="trial").model
    assert (model.spatial.dropout, model.temporal.dropout) == (0.5, 0.5)


def test_a_trial_is_the_recipe_with_what_was_proposed() -> None:
    some = space(**{"model.fusion.layers": [["relu2", "relu4"]], "training.learning_rate": [0.5]})
    (settings,) = some.grid()
    fusion = replace(BASE.model.fusion, layers=("relu2", "relu4"))
    assert some.experiment(settings, name="trial", storage="folder") == replace(
        BASE,
        name="trial",
        storage="folder",
        model=replace(BASE.model, fusion=fusion),
        training=replace(BASE.training, learning_rate=0.5),
    )


@pytest.mark.parametrize(
    ("written", "message"),
    [
        ({}, "must name at least one setting"),
        ({"model.fusion.metod": ["sum"]}, "unknown setting 'model.fusion.metod'; did you mean model.fusion.method"),
        ({"data.shards": ["a", "b"]}, "data.shards cannot be searched: trials share their data"),
        ({"data.train_split": ["a", "b"]}, "data.train_split cannot be searched"),
        ({"tracking.uri": ["a", "b"]}, "tracking.uri cannot be searched"),
        ({"training.epochs": []}, "at least one choice"),
        ({"training.epochs": 3}, r"wants a list of choices, \{low, high, log\}, or \{choices, when\}, got 3"),
        ({"training.epochs": {"low": 1, "hihg": 3}}, "wants a list of choices"),
        ({"training.epochs": {"low": 1.5, "high": 3}}, "is a whole number, got the range 1.5 to 3.0"),
        ({"training.learning_rate": {"low": 1, "high": 0.1}}, "wants low < high"),
        ({"training.learning_rate": {"low": 0, "high": 0.1, "log": True}}, "both more than 0 as log is true"),
        ({"training.schedule": {"low": 0, "high": 1}}, "is 'steps' in the recipe, not a number"),
        ({"seed": {"choices": [1], "when": {"sed": [1]}}}, "unknown setting 'sed'; did you mean seed"),
        (
            {
                "seed": {"choices": [1, 2], "when": {"training.epochs": [1]}},
                "training.epochs": {"choices": [1, 2], "when": {"seed": [1]}},
            },
            "the conditions of seed, training.epochs are circular",
        ),
    ],
)
def test_a_space_that_makes_no_sense_is_refused(written: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        Space(written, base=BASE)


@pytest.mark.slow
@pytest.mark.parametrize("searcher", ["tpe", "random"])
def test_ranges_are_kept_and_whole_numbers_stay_whole(searcher: Any) -> None:
    written = {
        "training.learning_rate": {"low": 1e-4, "high": 1e-1, "log": True},
        "data.sampling.num_snippets": {"low": 1, "high": 8},
        "training.weight_decay": {"low": 0, "high": 1},
    }
    made = taken(proposer(written, searcher=searcher, trials=60), 30)
    rates = [one["training.learning_rate"] for one in made]
    assert all(1e-4 <= rate <= 1e-1 for rate in rates)
    assert 5 < sum(rate < 10**-2.5 for rate in rates) < 25, "as many below the middle of the logarithms as above"
    assert {type(one["data.sampling.num_snippets"]) for one in made} == {int}
    assert any(0 < one["training.weight_decay"] < 1 for one in made)


def test_a_grid_is_every_point_once_and_then_the_end() -> None:
    grid = proposer(FUSIONS, searcher="grid", trials=100)
    assert taken(grid, 8) == list(Space(FUSIONS, base=BASE).grid())
    assert grid.propose(8) is None


def test_a_grid_of_a_range_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"grid wants lists of choices, got ranges for training.learning_rate"):
        proposer({"training.learning_rate": {"low": 0.1, "high": 1.0}}, searcher="grid")


@pytest.mark.parametrize("searcher", ["tpe", "random"])
def test_no_settings_come_twice_and_a_finite_space_ends(searcher: Any) -> None:
    some = proposer(FUSIONS, searcher=searcher, trials=100)
    made = [json.dumps(one, sort_keys=True) for one in taken(some, 8)]
    assert len(set(made)) == 8
    assert some.propose(8) is None


@pytest.mark.parametrize("searcher", ["tpe", "random", "grid"])
def test_what_does_not_go_together_is_passed_over_and_said(searcher: Any) -> None:
    written = {"model.fusion.method": ["bilinear", "sum"], "model.fusion.temporal": ["conv3d", "pool2d"]}
    some = Space(written, base=BASE)

    def check(settings: TrialSettings) -> int:
        some.experiment(settings, name="trial")
        return 1

    searched = proposer(written, searcher=searcher, trials=10, check=check)
    made = taken(searched, 3)
    assert {"model.fusion.method": "bilinear", "model.fusion.temporal": "conv3d"} not in made
    assert searched.propose(3) is None
    (reason,) = searched.refused.values()
    assert "fusion.method=bilinear leaves no maps to fuse or pool again" in reason


def test_a_space_in_which_nothing_goes_together_is_refused_with_the_reason() -> None:
    def check(settings: TrialSettings) -> int:
        raise ConfigError("no network")

    with pytest.raises(ConfigError, match="none of 8 combinations is a valid network; of the last: no network"):
        proposer(FUSIONS, check=check).propose(0)


@pytest.mark.parametrize("searcher", ["tpe", "random"])
def test_proposals_are_a_function_of_the_seed(searcher: Any) -> None:
    written = FUSIONS | {"training.learning_rate": {"low": 0.001, "high": 1.0, "log": True}}
    first, again, other = (taken(proposer(written, searcher=searcher, seed=seed), 12) for seed in (1, 1, 2))
    assert first == again
    assert first != other


@pytest.mark.parametrize("objective", ["accuracy", "accuracy_and_parameters"])
def test_a_resumed_search_proposes_as_one_that_was_never_broken_off(objective: Any) -> None:
    written = FUSIONS | {"training.learning_rate": {"low": 0.001, "high": 1.0, "log": True}}

    def score(settings: TrialSettings) -> float:
        return float(settings["training.learning_rate"])

    made = taken(proposer(written, objective=objective), 14, score=score)
    resumed = proposer(written, objective=objective)
    for number, settings in enumerate(made[:9]):
        resumed.restore(number, settings, 1)
        resumed.observe(number, score(settings))
    for number in range(9, 14):
        proposal = resumed.propose(number)
        assert proposal is not None and proposal.settings == made[number]
        resumed.observe(number, score(proposal.settings))


@pytest.mark.slow
def test_tpe_finds_what_is_good_more_often_than_chance_and_keeps_away_from_what_is_refused() -> None:
    written = {
        "training.learning_rate": {"low": 0.001, "high": 1.0, "log": True},
        "model.fusion.method": ["sum", "max", "concat", "conv"],
    }

    def score(settings: TrialSettings) -> float:
        return 1.0 if settings["model.fusion.method"] == "max" else 0.1

    late = [
        one["model.fusion.method"]
        for seed in range(3)
        for one in taken(proposer(written, trials=40, seed=seed), 40, score=score)[20:]
    ]
    assert late.count("max") > 24, "15 of 60 by chance"

    def check(settings: TrialSettings) -> int:
        if settings["model.fusion.method"] == "sum":
            raise ConfigError("refused")
        return 1

    refused = 0
    for seed in range(6):
        searched = proposer(written, trials=40, check=check, seed=seed)
        taken(searched, 40)
        refused += len(searched.refused)
    assert refused < 65, "80 by chance"


def test_with_two_objectives_the_smaller_of_equally_good_networks_are_proposed_more_often() -> None:
    written = {
        "training.learning_rate": {"low": 0.001, "high": 1.0, "log": True},
        "model.spatial.width": [16, 64],
    }

    def check(settings: TrialSettings) -> int:
        return int(settings["model.spatial.width"])

    made = taken(proposer(written, check=check, trials=40, objective="accuracy_and_parameters"), 40)
    assert [one["model.spatial.width"] for one in made[20:]].count(16) > 13, "10 of 20 by chance"


def test_the_sampler_waits_for_nothing_that_a_dimension_settles_itself() -> None:
    assert Dimension(name="seed", settings=("seed",)).depends_on() == set()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"searcher": "grid", "objective": "accuracy_and_parameters"}, "needs search.searcher=tpe, got grid"),
        ({"scheduler": "pbt"}, "search.scheduler must be one of asha, median, none, got 'pbt'"),
        ({"trials": 0}, "search.trials must be at least 1, got 0"),
        ({"reduction_factor": 1}, "search.reduction_factor must be at least 2, got 1"),
        ({"max_hours": 0.0}, "search.max_hours must be more than 0"),
        ({"max_epochs": 0}, "search.max_epochs must be at least 1"),
    ],
)
def test_impossible_searches_are_refused(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        SearchConfig(space=FUSIONS, **change)


def test_a_search_wants_a_validation_split_of_its_own() -> None:
    search = SearchConfig(space=FUSIONS)
    with pytest.raises(ConfigError, match=r"data.validation_split must name the split that trials are compared on"):
        TuneConfig(name="x", data=DataConfig(shards="s"), search=search)
    with pytest.raises(
        ConfigError, match=r"or --data\.validation_fraction 0\.1, which holds it out from the training split"
    ):
        TuneConfig(name="x", data=DataConfig(shards="s", train_split="train1"), search=search)
    TuneConfig(name="x", data=DataConfig(shards="s", train_split="train1", validation_fraction=0.1), search=search)
    with pytest.raises(ConfigError, match=r"another split than data.train_split"):
        TuneConfig(name="x", data=DataConfig(shards="s", validation_split="train"), search=search)


@pytest.mark.parametrize("recipe", ["search_fusion", "demo_search"])
def test_a_point_of_the_recipes_space_is_a_training(recipe: str) -> None:
    config = from_arguments(TuneConfig, ["--config", recipe])
    some = Space(config.search.space, base=config)
    trial = Proposer(some, config=config.search, seed=0, check=lambda settings: 1).propose(0)
    assert trial is not None
    assert some.experiment(trial.settings, name="trial").data == replace(
        config.data, sampling=some.experiment(trial.settings, name="trial").data.sampling
    )
