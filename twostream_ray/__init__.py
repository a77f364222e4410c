"""Fused appearance and motion networks for action recognition in video, trained on Ray and tracked in MLflow.

`import twostream_ray as ts` is cheap: these names are imported lazily on first use (PEP 562).

    ts.network(recipe, num_classes=K)       a recipe's network, a torch module
    ts.open_shards(uri)                     what `twostream ingest` wrote
    ts.loader(shards, split=..., batch=8)   its clips as normalised tensors, for a plain PyTorch loop
    ts.train(recipe, ...)                   training, evaluation and registration, as `twostream train`
    ts.Classifier.load(directory)           raw videos to classes
    ts.ExperimentConfig                     the settings of a training; ts.experiment_config reads a recipe's
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from twostream_ray.api import experiment_config, loader, network, train
    from twostream_ray.data.shards.shards import open_shards
    from twostream_ray.errors import TwoStreamError
    from twostream_ray.inference import Classifier
    from twostream_ray.runs.experiment import ExperimentConfig

__version__ = "0.1.0"

__all__ = [
    "Classifier",
    "ExperimentConfig",
    "TwoStreamError",
    "__version__",
    "experiment_config",
    "loader",
    "network",
    "open_shards",
    "train",
]

_HOMES = {
    "Classifier": "inference",
    "ExperimentConfig": "runs.experiment",
    "TwoStreamError": "errors",
    "experiment_config": "api",
    "loader": "api",
    "network": "api",
    "open_shards": "data.shards.shards",
    "train": "api",
}
"""Name -> the module that defines it."""


if not TYPE_CHECKING:  # otherwise type checkers would accept any attribute

    def __getattr__(name: str) -> Any:
        """A name of the API, from its module, which is imported then."""
        if name not in _HOMES:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        value = getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
        globals()[name] = value
        return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
