"""Trial store: one JSON file per trial, from which a search resumes after a kill at any moment."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Literal, get_args

from twostream_ray import storage
from twostream_ray.errors import ConfigError
from twostream_ray.runs.experiment import fixed_settings
from twostream_ray.runs.run_folder import SearchFolder
from twostream_ray.runs.search.settings import SearchConfig, TuneConfig
from twostream_ray.runs.search.space import TrialSettings
from twostream_ray.storage.json_files import COUNT, list_of, read_json, record
from twostream_ray.training.checkpoint import METRICS

Status = Literal["running", "finished", "stopped early", "failed"]

_STATE_SCHEMA = record({}, {"seconds": {"type": "number", "minimum": 0}})
_SECONDS_PER_HOUR = 3600
# Settings that a resumed search may change.
_MAY_CHANGE = ("trials", "max_epochs", "max_hours", "max_gpu_hours", "concurrent_trials", "share_samples_gb")


@dataclass(frozen=True, kw_only=True)
class TrialRecord:
    """State of one trial."""

    number: int
    """From 0, in order of proposal."""
    name: str
    """Name of its training run."""
    settings: TrialSettings
    """The proposed settings."""
    parameters: int
    """Number of the network's parameters."""
    status: Status = "running"
    """running: not ended; it resumes when the search does."""
    reason: str = ""
    """Why it failed or was stopped."""
    history: list[dict[str, float]] = field(default_factory=list)
    """Metrics of every epoch."""
    seconds: float = 0.0
    """Time for which it held its share of the cluster."""

    @property
    def score(self) -> float | None:
        """Best top-1 on the validation split, in [0, 1]; None before the first epoch has ended."""
        return max((metrics["val_top1"] for metrics in self.history), default=None)

    @property
    def settings_text(self) -> str:
        """Its settings as text, by the last part of each name."""

        def shown(value: Any) -> str:
            if isinstance(value, list):
                return "+".join(map(str, value))
            return f"{value:.3g}" if isinstance(value, float) else str(value)

        return ", ".join(f"{name.rpartition('.')[2]} {shown(value)}" for name, value in self.settings.items())

    def outcome(self) -> dict[str, object]:
        """The trial as the plots of a search take it."""
        return {**self.settings, "score": self.score, "parameters": self.parameters, "status": self.status}

    def row(self) -> dict[str, object]:
        """The trial as a row of a table: its settings, score, parameters and status."""
        return {
            "trial": self.name,
            **self.settings,
            "score": self.score,
            "parameters": self.parameters,
            "epochs": len(self.history),
            "seconds": round(self.seconds, 1),
            "status": self.status,
            "reason": self.reason,
        }


@dataclass(frozen=True, kw_only=True)
class Spent:
    """The spent budget of a search."""

    trials: int
    """Started trials."""
    epochs: int
    """Epochs over all trials."""
    hours: float
    """Hours that the search has run, over all calls."""
    gpu_hours: float
    """Hours of GPUs over all trials."""

    def over(self, config: SearchConfig) -> str | None:
        """Which budget is spent, in words, or None; the number of trials is checked elsewhere."""
        for used, allowed, unit in (
            (self.epochs, config.max_epochs, "epochs"),
            (self.hours, config.max_hours, "hours"),
            (self.gpu_hours, config.max_gpu_hours, "GPU-hours"),
        ):
            if allowed is not None and used >= allowed:
                return f"{used:.4g} of {allowed:g} {unit}"
        return None


def seconds_left(
    records: Sequence[TrialRecord], spent: Spent, *, config: SearchConfig, trials: int, epochs: int
) -> float | None:
    """Estimated seconds that a search will still run at its pace so far; None before an epoch has ended.

    Trials to come are assumed to be as long as ended ones were on average.

    Args:
        records: started trials.
        spent: the spent budget.
        config: the budget.
        trials: trials to run in all, at most.
        epochs: epochs of a trial that is not stopped, at most.
    """
    if not spent.epochs or not spent.hours:
        return None
    ended = [len(record.history) for record in records if record.status != "running"]
    mean_epochs = sum(ended) / len(ended) if ended else epochs
    running = [len(record.history) for record in records if record.status == "running"]
    # A trial that is longer than the mean may be stopped at any epoch.
    epochs_left = sum(mean_epochs - done if done < mean_epochs else max(epochs - done, 0) / 2 for done in running)
    epochs_left += max(trials - len(records), 0) * mean_epochs
    hours = epochs_left * spent.hours / spent.epochs
    for used, allowed in (
        (spent.epochs, config.max_epochs),
        (spent.hours, config.max_hours),
        (spent.gpu_hours, config.max_gpu_hours),
    ):
        if allowed is not None and used:
            hours = min(hours, max(allowed - used, 0) * spent.hours / used)
    return hours * _SECONDS_PER_HOUR


class TrialStore:
    """The records of a search in its folder."""

    def __init__(self, config: TuneConfig, *, folder: SearchFolder) -> None:
        """Open the search in `folder`, which is created with its first trial.

        Raises:
            ConfigError: a search of this name was started with other settings, or one of its files is damaged.
        """
        self._folder, self._wanted = folder, _fixed(config)
        self.is_another = folder.is_another(self._wanted)
        """Whether a search of this name that has trained nothing had other settings."""
        self._begun = folder.begun_with(self._wanted)
        if not self._begun:
            self._delete_all()
        state = storage.join(folder.uri, "state.json")
        self._state: dict[str, Any] = {}
        if storage.exists(state):
            way_out = "delete it and run the same command again, which then counts the hours from 0"
            self._state = read_json(
                state, _STATE_SCHEMA, what=f"the state of {folder.what}", way_out=way_out, error=ConfigError
            )
        self.records: dict[int, TrialRecord] = {}
        """By number."""
        number = 0
        while storage.exists(self._file(number)):
            self.records[number] = _read_trial(self._file(number), config, number=number, folder_uri=folder.uri)
            number += 1

    def _delete_all(self) -> None:
        """Remove the records of trials that have trained nothing: the next search may have other settings."""
        number = 0
        while storage.exists(self._file(number)):
            number += 1
        # The last first: a kill in between leaves no gap in the numbers.
        for one in reversed(range(number)):
            storage.delete(self._file(one))
        storage.delete(storage.join(self._folder.uri, "state.json"))

    def put(self, trial: TrialRecord) -> None:
        """Store a trial's new state."""
        if not self._begun:
            storage.write_json(self._folder.settings, self._wanted)
            self._begun = True
        self.records[trial.number] = trial
        storage.write_json(self._file(trial.number), asdict(trial))

    def end_epoch(self, number: int, metrics: dict[str, float], *, seconds: float) -> bool:
        """Record an epoch that took `seconds`; False if it was known already, as resumed trials report it again."""
        trial = self.records[number]
        fresh = int(metrics["epoch"]) == len(trial.history)
        history = [*trial.history, metrics] if fresh else trial.history
        self.put(replace(trial, history=history, seconds=trial.seconds + seconds))
        return fresh

    @property
    def seconds(self) -> float:
        """Time of all calls together."""
        return float(self._state.get("seconds", 0.0))

    def store_seconds(self, seconds: float) -> None:
        """Store how long the search has run, over all calls."""
        self._state["seconds"] = seconds
        storage.write_json(storage.join(self._folder.uri, "state.json"), self._state)

    def spent(self, *, gpus_per_trial: float) -> Spent:
        """The spent budget."""
        records = self.records.values()
        return Spent(
            trials=len(self.records),
            epochs=sum(len(record.history) for record in records),
            hours=self.seconds / _SECONDS_PER_HOUR,
            gpu_hours=gpus_per_trial * sum(record.seconds for record in records) / _SECONDS_PER_HOUR,
        )

    def _file(self, number: int) -> str:
        return storage.join(self._folder.uri, "trials", f"{number:04d}.json")


def trial_name(search: str, number: int) -> str:
    """Name of a trial's training run."""
    return f"{search}-{number:04d}"


def _read_trial(uri: str, config: TuneConfig, *, number: int, folder_uri: str) -> TrialRecord:
    name = trial_name(config.name, number)
    searched = [setting.strip() for settings in config.search.space for setting in settings.split(",")]
    schema = record(
        {
            "number": {"const": number},
            # It becomes a folder's name.
            "name": {"const": name},
            "settings": record({}, {setting: {} for setting in searched}),
            "parameters": COUNT,
            "status": {"enum": list(get_args(Status))},
            "reason": {"type": "string"},
            "history": list_of(METRICS | {"required": ["epoch", "val_top1"]}),
            "seconds": {"type": "number", "minimum": 0},
        }
    )
    way_out = f"choose another --name, or delete {folder_uri}"
    values = read_json(uri, schema, what=f"trial {name}", way_out=way_out, error=ConfigError, metrics=True)
    return TrialRecord(**values)


def best_of(records: Sequence[TrialRecord]) -> TrialRecord | None:
    """The most accurate trial, the smaller of two equals; None before one has finished an epoch."""
    return next(iter(_ranked(records)), None)


def _ranked(records: Sequence[TrialRecord]) -> list[TrialRecord]:
    scored = [record for record in records if record.score is not None and record.status != "failed"]
    return sorted(scored, key=lambda record: (-(record.score or 0.0), record.parameters, record.number))


def as_csv(records: Sequence[TrialRecord]) -> str:
    """The trials as a table; a setting that a trial does not read is empty, lists are JSON."""
    rows = [record.row() for record in records]
    columns = list(dict.fromkeys(key for row in rows for key in row))
    last = ["score", "parameters", "epochs", "seconds", "status", "reason"]
    columns = [key for key in columns if key not in last] + last
    table = io.StringIO()
    writer = csv.DictWriter(table, columns, restval="", lineterminator="\n")
    writer.writeheader()
    writer.writerows(
        {key: json.dumps(value) if isinstance(value, list) else value for key, value in row.items()} for row in rows
    )
    return table.getvalue()


def as_list(records: Sequence[TrialRecord], *, most: int = 10) -> str:
    """The most accurate trials as a numbered list in Markdown, best first."""
    return "\n".join(
        f"1. **{record.score:.1%}** {record.name} ({record.parameters:,} parameters, {len(record.history)} epochs, "
        f"{record.status}): {record.settings_text}"
        for record in _ranked(records)[:most]
    )


def _fixed(config: TuneConfig) -> dict[str, Any]:
    """The settings that a resumed search must share, as JSON types."""
    values = fixed_settings(config)
    return values | {"search": {key: value for key, value in values["search"].items() if key not in _MAY_CHANGE}}
