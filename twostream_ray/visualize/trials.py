"""Analysis of search trials: Pareto front, and permutation importance of settings (Breiman 2001).

A trial is a mapping of dotted setting names to values, with the additional keys

- `score`: top-1 in [0, 1]; None, NaN or absent where a trial failed before it had one;
- `parameters`: of the network; None or absent where it was never built;
- `status`: "finished" for a trial that used its whole budget, otherwise the search's own description, such
  as "stopped early" or "failed"; the pictures show the two apart and count each status.

A setting that does not apply to a trial is absent or None.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from twostream_ray.redaction import printable

Trial = Mapping[str, object]
"""Settings and outcome of one trial."""

FINISHED = "finished"
"""Status of a trial that used its whole budget."""
_OUTCOME = ("score", "parameters", "status")

FEWEST_TRIALS = 8
"""Minimum number of trials for fitting a random forest."""
_NUM_SPLITS, _NUM_TREES, _NUM_SHUFFLES = 10, 30, 5
_HELD_OUT = 1 / 3

_LONGEST_NAME = 26
LONGEST_VALUE = 18
"""Maximum length of a value in a plot."""
QUIET = "#8c8c8c"
"""Colour of trials without a final score."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Importance:
    """Permutation importance of settings in a random forest that predicts scores."""

    settings: Mapping[str, tuple[float, float]]
    """Setting -> mean and standard deviation, over splits of the trials, of the rise of the forest's mean absolute
    error on held-out trials when the setting's values are shuffled among them; in top-1, most important first."""
    error: float
    """Mean absolute error of the forest on held-out trials, in top-1."""
    error_of_mean: float
    """Baseline error, predicting the mean score of the training trials for every held-out trial."""


def pareto_front(trials: Sequence[Trial]) -> list[int]:
    """Indices of finished trials on the Pareto front of top-1 and number of parameters, fewest parameters first.

    Of trials that are equal in both the first is taken.
    """
    measured = [
        (parameters_of(trial), -top1_of(trial), position)
        for position, trial in enumerate(trials)
        if trial.get("status") == FINISHED and None not in (score_of(trial), number_of(trial, "parameters"))
    ]
    front: list[int] = []
    best = np.inf
    for _, negative_score, position in sorted(measured):
        if negative_score < best:
            best = negative_score
            front.append(position)
    return front


def setting_importance(trials: Sequence[Trial]) -> Importance | None:
    """Permutation importance (Breiman 2001, sec. 10) of each setting that varies, on trials the forest has not seen.

    All trials with a score count, those stopped early with their last one. A third of them is held out, 10 times; the
    same trials give the same numbers. None where fewer than 8 trials have a score or nothing varies among them.
    """
    scored = [trial for trial in trials if score_of(trial) is not None]
    names = varying_settings(scored)
    if len(scored) < FEWEST_TRIALS or not names:
        return None
    from sklearn.ensemble import RandomForestRegressor
    from sklearn.inspection import permutation_importance
    from sklearn.model_selection import ShuffleSplit

    table = np.stack([_codes([trial.get(name) for trial in scored]) for name in names], axis=1)
    scores = np.array([score_of(trial) for trial in scored], dtype=np.float64)
    rises, errors, errors_of_mean = [], [], []
    for learnt, held_out in ShuffleSplit(_NUM_SPLITS, test_size=_HELD_OUT, random_state=0).split(table):
        forest = RandomForestRegressor(_NUM_TREES, random_state=0).fit(table[learnt], scores[learnt])
        shuffled = permutation_importance(
            forest,
            table[held_out],
            scores[held_out],
            scoring="neg_mean_absolute_error",
            n_repeats=_NUM_SHUFFLES,
            random_state=0,
        )
        rises.append(shuffled.importances_mean)
        errors.append(np.abs(forest.predict(table[held_out]) - scores[held_out]).mean())
        errors_of_mean.append(np.abs(scores[learnt].mean() - scores[held_out]).mean())
    mean, spread = np.mean(rises, axis=0), np.std(rises, axis=0)
    return Importance(
        settings={names[index]: (float(mean[index]), float(spread[index])) for index in np.argsort(-mean)},
        error=float(np.mean(errors)),
        error_of_mean=float(np.mean(errors_of_mean)),
    )


def count_by_status(trials: Sequence[Trial]) -> str:
    """How many trials there are of each status, as "14 trials: 9 finished, 5 stopped early"."""
    counts = Counter(str(trial.get("status", "of unknown status")) for trial in trials)
    ordered = sorted(counts.items(), key=lambda item: (item[0] != FINISHED, -item[1]))
    without = sum(score_of(trial) is None for trial in trials)
    text = f"{len(trials)} trial{'' if len(trials) == 1 else 's'}"
    if ordered:
        text += ": " + ", ".join(f"{count} {clipped(status, 40)}" for status, count in ordered)
    return text + (f" ({without} without a score)" if without else "")


def all_settings(trials: Sequence[Trial]) -> list[str]:
    """Names of all settings in the order in which they come, those of one group (the first dotted part) together."""
    names = list(dict.fromkeys(name for trial in trials for name in trial if name not in _OUTCOME))
    groups = list(dict.fromkeys(name.partition(".")[0] for name in names))
    return sorted(names, key=lambda name: groups.index(name.partition(".")[0]))


def varying_settings(trials: Sequence[Trial]) -> list[str]:
    """Names of the settings that are not the same in all trials."""
    return [name for name in all_settings(trials) if len({written(trial.get(name)) for trial in trials}) > 1]


def short_names(names: Sequence[str]) -> list[str]:
    """The last two parts of each dotted name, more where that is not unique."""
    shortened = []
    for name in names:
        parts = name.split(".")
        tails = (".".join(parts[-length:]) for length in range(2, len(parts) + 1))
        others = [other for other in names if other != name]
        tail = next((one for one in tails if not any(f".{other}".endswith(f".{one}") for other in others)), name)
        shortened.append(tail if len(tail) <= _LONGEST_NAME else "…" + tail[-_LONGEST_NAME + 1 :])
    return shortened


def _codes(values: Sequence[object]) -> NDArray[np.float64]:
    """Encode values for a random forest: numbers unchanged, names by rank, unset values below all others."""
    present = [value for value in values if value is not None]
    if all(is_number(value) for value in present):
        below = min(map(float, present), default=0.0) - 1.0  # type: ignore[arg-type]
        return np.array([below if value is None else float(value) for value in values])  # type: ignore[arg-type]
    ordered = sorted({written(value) for value in present})
    return np.array([-1.0 if value is None else float(ordered.index(written(value))) for value in values])


def score_of(trial: Trial) -> float | None:
    """Top-1 in [0, 1]; None of a trial that has none."""
    return number_of(trial, "score")


def top1_of(trial: Trial) -> float:
    """Score of a trial that has one."""
    return score_of(trial) or 0.0


def parameters_of(trial: Trial) -> float:
    """Parameters of a trial that has them."""
    return number_of(trial, "parameters") or 0.0


def number_of(trial: Trial, name: str) -> float | None:
    """A finite number of the trial, or None."""
    value = trial.get(name)
    return float(value) if is_number(value) else None  # type: ignore[arg-type]


def is_number(value: object) -> bool:
    """Whether a value is a finite number, and not a boolean."""
    return (
        isinstance(value, (int, float, np.integer, np.floating))
        and not isinstance(value, bool)
        and bool(np.isfinite(value))
    )


def written(value: object) -> str:
    """Format a value for a plot: layers as "relu3 + relu5"."""
    if isinstance(value, (list, tuple)):
        return " + ".join(map(written, value)) or "none"
    if isinstance(value, float):
        return f"{value:.4g}"
    return str(value).lower() if isinstance(value, bool) else printable(str(value))


def clipped(text: str, length: int) -> str:
    """Truncate a text that is too long."""
    return text if len(text) <= length else text[: length - 1] + "…"
