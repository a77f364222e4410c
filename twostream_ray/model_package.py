"""Model serialisation without pickle: weights as safetensors, settings, classes and flow contract as JSON.

model.safetensors and model.json suffice for inference. In a training checkpoint the training state is
stored beside them (training/checkpoint.py); and, where model.safetensors holds averaged weights, those of training in
training.safetensors.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from numpy.typing import ArrayLike
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file

from twostream_ray import storage
from twostream_ray.data.flow import FlowContract
from twostream_ray.data.sampling import SamplingConfig
from twostream_ray.data.transforms import TransformConfig
from twostream_ray.errors import CheckpointError, ConfigError, StorageError
from twostream_ray.heads import ClassScores, Head, class_scores, heads_of
from twostream_ray.models.build import Network, build_network
from twostream_ray.models.layers import TIMM, is_head
from twostream_ray.models.settings import Clip3dConfig, ModelConfig
from twostream_ray.models.timm_registry import require_timm
from twostream_ray.settings.parser import from_mapping, with_missing
from twostream_ray.storage.json_files import WORD, check, list_of, read_json, record

FORMAT = 1
"""Version of the file format; any other version is refused."""

MODEL_FILES = ("model.safetensors", "model.json")
BEHIND_AVERAGE = "training.safetensors"

_LIMIT_BYTES = 64 << 20
_MOST_NUMBERS = 4_000_000_000
"""Maximum number of input values for all samples of a video; the papers' networks need 20 to 300 million."""

_ADDED_TO_TOWERS = {"drop_path": 0.0}
_ADDED: dict[str, Any] = {
    "transforms": {"short_side_px": None},
    "model": {"clip3d": asdict(Clip3dConfig()), "spatial": _ADDED_TO_TOWERS, "temporal": _ADDED_TO_TOWERS},
}
"""Settings added since the first version, with values that reproduce its behaviour."""

_BLOCK = {"type": "object"}
_OF_ANY_FORMAT = record({"format": {"type": "integer"}}, others=True)
_SCHEMA = record(
    {
        "format": {"const": FORMAT},
        "model": _BLOCK,
        "classes": {**list_of(WORD, at_least=1, at_most=1_000_000), "uniqueItems": True},
        "contract": _BLOCK,
        "sampling": _BLOCK,
        "transforms": _BLOCK,
        "lineage": {"type": "object", "additionalProperties": {"type": "string"}},
    }
)
"""Schema of model.json; its blocks are validated by their settings classes."""


@dataclass(frozen=True, kw_only=True)
class ModelPackage:
    """Everything besides weights that is needed to use a trained network."""

    model: ModelConfig
    """The network."""
    classes: tuple[str, ...]
    """Class names by index."""
    contract: FlowContract
    """The flow contract that it was trained on and requires."""
    sampling: SamplingConfig
    """Snippets and test times."""
    transforms: TransformConfig
    """Crop size, and the size that frames are resized to before cropping."""
    lineage: dict[str, str] = field(default_factory=dict)
    """Provenance: manifest hash, git commit, job id."""

    def __post_init__(self) -> None:
        outputs = sum(self.model.head_classes) or self.model.num_classes
        if outputs not in (None, len(self.classes)):
            raise ConfigError(f"its network has {outputs} outputs, there are {len(self.classes)} classes")
        sampling, size = self.sampling, self.transforms.crop_px
        numbers = sampling.test_times * sampling.num_snippets * (3 + 2 * sampling.flow_length) * size**2
        if numbers > _MOST_NUMBERS:
            raise ConfigError(
                f"the samples of a video have {numbers:,} values, the limit is {_MOST_NUMBERS:,}: choose fewer "
                "test_times, num_snippets or flow fields, or a smaller crop_px"
            )

    @property
    def heads(self) -> tuple[Head, ...]:
        """The data sets that it was trained on, in their order."""
        return heads_of(self.classes, self.model.head_classes)

    def class_scores(self, averaged: ArrayLike) -> ClassScores:
        """Logits and probabilities from what the network has averaged over a clip's views. (N, K) -> (N, K) twice."""
        return class_scores(averaged, are=self.model.averages, heads=self.heads)

    def build(self, *, pretrained: bool) -> Network:
        """The network, freshly initialised from torch's random numbers, or from the towers' pretrained weights.

        Raises:
            WeightsError: pretrained weights are unavailable or do not fit.
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
    tensors = tensors_of(network)
    save_file(tensors, directory / MODEL_FILES[0])
    (directory / "model.json").write_text(
        json.dumps({"format": FORMAT, **asdict(package)}, indent=1, sort_keys=True) + "\n", encoding="utf-8"
    )


def tensors_of(network: Network) -> dict[str, torch.Tensor]:
    """The network's weights as they are stored."""
    return {name: tensor.detach().cpu().contiguous() for name, tensor in network.state_dict().items()}


def read_package(directory: Path) -> ModelPackage:
    """Read a model's settings without its weights.

    Raises:
        CheckpointError: model.json is missing, damaged or of another version, or its network wants timm, which is not
            installed.
    """
    path = str(directory / "model.json")
    context: dict[str, Any] = {
        "what": "a model's package",
        "way_out": "take it from its registry again, or train again",
        "error": CheckpointError,
    }
    try:
        values = read_json(path, _OF_ANY_FORMAT, limit_bytes=_LIMIT_BYTES, **context)
    except StorageError as error:
        raise CheckpointError(f"a model's package was wanted at {directory}: {error}") from error
    if values["format"] != FORMAT:
        raise CheckpointError(f"{path} has format {values['format']}, this version reads format {FORMAT}: train again")
    check(values, _SCHEMA, where=path, **context)
    settings = with_missing(values, _ADDED)
    del settings["format"]
    try:
        if _names_timm(settings["model"]):
            require_timm()
    except ConfigError as error:
        raise CheckpointError(f"{path}: {error}") from error
    try:
        return from_mapping(ModelPackage, settings, complete=True)
    except ConfigError as error:
        raise CheckpointError(f"{path} is damaged or was written by another version: {error}") from error


def _names_timm(model: Any) -> bool:
    """Whether a tower of these settings, which are not checked yet, is a network of timm."""
    towers = [model.get(stream) for stream in ("spatial", "temporal")] if isinstance(model, dict) else []
    return any(isinstance(tower, dict) and str(tower.get("backbone")).startswith(TIMM) for tower in towers)


def check_model(directory: Path) -> ModelPackage:
    """Read a model's settings and check that its weights match its network, without allocating either.

    Raises:
        CheckpointError: a file is missing, damaged, of another version, or the weights are another network's.
    """
    package = read_package(directory)
    sampling, size = package.sampling, package.transforms.crop_px
    with torch.device("meta"):
        network = package.build(pretrained=False).eval()
        rgb = torch.empty(1, sampling.num_snippets, 3, size, size)
        flow = torch.empty(1, sampling.num_snippets, 2 * sampling.flow_length, size, size)
    _check_weights(directory / MODEL_FILES[0], network)
    try:
        network(rgb if network.needs_rgb else None, flow if network.needs_flow else None)
    except (ConfigError, RuntimeError) as error:
        raise CheckpointError(
            f"{directory / 'model.json'}: crops of {size} px do not go through its network ({_brief(error)})"
        ) from error
    return package


def load_model(directory: Path) -> tuple[Network, ModelPackage]:
    """The trained network in evaluation mode, and its settings.

    Raises:
        CheckpointError: a file is missing, damaged, of another version, or the weights are another network's.
    """
    package = check_model(directory)
    network = package.build(pretrained=False)
    load_weights(network, directory)
    network.eval()
    return network, package


def load_weights(network: Network, directory: Path, *, averaged: bool = False) -> None:
    """Load a package's weights into a network of the same settings.

    Raises:
        CheckpointError: the weights are missing, damaged, another network's or no finite numbers.
    """
    path = directory / (BEHIND_AVERAGE if averaged else MODEL_FILES[0])
    _check_weights(path, network)
    try:
        network.load_state_dict(load_file(path))
    except (OSError, SafetensorError, RuntimeError) as error:
        raise _no_weights(path, error) from error
    for name, tensor in network.state_dict().items():
        if not torch.isfinite(tensor).all():
            raise CheckpointError(
                f"{path} is damaged: {name} has values that are not finite: use an earlier checkpoint or version"
            )


def initialise_from(network: Network, directory: Path, *, heads: bool) -> None:
    """Copy a package's weights into a network; without `heads`, classifiers keep their initialisation.

    Raises:
        CheckpointError: the weights are missing, damaged, another network's or no finite numbers.
    """
    path = directory / MODEL_FILES[0]
    if fault := difference_to(network, directory, heads=heads):
        raise CheckpointError(f"{path} holds the weights of another network ({fault})")
    state = network.state_dict()
    for name, values in load_file(path).items():
        if not torch.isfinite(values).all():
            raise CheckpointError(f"{path} is damaged: {name} has values that are not finite: start from another")
        if heads or not is_head(name):
            state[name].copy_(values)


def difference_to(network: Network, directory: Path, *, heads: bool) -> str | None:
    """Describe how a package's weights differ from a network's in names and shapes; None if they match.

    Raises:
        CheckpointError: they are missing or damaged.
    """

    def compared(name: str) -> bool:
        return heads or not is_head(name)

    found = _stored(directory / MODEL_FILES[0])
    return _difference(
        {name: tensor for name, tensor in network.state_dict().items() if compared(name)},
        {name: part for name, part in found.items() if compared(name)},
    )


def _check_weights(path: Path, network: Network) -> None:
    """Check a file's names, shapes and dtypes against a network's, without reading the weights."""
    difference = _difference(network.state_dict(), _stored(path))
    if difference:
        raise CheckpointError(
            f"{path} holds the weights of another network ({difference}): use the settings it was trained with, or "
            "another run name"
        )


def _stored(path: Path) -> dict[str, tuple[tuple[int, ...], str]]:
    """Shapes and kinds of numbers of a file's tensors."""
    if not path.is_file():
        raise _no_weights(path, "no regular file is there")
    try:
        with safe_open(path, framework="pt") as file:
            stored = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118 - it is no mapping
            return {name: (tuple(part.get_shape()), part.get_dtype()) for name, part in stored.items()}
    except (OSError, SafetensorError) as error:
        raise _no_weights(path, error) from error


def _difference(wanted: Mapping[str, torch.Tensor], found: Mapping[str, tuple[tuple[int, ...], str]]) -> str | None:
    missing, unknown = sorted(wanted.keys() - found.keys()), sorted(found.keys() - wanted.keys())
    if missing or unknown:
        names = [f"lacks {missing[0]}"] if missing else []
        names += [f"has {unknown[0][:100]!r} besides"] if unknown else []
        return ", ".join(names) + f"; {len(missing) + len(unknown)} names differ"
    for name, tensor in wanted.items():
        shape, kind = found[name]
        if shape != tuple(tensor.shape):
            return f"{name} has shape {list(shape)[:8]}, {list(tensor.shape)} is wanted"
        if kind.startswith(("F", "BF")) != tensor.is_floating_point():
            return f"{name} is of kind {kind}, {tensor.dtype} is wanted"
    return None


def _no_weights(path: Path, fault: object) -> CheckpointError:
    return CheckpointError(f"weights were wanted at {path}, which is missing or damaged ({_brief(fault)})")


def _brief(fault: object) -> str:
    return " ".join(str(fault).split())[:200]
