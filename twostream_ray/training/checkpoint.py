"""Training checkpoint: a model package plus optimiser.safetensors, state.json and, with EMA, training.safetensors.

state.json has the position of training (epoch, step), so a checkpoint is self-describing.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, get_args

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from twostream_ray.errors import CheckpointError
from twostream_ray.model_package import BEHIND_AVERAGE, FORMAT, MODEL_FILES, tensors_of
from twostream_ray.models.build import Network
from twostream_ray.storage.json_files import COUNT, check, list_of, parse_json, record
from twostream_ray.training.ema import WeightEma
from twostream_ray.training.settings import Precision

STATE_FILE, OPTIMISER_FILE = "state.json", "optimiser.safetensors"

METRICS = {
    "type": "object",
    "properties": {"epoch": COUNT},
    "required": ["epoch"],
    "additionalProperties": {"type": "number"},
}
"""The schema of an epoch's metrics."""

_NUMBER = {"type": "number"}
_RESULT = record(
    {
        "losses": {"type": "object", "additionalProperties": _NUMBER},
        "top1": _NUMBER,
        "samples": COUNT,
        "seconds": _NUMBER,
        "data_wait": _NUMBER,
    },
    {
        "step_losses": list_of(_NUMBER),
        "skipped_steps": COUNT,
        "decoded": COUNT,
        "tower_top1": {"type": "object", "additionalProperties": _NUMBER},
        "clips": COUNT,
    },
)
_PRECISION = {"precision": {"enum": list(get_args(Precision))}}
_BETWEEN_EPOCHS = record({"format": {"const": FORMAT}, "history": list_of(METRICS), "step": {"const": 0}}, _PRECISION)
_WITHIN_ONE = record(
    {
        "format": {"const": FORMAT},
        "history": list_of(METRICS),
        "step": COUNT | {"minimum": 1},
        "result": _RESULT,
    },
    _PRECISION,
)
_STEP = "step"
_KEPT: dict[type[torch.optim.Optimizer], set[str]] = {
    torch.optim.SGD: {"momentum_buffer"},
    torch.optim.AdamW: {_STEP, "exp_avg", "exp_avg_sq"},
}
"""Optimiser class -> names of its per-parameter state."""
_WAY_OUT = "delete this checkpoint and run the same command again, which resumes from another one"


def save_state(
    directory: Path, optimiser: torch.optim.Optimizer, state: dict[str, Any], *, network: Network | None = None
) -> None:
    """Write the optimiser state and the position of training into the directory of a model package.

    `network` is required if the package has averaged weights: its own weights are those that training resumes from.

    Raises:
        OSError: the directory cannot be written.
    """
    tensors = {
        f"{index}.{name}": value.detach().cpu().contiguous()
        for index, slots in optimiser.state_dict()["state"].items()
        for name, value in slots.items()
        if isinstance(value, torch.Tensor)
    }
    save_file(tensors, directory / OPTIMISER_FILE)
    if network is not None:
        save_file(tensors_of(network), directory / BEHIND_AVERAGE)
    (directory / STATE_FILE).write_text(json.dumps({"format": FORMAT, **state}) + "\n", encoding="utf-8")


def parse_state(content: bytes, *, where: str) -> dict[str, Any]:
    """Parse and validate a state.json: history (metrics per finished epoch), step, and the metrics of the current pass.

    Raises:
        CheckpointError: it is damaged or of another version.
    """
    what = "the state of a training"
    state: dict[str, Any] = parse_json(
        content, {"type": "object"}, where=where, what=what, way_out=_WAY_OUT, error=CheckpointError, metrics=True
    )
    if isinstance(version := state.get("format"), int) and version != FORMAT:
        raise CheckpointError(f"{where} has format {version}, this version reads format {FORMAT}: train again")
    schema = _WITHIN_ONE if state.get("step") else _BETWEEN_EPOCHS
    check(state, schema, where=where, what=what, way_out=_WAY_OUT, error=CheckpointError)
    return {name: value for name, value in state.items() if name != "format"}


def load_state(directory: Path, optimiser: torch.optim.Optimizer) -> dict[str, Any]:
    """Load the stored moments into the optimiser and return the position of training.

    Raises:
        CheckpointError: a file is missing, damaged, of another version, of another network or of another optimiser.
    """
    where = directory / OPTIMISER_FILE
    try:
        content = (directory / STATE_FILE).read_bytes()
        tensors = load_file(where)
    except (OSError, SafetensorError) as error:
        raise CheckpointError(
            f"the state of a run was wanted at {directory}, it is missing or damaged ({error}): {_WAY_OUT}"
        ) from error
    state = parse_state(content, where=str(directory / STATE_FILE))
    slots = _slots_by_weight(tensors, optimiser, where=where)
    optimiser.load_state_dict({"state": slots, "param_groups": optimiser.state_dict()["param_groups"]})
    return state


def _slots_by_weight(
    tensors: dict[str, torch.Tensor], optimiser: torch.optim.Optimizer, *, where: Path
) -> dict[int, dict[str, torch.Tensor]]:
    """Per-parameter optimiser state by parameter index: the moments, and AdamW's step count.

    Raises:
        CheckpointError: it belongs to another network or another optimiser.
    """
    parameters = [parameter for group in optimiser.param_groups for parameter in group["params"]]
    slots: dict[int, dict[str, torch.Tensor]] = {}
    for key, tensor in tensors.items():
        index, _, name = key.partition(".")
        if not index.isdecimal() or int(index) >= len(parameters) or not name:
            raise CheckpointError(f"{where} has {key!r}, which is not a weight of this network: {_WAY_OUT}")
        slots.setdefault(int(index), {})[name] = tensor
    kept = _KEPT[type(optimiser)]
    for number, slot in slots.items():
        if slot.keys() != kept:
            raise CheckpointError(
                f"{where} holds {', '.join(sorted(slot))} of weight {number}, {type(optimiser).__name__} keeps "
                f"{', '.join(sorted(kept))}: {_WAY_OUT}"
            )
        for name, tensor in slot.items():
            shape = () if name == _STEP else tuple(parameters[number].shape)
            if tuple(tensor.shape) != shape:
                raise CheckpointError(
                    f"{where} has {number}.{name} of shape {tuple(tensor.shape)}, this network's is {shape}: {_WAY_OUT}"
                )
            if name != _STEP:
                # Fused updates pair elements by memory position: moments need the weight's memory format.
                slot[name] = torch.empty_like(parameters[number]).copy_(tensor)
    return slots


def load_average(average: WeightEma, directory: Path) -> None:
    """Load the averaged weights of a checkpoint.

    Raises:
        CheckpointError: they are missing or damaged.
    """
    path = directory / MODEL_FILES[0]
    try:
        average.load(load_file(path))
    except (OSError, KeyError, RuntimeError, SafetensorError) as error:
        raise CheckpointError(f"averaged weights were wanted at {path}, missing or damaged ({error})") from error
