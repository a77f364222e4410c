"""Evaluation over several splits (mean ± standard deviation), each with the model trained on its training split.

UCF101 and HMDB51 have three splits; papers report the mean of their accuracies.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from twostream_ray import storage
from twostream_ray.errors import ConfigError
from twostream_ray.runs.cluster.session import ray_session
from twostream_ray.runs.outputs import refuse_foreign_files
from twostream_ray.runs.score.evaluate import Evaluation, evaluate
from twostream_ray.runs.score.settings import EvaluateConfig
from twostream_ray.storage.json_files import record

SPLITS = "splits.json"
"""File with the metrics of each split, and over all splits."""

_SCHEMA = record({"splits": {"type": "array"}, "mean": {"type": "object"}, "protocol": {"type": "object"}}, others=True)

Progress = Callable[[str, int, int], None]
"""Called with (split, clips scored, clips in all)."""


@dataclass(frozen=True, kw_only=True)
class SplitsReport:
    """Metrics of each split, their mean and standard deviation."""

    splits: tuple[Evaluation, ...]
    """Each split's evaluation, in the requested order."""
    mean: dict[str, float]
    """Mean over splits of each metric that all of them have, in [0, 1]."""
    deviation: dict[str, float]
    """Sample standard deviation over splits (ddof 1); {} for one split."""

    def rows(self) -> list[list[str]]:
        """Table rows, one for each split and one over all: name, top-1, mean class, top-5, n of N, model."""
        names = ("top1", "mean_class_accuracy", "top5")
        found = [(one.split, one.metrics(), one.report.coverage, one.model) for one in self.splits]
        rows = [
            [split, *(f"{metrics[name]:.2%}" if name in metrics else "" for name in names), coverage, model]
            for split, metrics, coverage, model in found
        ]
        over = [
            f"{self.mean[name]:.2%}" + (f" ± {100 * self.deviation[name]:.2f}" if self.deviation else "")
            if name in self.mean
            else ""
            for name in names
        ]
        return [*rows, ["mean", *over, "", ""]]


def evaluate_splits(config: EvaluateConfig, *, progress: Progress | None = None) -> SplitsReport:
    """Evaluate each split of `config.splits` into a folder of its name below `config.out`, and write splits.json.

    Finished splits are kept, so the same command resumes.

    Raises:
        ConfigError: the same network is given for several splits, or `config.out` has files that this verb did not
            write.
        TwoStreamError: as `evaluate`.
    """
    # Imported late, as it imports Arrow.
    from twostream_ray.runs.score.score_table import read_record

    out = storage.absolute(config.out)
    refuse_foreign_files(out, (SPLITS,), schema=_SCHEMA, verb="evaluate")
    found: list[Evaluation] = []
    split_of: dict[str, str] = {}
    with ray_session():
        for one in config.for_each_split():

            def show(done: int, total: int, split: str = one.split) -> None:
                if progress:
                    progress(split, done, total)

            evaluation = evaluate(one, progress=show)
            weights = read_record(one.out)[1].model_sha256
            if weights in split_of and not config.one_model:
                raise ConfigError(
                    "each split wants the model trained on its training split, but "
                    f"{evaluation.model} has the same weights as the model of split {split_of[weights]}: name one "
                    "model per split, or --one_model true for one that was trained on none of their clips"
                )
            split_of[weights] = one.split
            found.append(evaluation)
    report = SplitsReport(splits=tuple(found), **_over([one.metrics() for one in found]))
    storage.write_json(storage.join(out, SPLITS), _as_json(report))
    return report


def _over(metrics: Sequence[dict[str, float]]) -> dict[str, dict[str, float]]:
    names = [name for name in metrics[0] if all(name in one for one in metrics)]
    values = {name: np.array([one[name] for one in metrics]) for name in names}
    deviation = {name: float(of.std(ddof=1)) for name, of in values.items()} if len(metrics) > 1 else {}
    return {"mean": {name: float(of.mean()) for name, of in values.items()}, "deviation": deviation}


def _as_json(report: SplitsReport) -> dict[str, Any]:
    return {
        "splits": [
            {
                "split": one.split,
                "model": one.model,
                "metrics": one.metrics(),
                "intervals": [over.to_dict() for over in one.report.intervals],
                "n_evaluated": one.report.n_evaluated,
                "n_expected": one.report.n_expected,
                "manifest_hash": one.manifest_hash,
                "score_table": one.table,
            }
            for one in report.splits
        ],
        "mean": report.mean,
        "standard_deviation": report.deviation,
        "protocol": asdict(report.splits[0].protocol),
    }
