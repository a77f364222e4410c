"""Search algorithms (random, grid, Optuna's TPE) that propose the next trial, without invalid or repeated settings."""

from __future__ import annotations

import json
import math
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from twostream_ray.errors import ConfigError
from twostream_ray.runs.search.settings import SearchConfig
from twostream_ray.runs.search.space import Dimension, Space, TrialSettings, signature

if TYPE_CHECKING:
    import optuna

_ATTEMPTS = 100
"""Samples drawn for one trial before a finite space is enumerated, and an infinite one counts as exhausted."""


@dataclass(frozen=True, kw_only=True)
class Proposal:
    """The settings of a new trial."""

    settings: TrialSettings
    """Values of the searched settings."""
    parameters: int
    """Number of the network's parameters."""


class Proposer:
    """Ask-and-tell interface to the search algorithms: proposes trials, guided by the results that it observes.

    A proposal is a function of the seed, the number of the trial and the results observed so far: a resumed search
    proposes the same trials as one that was never interrupted.
    """

    def __init__(self, space: Space, *, config: SearchConfig, seed: int, check: Callable[[TrialSettings], int]) -> None:
        """`check` builds a trial's network on the meta device and returns its parameters, or raises ConfigError.

        Raises:
            ConfigError: a grid over a space with a range.
        """
        if config.searcher == "grid" and not space.finite:
            names = ", ".join(one.name for one in space.dimensions if not one.choices)
            raise ConfigError(f"search.searcher=grid wants lists of choices, got ranges for {names}: list the values")
        self._space, self._config, self._seed, self._check = space, config, seed, check
        self._taken: set[str] = set()
        self.refused: dict[str, str] = {}
        """Signature of invalid settings -> why they are."""
        self._asked: dict[int, optuna.trial.Trial] = {}
        self._parameters: dict[int, int] = {}
        self._study: optuna.Study | None = None

    def propose(self, number: int) -> Proposal | None:
        """The settings of trial `number`; None when the space is exhausted.

        Raises:
            ConfigError: no sampled combination is valid; the message says what is wrong with the last.
        """
        for settings in self._candidates(number):
            key = signature(settings)
            if key in self._taken:
                self._discard(number, valid=True)
                continue
            self._taken.add(key)
            try:
                parameters = self._check(settings)
            except ConfigError as error:
                self.refused[key] = str(error)
                self._discard(number, valid=False)
                continue
            self._parameters[number] = parameters
            return Proposal(settings=settings, parameters=parameters)
        if self.refused and len(self.refused) == len(self._taken):
            raise ConfigError(
                f"search.space: none of {len(self.refused)} combinations is a valid network; of the last: "
                + list(self.refused.values())[-1]
            )
        return None

    def restore(self, number: int, settings: TrialSettings, parameters: int) -> None:
        """Add a trial of an earlier call of the same search; call `observe` next if it has ended."""
        self._taken.add(signature(settings))
        self._parameters[number] = parameters
        if self._config.searcher == "tpe":
            self._enqueue(number, settings)

    def observe(self, number: int, score: float | None) -> None:
        """Record a trial's result: its best accuracy in [0, 1], or None if it failed."""
        asked = self._asked.pop(number, None)
        if asked is None:
            return
        from optuna.trial import TrialState

        if score is None:
            self._optuna().tell(asked, state=TrialState.FAIL)
        elif self._config.objective == "accuracy":
            self._optuna().tell(asked, score)
        else:
            self._optuna().tell(asked, [score, float(self._parameters[number])])

    def _candidates(self, number: int) -> Iterator[TrialSettings]:
        if self._config.searcher == "grid":
            yield from self._space.grid()
            return
        for attempt in range(_ATTEMPTS):
            if self._config.searcher == "tpe":
                yield self._ask(number, attempt)
            else:
                yield self._space.sample(_random_pick(self._generator(number, attempt)))
        if self._space.finite:
            rest = [settings for settings in self._space.grid() if signature(settings) not in self._taken]
            self._generator(number, _ATTEMPTS).shuffle(rest)
            for settings in rest:
                if self._config.searcher == "tpe":
                    self._enqueue(number, settings)
                yield settings

    def _generator(self, number: int, attempt: int) -> random.Random:
        return random.Random(f"{self._seed}/{number}/{attempt}")

    def _optuna(self) -> optuna.Study:
        """The study, created when first used: importing Optuna takes a second."""
        if self._study is None:
            import optuna

            optuna.logging.set_verbosity(optuna.logging.WARNING)
            sizes = ["minimize"] if self._config.objective == "accuracy_and_parameters" else []
            self._study = optuna.create_study(directions=["maximize", *sizes])
        return self._study

    def _ask(self, number: int, attempt: int) -> TrialSettings:
        """Let TPE sample, with random numbers that depend only on this trial and attempt."""
        from optuna.samplers import TPESampler

        study = self._optuna()
        # A third of a short search explores at random: TPE's default of ten would leave it no trial to choose.
        study.sampler = TPESampler(
            seed=self._generator(number, attempt).getrandbits(32),
            n_startup_trials=min(10, max(2, self._config.trials // 3)),
        )
        self._asked[number] = trial = study.ask()
        return self._space.sample(lambda dimension: _suggest(trial, dimension))

    def _enqueue(self, number: int, settings: TrialSettings) -> None:
        """Add a trial to TPE's study that TPE did not sample."""
        wanted = {
            dimension.name: _as_parameter(dimension, settings[dimension.settings[0]])
            for dimension in self._space.dimensions
            if dimension.settings[0] in settings
        }
        self._optuna().enqueue_trial(wanted)
        self._ask(number, _ATTEMPTS)

    def _discard(self, number: int, *, valid: bool) -> None:
        """Close a trial that is not run; TPE avoids invalid combinations like bad results."""
        asked = self._asked.pop(number, None)
        if asked is None:
            return
        from optuna.trial import TrialState

        self._optuna().tell(asked, state=TrialState.FAIL if valid else TrialState.PRUNED)


def _as_parameter(dimension: Dimension, value: Any) -> Any:
    """Optuna's categories must be strings or numbers; ours may be lists."""
    return json.dumps(value) if dimension.choices else value


def _suggest(trial: optuna.trial.Trial, dimension: Dimension) -> Any:
    if dimension.choices:
        return json.loads(trial.suggest_categorical(dimension.name, [json.dumps(one) for one in dimension.choices]))
    if dimension.integer:
        return trial.suggest_int(dimension.name, int(dimension.low), int(dimension.high), log=dimension.log)
    return trial.suggest_float(dimension.name, dimension.low, dimension.high, log=dimension.log)


def _random_pick(generator: random.Random) -> Callable[[Dimension], Any]:
    def pick(dimension: Dimension) -> Any:
        low, high = dimension.low, dimension.high
        if dimension.choices:
            return generator.choice(dimension.choices)
        if dimension.log:
            value = min(max(math.exp(generator.uniform(math.log(low), math.log(high))), low), high)
        else:
            value = generator.uniform(low, high)
        return round(value) if dimension.integer else value

    return pick
