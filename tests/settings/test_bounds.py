import json
import pkgutil
from dataclasses import dataclass, fields, is_dataclass, replace
from importlib import import_module
from types import UnionType
from typing import Any, Union, get_args, get_origin, get_type_hints

import pytest

import twostream_ray
from twostream_ray.data.flow import FlowContract
from twostream_ray.data.loading.settings import DataConfig
from twostream_ray.data.sources.synthetic import SyntheticConfig
from twostream_ray.errors import ConfigError
from twostream_ray.runs.experiment import ExperimentConfig
from twostream_ray.runs.score.explain import ExplainConfig
from twostream_ray.runs.score.settings import PredictConfig, RollbackConfig, TuneScoresConfig
from twostream_ray.runs.search.settings import SearchConfig, TuneConfig
from twostream_ray.runs.settings import IngestConfig
from twostream_ray.runs.workers import WorkersConfig
from twostream_ray.settings.bounds import require_within
from twostream_ray.settings.parser import from_arguments, from_mapping
from twostream_ray.training.settings import TrainingConfig

REQUIRED: dict[str, Any] = {
    "shards": "s",
    "out": "o",
    "root": "r",
    "model": "m",
    "version": "7",
    "video": "v.avi",
    "videos": ["v.avi"],
    "name": "n",
    "verb": "train",
    "backbone": "vgg16",
    "to": "w",
    "first": "a",
    "second": "b",
    "space": {"training.epochs": [1]},
}
ABSURD = [
    float("nan"),
    float("inf"),
    float("-inf"),
    1e308,
    -1e308,
    -1,
    2**64,
    -(2**64),
    10**400,
    True,
    False,
    "5",
    [1],
    {},
    None,
]


def settings_classes() -> list[type]:
    """Every settings class of the package: what is called ...Config, and the flow contract."""
    found: dict[str, Any] = {"FlowContract": FlowContract}
    for module in pkgutil.walk_packages(twostream_ray.__path__, "twostream_ray."):
        if module.name.startswith("twostream_ray.served"):
            continue
        found |= {
            name: value
            for name, value in vars(import_module(module.name)).items()
            if name.endswith("Config")
            and not name.startswith("_")
            and is_dataclass(value)
            and value.__module__.startswith("twostream_ray.")
        }
    return list(found.values())


def made(kind: type) -> Any:
    """One of the kind, with defaults wherever there are some."""
    if kind is TuneConfig or kind is ExperimentConfig:
        more = {"search": SearchConfig(space=REQUIRED["space"])} if kind is TuneConfig else {}
        return kind(name="n", data=DataConfig(shards="s", validation_split="val"), **more)
    hints = get_type_hints(kind)
    given: dict[str, Any] = {}
    for field in fields(kind):
        if field.default is field.default_factory:  # both missing
            hint = hints[field.name]
            given[field.name] = made(hint) if is_dataclass(hint) else REQUIRED[field.name]
    if kind is ExplainConfig:
        given["video"] = REQUIRED["video"]
    if kind is TuneScoresConfig:
        given["choose"] = replace(given["choose"], both="scores.npz")
    return kind(**given)


def numbers(hint: Any) -> set[type]:
    """int, float or both, where a setting of this type holds numbers, also in a tuple or list."""
    if hint in (int, float):
        return {hint}
    if get_origin(hint) in (tuple, list, Union, UnionType):
        return set().union(*(numbers(part) for part in get_args(hint)))
    return set()


CLASSES = settings_classes()
NUMBERS = [
    (kind, field.name, get_type_hints(kind)[field.name])
    for kind in CLASSES
    for field in fields(kind)
    if numbers(get_type_hints(kind)[field.name])
]


def test_all_settings_classes_are_looked_at() -> None:
    assert len(CLASSES) >= 25 and len(NUMBERS) >= 80
    for kind in CLASSES:
        made(kind)


@pytest.mark.parametrize(("kind", "name", "hint"), NUMBERS, ids=lambda value: getattr(value, "__name__", str(value)))
def test_no_number_is_absurd(kind: type, name: str, hint: Any) -> None:
    plain = made(kind)
    inside = get_origin(hint) in (tuple, list) and (lambda value: get_origin(hint)([value]))
    for value in ABSURD:
        if value is None and "None" in str(hint):
            continue
        if value == [1] and "tuple" in str(hint) and not inside:
            continue
        with pytest.raises(ConfigError) as met:
            replace(plain, **{name: inside(value) if inside else value})
        said = str(met.value)
        assert name in said and "\n" not in said and len(said) < 300, said


def test_numbers_within_their_interval_are_taken_and_the_ends_are_what_the_brackets_say() -> None:
    @dataclass(frozen=True, kw_only=True)
    class Both:
        """Two numbers."""

        whole: int | None = 1
        """Some."""
        share: float = 0.5
        """Some."""
        many: tuple[float, ...] = ()
        """Some."""

        def __post_init__(self) -> None:
            require_within(self, "both.", whole="[1, 1_000]", share="(0, 1]", many="(2, 3e5)")

    for fine in ({"whole": None}, {"whole": 1000}, {"share": 1}, {"share": 1e-300}, {"many": (2.1, 299999)}):
        Both(**fine)
    for bad, message in {
        ("whole", 0): "both.whole must be at least 1, got 0",
        ("whole", 1001): "both.whole must be at most 1,000, got 1001",
        ("whole", 1.0): "both.whole must be a whole number, got 1.0",
        ("share", 0.0): "both.share must be in (0, 1], got 0.0",
        ("share", float("nan")): "both.share must be a finite number, got nan",
        ("many", (3.0, 2)): "both.many must be more than 2, got (3.0, 2)",
        ("many", (3e5,)): "both.many must be less than 300000, got (300000.0,)",
    }.items():
        with pytest.raises(ConfigError) as met:
            Both(**dict([bad]))
        assert str(met.value) == message


@pytest.mark.parametrize(
    ("kind", "base", "key"),
    [
        (TrainingConfig, {}, "weight_decay"),
        (TrainingConfig, {}, "learning_rate"),
        (TrainingConfig, {}, "warmup_epochs"),
        (TrainingConfig, {}, "temporal_loss_weight"),
        (DataConfig, {"shards": "s"}, "cache_gb"),
        (WorkersConfig, {}, "timeout_s"),
        (IngestConfig, {"catalog": {"root": "r"}, "out": "o"}, "max_bad_fraction"),
    ],
)
def test_neither_files_nor_options_bring_what_is_no_finite_number(kind: type, base: dict[str, Any], key: str) -> None:
    plain = ["--config", json.dumps(base)]
    for text in ("nan", ".nan", "-.inf", "1e400"):
        for arguments in ([*plain, "--config", f"{{{key}: {text}}}"], [*plain, f"--{key}={text}"]):
            with pytest.raises(ConfigError, match=f"{key}"):
                from_arguments(kind, arguments)
    for number in (float("nan"), float("inf"), 10**400):
        with pytest.raises(ConfigError, match=key):
            from_mapping(kind, {**base, key: number})


def test_seeds_that_torch_and_numpy_do_not_take_are_refused_in_one_line() -> None:
    for seed in ("-1", str(2**64), str(2**63), "1" * 5000, "1.5"):
        with pytest.raises(ConfigError) as met:
            from_arguments(SyntheticConfig, ["--seed", seed])
        assert "\n" not in str(met.value) and len(str(met.value)) < 300
    assert from_arguments(SyntheticConfig, ["--seed", str(2**63 - 1)]).seed == 2**63 - 1


def test_versions_and_counts_too_large_for_anything_are_refused() -> None:
    for kind, name in ((RollbackConfig, "to"), (PredictConfig, "top_k")):
        with pytest.raises(ConfigError, match=f"{name} must be at most"):
            replace(made(kind), **{name: 2**40})
