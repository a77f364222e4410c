"""Pretrained weights into towers: torchvision's, or safetensors with this package's or torchvision's names."""

import re
from collections.abc import Mapping, Sequence

import safetensors
import safetensors.torch
import torch
from torch import Tensor

from twostream_ray.errors import WeightsError
from twostream_ray.models.layers import CLASSIFIER, LAST_POOL, RGB_CHANNELS, Backbone
from twostream_ray.models.towers import ReadBytes, Tower


def load_weights(tower: Tower, *, weights: str, backbone: Backbone, read_bytes: ReadBytes | None) -> None:
    """Copy pretrained weights into a tower.

    The first layer of a temporal tower takes an RGB net's filters averaged over colour (Feichtenhofer et al. 2016,
    official code); a layer that a fusion stacks maps onto takes half of its filters for either tower; a classifier of
    other classes stays random. Names are this package's (with or without the stream's) or torchvision's.

    Raises:
        WeightsError: no weights can be read, one is missing, or one has another shape.
    """
    source = _renamed(_read_state(weights, backbone=backbone, read_bytes=read_bytes), tower)
    for name, target in tower.state_dict().items():
        layer = name.split(".")[0]
        if layer == CLASSIFIER and (name not in source or source[name].shape != target.shape):
            continue
        if name.endswith("num_batches_tracked"):
            continue
        if name not in source:
            raise WeightsError(
                f"{weights} has no {name}, which {backbone} wants; it has {', '.join(sorted(source)[:6])}, ...: "
                "name the weights of the same backbone, in torchvision's names or in this package's"
            )
        values = source[name]
        if layer == tower.names[0]:
            if values.dim() == 4 and values.shape[1] == RGB_CHANNELS != target.shape[1]:
                values = values.mean(dim=1, keepdim=True).expand(-1, target.shape[1], -1, -1)
        elif values.dim() > 1 and target.shape[1] == 2 * values.shape[1]:
            values = torch.cat([values, values], dim=1) / 2
        if values.shape != target.shape:
            raise WeightsError(
                f"{weights} has {name} of shape {tuple(values.shape)}, {backbone} wants {tuple(target.shape)}: "
                "name weights of the same backbone and width"
            )
        target.copy_(values)


def _read_state(weights: str, *, backbone: Backbone, read_bytes: ReadBytes | None) -> dict[str, Tensor]:
    if weights == "imagenet":
        import torchvision  # only here: a registered model runs without it

        known = torchvision.models.get_model_weights(backbone).IMAGENET1K_V1
        try:
            return known.get_state_dict(progress=False, check_hash=True, weights_only=True)
        except (OSError, RuntimeError) as error:
            raise WeightsError(
                f"weights=imagenet wants {known.url}, which could not be downloaded ({error}): put the file into "
                f"{torch.hub.get_dir()}/checkpoints, or save it as safetensors and give its path or URI as weights"
            ) from error
    if read_bytes is None:
        raise WeightsError(f"weights={weights} wants a reader of files, got none: hand read_bytes to build_network")
    try:
        return safetensors.torch.load(read_bytes(weights))
    except (OSError, safetensors.SafetensorError) as error:
        raise WeightsError(f"weights={weights} cannot be read as safetensors: {error}") from error


def _renamed(state: Mapping[str, Tensor], tower: Tower) -> dict[str, Tensor]:
    """The state under the tower's names, whether torchvision, a tower or a whole network wrote it."""
    first_filters = tower.get_parameter(f"{tower.names[0]}.weight")
    streams = ["spatial", "temporal"] if first_filters.shape[1] == RGB_CHANNELS else ["temporal", "spatial"]
    for stream in streams:
        own = {
            name.removeprefix(f"{stream}."): values for name, values in state.items() if name.startswith(f"{stream}.")
        }
        if own:
            return own
    return {_from_torchvision(name, names=tower.names): values for name, values in state.items()}


def _from_torchvision(name: str, *, names: Sequence[str]) -> str:
    """The name of torchvision's VGG-16 or ResNet-50 weight in a tower with these layers; others stay."""
    if match := re.fullmatch(r"(features|classifier)\.(\d+)\.(\w+)", name):
        # torchvision numbers the layers that this package names; its classifier starts behind pool5.
        convolutions = names.index(LAST_POOL) + 1 if LAST_POOL in names else len(names)
        index = int(match[2]) + (convolutions if match[1] == "classifier" else 0)
        return f"{names[index]}.{match[3]}" if index < len(names) else name
    if match := re.fullmatch(r"layer(\d)\.(\d)\.(conv|bn|downsample\.)(\d)\.(\w+)", name):
        kind = {"conv": "branch2", "bn": "bn2", "downsample.": "shortcut."}[match[3]]
        part = match[4] if kind == "shortcut." else "abc"[int(match[4]) - 1]
        return f"res{int(match[1]) + 1}{'abcdef'[int(match[2])]}.{kind}{part}.{match[5]}"
    return re.sub(r"^fc\.", f"{CLASSIFIER}.", name)
