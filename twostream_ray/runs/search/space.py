"""Conditional search space: settings with choices or ranges, some of which apply only for values of others."""

from __future__ import annotations

import difflib
import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from twostream_ray.errors import ConfigError
from twostream_ray.runs.experiment import ExperimentConfig
from twostream_ray.settings.parser import dotted, from_mapping

TrialSettings = dict[str, Any]
"""Dotted name of a searched setting -> its value, as JSON types."""

# Trials are compared with each other, so they share data, protocol, storage and tracking.
_NOT_TO_BE_SEARCHED = ("name", "storage", "data.shards", "data.validation_", "tracking.", "workers.")
_SPLIT = "_split"

_OF_TOWERS = ("late", "fused", "st_resnet", "stfn")
_READ_WHEN: dict[str, dict[str, tuple[Any, ...]]] = {
    "model.fusion.method": {"model.architecture": ("fused", "stfn")},
    "model.fusion.layers": {"model.architecture": ("fused",)},
    "model.fusion.temporal": {"model.architecture": ("fused",)},
    "model.fusion.initialisation": {"model.architecture": ("fused",)},
    "model.fusion.pool_": {"model.architecture": ("fused", "st_resnet")},
    "model.keep_temporal_tower": {"model.architecture": ("fused",)},
    "model.freeze_below_fusion": {"model.architecture": ("fused",)},
    "model.streams": {"model.architecture": ("late",)},
    "model.st_resnet.": {"model.architecture": ("st_resnet",)},
    "model.stfn.": {"model.architecture": ("stfn",)},
    "model.clip3d.": {"model.architecture": ("clip3d",)},
    "model.spatial.": {"model.architecture": _OF_TOWERS},
    "model.temporal.": {"model.architecture": _OF_TOWERS},
    "training.momentum": {"training.optimiser": ("sgd",)},
}
"""Prefix of settings -> the values of other settings for which a training uses them."""


def _learned_fusion(values: Mapping[str, Any]) -> bool:
    return values["model.fusion.method"] == "conv" or values["model.fusion.temporal"] == "conv3d"


def _pools_over_time(values: Mapping[str, Any]) -> bool:
    return values["model.architecture"] != "fused" or values["model.fusion.temporal"] != "pool2d"


def _two_losses(values: Mapping[str, Any]) -> bool:
    if values["model.architecture"] == "fused":
        return bool(values["model.keep_temporal_tower"])
    return values["model.streams"] == "both" and values["model.architecture"] not in ("stfn", "clip3d")


_READ_IF: dict[str, tuple[tuple[str, ...], Callable[[Mapping[str, Any]], bool]]] = {
    "model.fusion.initialisation": (("model.fusion.method", "model.fusion.temporal"), _learned_fusion),
    "model.fusion.pool_": (("model.architecture", "model.fusion.temporal"), _pools_over_time),
    "training.temporal_loss_weight": (
        ("model.architecture", "model.keep_temporal_tower", "model.streams"),
        _two_losses,
    ),
}
"""Prefix of settings -> the other settings that decide together whether a training uses them, and the condition."""


@dataclass(frozen=True, kw_only=True)
class Dimension:
    """One dimension of a search space: one setting, or several that take the same value."""

    name: str
    """As in the recipe: a dotted setting, or several with commas between."""
    settings: tuple[str, ...]
    """The dotted settings that take the value."""
    choices: tuple[Any, ...] = ()
    """Values to choose from, as JSON types; empty for a range."""
    low: float = 0.0
    """Smallest value of a range."""
    high: float = 0.0
    """Largest value of a range."""
    log: bool = False
    """Whether the logarithm is drawn uniformly."""
    integer: bool = False
    """Whether integers are drawn."""
    when: tuple[tuple[str, tuple[Any, ...]], ...] = ()
    """(setting, values): this dimension is active if every setting has one of its values; otherwise it keeps the
    recipe's value."""

    def depends_on(self) -> set[str]:
        """Settings whose values decide whether this dimension is active."""
        known = {key for key, _ in self.when}
        for setting in self.settings:
            for beginning, wanted in _READ_WHEN.items():
                if setting.startswith(beginning):
                    known |= wanted.keys()
            for beginning, (keys, _) in _READ_IF.items():
                if setting.startswith(beginning):
                    known |= set(keys)
        return known - set(self.settings)

    def is_active(self, values: Mapping[str, Any]) -> bool:
        """Whether a training with these settings uses this one."""
        if any(values[key] not in wanted for key, wanted in self.when):
            return False
        return any(_is_read(setting, values) for setting in self.settings)


def _is_read(setting: str, values: Mapping[str, Any]) -> bool:
    return all(
        values[key] in allowed
        for beginning, wanted in _READ_WHEN.items()
        if setting.startswith(beginning)
        for key, allowed in wanted.items()
    ) and all(holds(values) for beginning, (_, holds) in _READ_IF.items() if setting.startswith(beginning))


class Space:
    """The dimensions of a search, and the recipe with all other settings."""

    def __init__(self, written: Mapping[str, Any], *, base: ExperimentConfig) -> None:
        """Read the space as the recipe writes it.

        Args:
            written: setting -> a list of choices, or {low, high, log}, or {choices, when}; `when` maps settings to the
                values for which this one is active.
            base: the values of settings that are not searched, or not active in a trial.

        Raises:
            ConfigError: an unknown setting, one that trials must share, or an entry of another form.
        """
        if not written:
            raise ConfigError("search.space must name at least one setting with its choices, got none")
        # Only the fields of an experiment: those that a search adds are not settings of a trial.
        fields = ExperimentConfig.__dataclass_fields__
        self._base: dict[str, Any] = json.loads(
            json.dumps({name: value for name, value in asdict(base).items() if name in fields})
        )
        self.values = dotted(self._base)
        self.dimensions = _in_order([self._dimension(name, entry) for name, entry in written.items()])

    def _dimension(self, name: str, entry: Any) -> Dimension:
        settings = tuple(part.strip() for part in name.split(","))
        for setting in settings:
            self._check_setting(setting)
        if isinstance(entry, Sequence) and not isinstance(entry, str):
            entry = {"choices": entry}
        keys = (
            {"choices", "when"} if isinstance(entry, Mapping) and "choices" in entry else {"low", "high", "log", "when"}
        )
        if (
            not isinstance(entry, Mapping)
            or not entry.keys() <= keys
            or not ("choices" in entry or {"low", "high"} <= entry.keys())
        ):
            raise ConfigError(
                f"search.space: {name} wants a list of choices, {{low, high, log}}, or {{choices, when}}, got {entry!r}"
            )
        when = []
        for key, wanted in (entry.get("when") or {}).items():
            if key not in self.values:
                raise ConfigError(f"search.space: {name} has the condition {_unknown(key, self.values)}")
            listed = isinstance(wanted, Sequence) and not isinstance(wanted, str)
            when.append((key, tuple(wanted) if listed else (wanted,)))
        if "choices" in entry:
            choices = entry["choices"]
            if not isinstance(choices, Sequence) or isinstance(choices, str) or not choices:
                raise ConfigError(f"search.space: {name} wants at least one choice, got {choices!r}")
            return Dimension(name=name, settings=settings, choices=tuple(choices), when=tuple(when))
        return self._range(name, settings, entry, when=tuple(when))

    def _range(
        self, name: str, settings: tuple[str, ...], entry: Mapping[str, Any], *, when: tuple[Any, ...]
    ) -> Dimension:
        try:
            low, high = float(entry["low"]), float(entry["high"])
        except (TypeError, ValueError):
            raise ConfigError(f"search.space: {name} wants numbers as low and high, got {dict(entry)}") from None
        log = bool(entry.get("log", False))
        now = self.values[settings[0]]
        if isinstance(now, (bool, str, list)):
            raise ConfigError(f"search.space: {name} is {now!r} in the recipe, not a number: write a list of choices")
        if not (math.isfinite(low) and math.isfinite(high) and low < high) or (log and low <= 0):
            raise ConfigError(
                f"search.space: {name} wants low < high{', both more than 0 as log is true' if log else ''}, got "
                f"{entry['low']} and {entry['high']}"
            )
        integer = isinstance(now, int)
        if integer and not (low.is_integer() and high.is_integer()):
            raise ConfigError(f"search.space: {name} is a whole number, got the range {low} to {high}")
        return Dimension(name=name, settings=settings, low=low, high=high, log=log, integer=integer, when=when)

    def _check_setting(self, setting: str) -> None:
        if setting not in self.values:
            raise ConfigError(f"search.space: {_unknown(setting, self.values)}")
        if setting.startswith(_NOT_TO_BE_SEARCHED) or setting.endswith(_SPLIT):
            raise ConfigError(
                f"search.space: {setting} cannot be searched: trials share their data, storage and tracking"
            )

    @property
    def finite(self) -> bool:
        """Whether no dimension is a range."""
        return all(dimension.choices for dimension in self.dimensions)

    @property
    def logarithmic(self) -> dict[str, bool]:
        """Setting -> whether its range is logarithmic; only of settings with a range."""
        ranges = [dimension for dimension in self.dimensions if not dimension.choices]
        return {setting: dimension.log for dimension in ranges for setting in dimension.settings}

    def largest(self, setting: str) -> Any:
        """The largest value that a setting can take in a trial."""
        searched = [one for one in self.dimensions if setting in one.settings]
        return max([max(one.choices or (one.high,)) for one in searched], default=self.values[setting])

    def sample(self, pick: Callable[[Dimension], Any]) -> TrialSettings:
        """One value of each active dimension, chosen by `pick` in order."""
        values, settings = dict(self.values), {}
        for dimension in self.dimensions:
            if dimension.is_active(values):
                value = pick(dimension)
                for setting in dimension.settings:
                    values[setting] = settings[setting] = value
        return settings

    def grid(self) -> Iterator[TrialSettings]:
        """Every point once, the first dimension varying slowest; the space must be finite."""
        yield from self._grid(0, dict(self.values), {})

    def _grid(self, position: int, values: dict[str, Any], settings: TrialSettings) -> Iterator[TrialSettings]:
        if position == len(self.dimensions):
            yield dict(settings)
            return
        dimension = self.dimensions[position]
        if not dimension.is_active(values):
            yield from self._grid(position + 1, values, settings)
            return
        for choice in dimension.choices:
            chosen = dict.fromkeys(dimension.settings, choice)
            yield from self._grid(position + 1, values | chosen, settings | chosen)

    def experiment(self, settings: TrialSettings, **fixed: Any) -> ExperimentConfig:
        """A trial's experiment: the recipe's settings, the proposed ones, and top-level ones `fixed` by the search.

        Raises:
            ConfigError: a value has the wrong type, or contradicts another.
        """
        values = json.loads(json.dumps(self._base)) | fixed
        for setting, value in settings.items():
            *path, last = setting.split(".")
            part = values
            for name in path:
                part = part[name]
            part[last] = value
        return from_mapping(ExperimentConfig, values)


def _in_order(dimensions: list[Dimension]) -> list[Dimension]:
    """The dimensions in topological order: each after those that it depends on, otherwise as written."""
    waiting, ordered = list(dimensions), []
    while waiting:
        open_settings = {setting for dimension in waiting for setting in dimension.settings}
        ready = next((one for one in waiting if not one.depends_on() & open_settings), None)
        if ready is None:
            names = ", ".join(one.name for one in waiting)
            raise ConfigError(f"search.space: the conditions of {names} are circular: remove one of them")
        waiting.remove(ready)
        ordered.append(ready)
    return ordered


def _unknown(setting: str, known: Mapping[str, Any]) -> str:
    near = difflib.get_close_matches(setting, known, n=3, cutoff=0.5)
    return f"unknown setting {setting!r}" + (f"; did you mean {', '.join(near)}?" if near else "")


def signature(settings: TrialSettings) -> str:
    """A string that is the same for the same settings in any order."""
    return json.dumps(settings, sort_keys=True)
