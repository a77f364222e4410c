"""Train state <-> directory: weights and optimiser as safetensors, everything else as JSON; nothing is pickled.

model.safetensors and model.json are the model's package: all that serving needs. In a checkpoint of training
optimiser.safetensors and state.json lie beside them; and, where model.safetensors holds averaged weights, those that
training goes on with in training.safetensors.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from twostream_ray import storage
from twostream_ray.data.flow import FlowContract
from twostream_ray.data.sampling import SamplingConfig
from twostream_ray.data.transforms import TransformConfig
from twostream_ray.errors import CheckpointError, ConfigError
from twostream_ray.models.networks import ModelConfig, Network, build_network
from twostream_ray.settings import from_mapping
from twostream_ray.training.average import WeightAverage

FORMAT = 1
"""Version of the files; another one is refused."""

MODEL_FILES = ("model.safetensors", "model.json")
_BEHIND_AVERAGE = "training.safetensors"


@dataclass(frozen=True, kw_only=True)
class ModelPackage:
    """Everything besides weights that using a trained network takes."""

    model: ModelConfig
    """The network."""
    classes: tuple[str, ...]
    """Class names by index."""
    contract: FlowContract
    """The flow it was trained on, and must be given."""
    sampling: SamplingConfig
    """Snippets and test times."""
    transforms: TransformConfig
    """Crop size."""
    lineage: dict[str, str] = field(default_factory=dict)
    """Where it comes from: manifest hash, git commit, job id."""

    def build(self, *, pretrained: bool) -> Network:
        """The network, freshly initialised from torch's random numbers, or from the towers' pretrained weights.

        Raises:
            WeightsError: pretrained weights cannot be had, or do not fit.
        """
        return build_network(
            self.model,
            num_classes=len(self.classes),
            flow_length=self.sampling.flow_length,
            read_bytes=storage.read_bytes,
            pretrained=pretrained,
        )


def save_model(directory: Path, network: Network, package: ModelPackage) -> None:
    """Write a model's package.

    Raises:
        OSError: the directory cannot be written.
    """
    directory.mkdir(parents=True, exist_ok=True)
    tensors = _tensors(network)
    save_file(tensors, directory / MODEL_FILES[0])
    (directory / "model.json").write_text(
        json.dumps({"format": FORMAT, **asdict(package)}, indent=1, sort_keys=True) + "\n", encoding="utf-8"
    )


def _tensors(network: Network) -> dict[str, torch.Tensor]:
    return {name: tensor.detach().cpu().contiguous() for name, tensor in network.state_dict().items()}


def read_package(directory: Path) -> ModelPackage:
    """Read a model's settings without its weights.

    Raises:
        CheckpointError: model.json is missing, damaged or of another version.
    """
    path = directory / "model.json"
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
        version = values.pop("format")
    except (OSError, ValueError, KeyError, AttributeError) as error:
        raise CheckpointError(
            f"a model's package was wanted at {directory}: model.json is missing or damaged ({error})"
        ) from error
    if version != FORMAT:
        raise CheckpointError(f"{path} has format {version}, this version reads format {FORMAT}: train again")
    try:
        return from_mapping(ModelPackage, values)
    except ConfigError as error:
        raise CheckpointError(f"{path} was written by another version: {error}") from error


def load_model(directory: Path) -> tuple[Network, ModelPackage]:
    """The trained network in evaluation mode, and its settings.

    Raises:
        CheckpointError: a file is missing, damaged, of another version, or the weights are another network's.
    """
    package = read_package(directory)
    network = package.build(pretrained=False)
    load_weights(network, directory)
    network.eval()
    return network, package


def load_weights(network: Network, directory: Path, *, averaged: bool = False) -> None:
    """Put a package's weights into a network of the same settings; where they are averages, those that were averaged.

    Raises:
        CheckpointError: the weights are missing, damaged or another network's.
    """
    path = directory / (_BEHIND_AVERAGE if averaged else MODEL_FILES[0])
    try:
        network.load_state_dict(load_file(path))
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"weights were wanted at {path}, which is missing or damaged ({error})") from error
    except RuntimeError as error:
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]
        raise CheckpointError(
            f"{path} holds the weights of another network ({lines[1] if len(lines) > 1 else lines[0]}): "
            "use the settings it was trained with, or another run name"
        ) from error


def load_average(average: WeightAverage, directory: Path) -> None:
    """Go on with the averaged weights of a checkpoint.

    Raises:
        CheckpointError: they are missing or damaged.
    """
    path = directory / MODEL_FILES[0]
    try:
        average.load(load_file(path))
    except (OSError, KeyError, RuntimeError, SafetensorError) as error:
        raise CheckpointError(f"averaged weights were wanted at {path}, missing or damaged ({error})") from error


def save_state(
    directory: Path, optimiser: torch.optim.Optimizer, state: dict[str, Any], *, network: Network | None = None
) -> None:
    """Write the optimiser and the position of training beside a model's package.

    `network` is given where the package holds averaged weights: it has those that training goes on with.

    Raises:
        OSError: the directory cannot be written.
    """
    tensors = {
        f"{index}.{name}": value.detach().cpu().contiguous()
        for index, slots in optimiser.state_dict()["state"].items()
        for name, value in slots.items()
        if isinstance(value, torch.Tensor)
    }
    save_file(tensors, directory / "optimiser.safetensors")
    if network is not None:
        save_file(_tensors(network), directory / _BEHIND_AVERAGE)
    (directory / "state.json").write_text(json.dumps({"format": FORMAT, **state}) + "\n", encoding="utf-8")


def load_state(directory: Path, optimiser: torch.optim.Optimizer) -> dict[str, Any]:
    """Put the stored momentum into the optimiser and return the position of training.

    Raises:
        CheckpointError: a file is missing, damaged or of another version.
    """
    try:
        state = json.loads((directory / "state.json").read_text(encoding="utf-8"))
        version = state.pop("format")
        tensors = load_file(directory / "optimiser.safetensors")
    except (OSError, ValueError, KeyError, SafetensorError) as error:
        raise CheckpointError(
            f"the state of a run was wanted at {directory}, it is missing or damaged ({error})"
        ) from error
    if version != FORMAT:
        raise CheckpointError(f"{directory}/state.json has format {version}, this version reads format {FORMAT}")
    slots: dict[int, dict[str, torch.Tensor]] = {}
    for key, tensor in tensors.items():
        index, name = key.split(".", 1)
        slots.setdefault(int(index), {})[name] = tensor
    optimiser.load_state_dict({"state": slots, "param_groups": optimiser.state_dict()["param_groups"]})
    return dict(state)
