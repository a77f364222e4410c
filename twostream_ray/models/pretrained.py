"""Loading of pretrained state dicts (safetensors or .pth) into towers, by torchvision's or this package's names."""

import io
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, get_args

import safetensors
import safetensors.torch
import torch
from torch import Tensor, nn

from twostream_ray.errors import WeightsError
from twostream_ray.models.layers import CLASSIFIER, LAST_POOL, RGB_CHANNELS, TIMM
from twostream_ray.models.settings import VideoNetwork
from twostream_ray.models.towers import ReadBytes, Tower

WRAPPERS = ("state_dict", "model_state_dict", "model")
"""Names under which training scripts keep a state dict beside epochs and optimisers."""

_PREFIXES = ("module.", "_orig_mod.")
"""Prefixes that DataParallel and torch.compile add to every name."""
_SHOWN = 3


def load_weights(tower: Tower, *, weights: str, backbone: str, read_bytes: ReadBytes | None) -> None:
    """Copy pretrained weights into a tower.

    The first layer of a temporal tower takes an RGB net's filters averaged over colour (Feichtenhofer et al. 2016,
    official code); a layer that a fusion stacks maps onto takes half of its filters for either tower; a classifier of
    other classes stays random. Names are this package's (with or without the stream's) or torchvision's.

    Raises:
        WeightsError: no weights can be read, one is missing, has another shape or has values that are not finite.
    """
    read = read_state(weights, backbone=backbone, read_bytes=read_bytes)
    first = tower.names[0]

    def adapted(name: str, values: Tensor, target: Tensor) -> Tensor:
        return _adapted(values, target, first=name.split(".")[0] == first, stacks=not tower.published)

    source = _renamed(read, tower)
    copy_state(tower, source, read=read, weights=weights, backbone=backbone, head=CLASSIFIER, adapted=adapted)


def copy_state(
    network: nn.Module,
    source: Mapping[str, Tensor],
    *,
    read: Mapping[str, Tensor],
    weights: str,
    backbone: str,
    head: str,
    adapted: Callable[[str, Tensor, Tensor], Tensor] = lambda _, values, __: values,
) -> None:
    """Copy tensors into a network's state, all or none; a classifier of other classes stays random.

    Args:
        network: where to.
        source: by the network's names.
        read: by those of the file, for errors.
        weights: what they are called in errors.
        backbone: what the network is called there.
        head: the part that is the classifier.
        adapted: makes (name, values, target) into values that may fit.

    Raises:
        WeightsError: one is missing, has another shape or has values that are not finite.
    """
    fitting: dict[str, Tensor] = {}
    faults: list[str] = []
    state = network.state_dict()
    for name, target in state.items():
        values = source.get(name)
        if name.endswith("num_batches_tracked"):
            continue
        if name.split(".")[0] == head and (values is None or values.shape != target.shape):
            continue
        if values is not None:
            values = adapted(name, values, target)
        is_other = values is not None and values.is_floating_point() != target.is_floating_point()
        if values is None or values.shape != target.shape or is_other:
            got = "nothing" if values is None else str(tuple(values.shape))
            got += f" of {str(values.dtype).removeprefix('torch.')}" if values is not None and is_other else ""
            faults.append(f"{name} of shape {tuple(target.shape)}, got {got}")
        elif not torch.isfinite(values).all():
            raise WeightsError(f"{weights}: {name} has NaN or infinite values: download the file again")
        else:
            fitting[name] = values
    if faults:
        raise WeightsError(_misfit(faults, read, weights=weights, backbone=backbone))
    for name, values in fitting.items():
        state[name].copy_(values)


def published_weights(backbone: str) -> tuple[str, str]:
    """Where torchvision publishes a network's weights: URL, and the first digits of the file's sha256."""
    url = str(_published(backbone).url)
    match = re.search(r"-([0-9a-f]{8,})\.pth$", url)
    if match is None:
        raise WeightsError(f"{url} does not name its sha256, as torchvision's files do: use another torchvision")
    return url, match[1]


def _published(backbone: str) -> Any:
    """The entry in torchvision of the weights `imagenet` or, for a network over video, `kinetics400`."""
    import torchvision  # only here: a registered model of towers runs without it

    known = torchvision.models.get_model_weights(backbone)
    return known.KINETICS400_V1 if backbone in get_args(VideoNetwork) else known.IMAGENET1K_V1


def widen_first_filters(layer: nn.Module, *, in_channels: int) -> None:
    """Make the RGB filters in a network's first layer filters of stacked flow: their mean over colour, for each field.

    The convolution is found by its shape (Feichtenhofer et al. 2016, official code, whatever network it is in).

    Raises:
        WeightsError: no convolution takes three channels.
    """
    for module in layer.modules():
        if isinstance(module, nn.Conv2d) and module.in_channels == RGB_CHANNELS and module.groups == 1:
            mean = module.weight.data.mean(dim=1, keepdim=True)
            module.weight = nn.Parameter(mean.repeat(1, in_channels, 1, 1))
            module.in_channels = in_channels
            return
    raise WeightsError("the network's first layer has no convolution over three channels, so no filters for flow")


def _adapted(values: Tensor, target: Tensor, *, first: bool, stacks: bool) -> Tensor:
    """Adapt filters to a layer's input maps: flow instead of RGB, or a second tower's maps stacked on."""
    if values.dim() < 2 or target.dim() < 2:
        return values
    if first:
        if values.dim() == 4 and values.shape[1] == RGB_CHANNELS != target.shape[1]:
            return values.mean(dim=1, keepdim=True).expand(-1, target.shape[1], -1, -1)
    elif stacks and target.shape[1] == 2 * values.shape[1]:
        return torch.cat([values, values], dim=1) / 2
    return values


def _misfit(faults: Sequence[str], read: Mapping[str, Tensor], *, weights: str, backbone: str) -> str:
    """What a network wants that a file does not have, names and shapes of both, in one line."""
    more = f" and {len(faults) - _SHOWN} more" if len(faults) > _SHOWN else ""
    held = ", ".join(f"{name[:80]} {tuple(values.shape)}" for name, values in sorted(read.items())[:_SHOWN])
    publisher = "timm" if backbone.startswith(TIMM) else "torchvision"
    return (
        f"weights={weights} do not fit {backbone}, which wants {'; '.join(faults[:_SHOWN])}{more}; the file has "
        f"{len(read)} tensors ({held}, ...): name weights of the same backbone and width, in {publisher}'s names or "
        "in this package's"
    )


def read_state(weights: str, *, backbone: str, read_bytes: ReadBytes | None) -> dict[str, Tensor]:
    """A state dict by the names that its file has, whatever the precision; nothing in the file is run.

    Args:
        weights: imagenet or kinetics400 (torchvision's), or the path or URI of a .safetensors or .pth file.
        backbone: whose weights.
        read_bytes: reads the file.

    Raises:
        WeightsError: no weights can be read.
    """
    if weights in ("imagenet", "kinetics400"):
        known = _published(backbone)
        try:
            return dict(known.get_state_dict(progress=False, check_hash=True, weights_only=True))
        except (OSError, RuntimeError) as error:
            raise WeightsError(
                f"weights={weights} wants {known.url}, which could not be downloaded ({error}): fetch it once by "
                f"`twostream weights fetch {backbone} --to DIRECTORY` and give its path or URI as weights, or put "
                f"the file into {torch.hub.get_dir()}/checkpoints"
            ) from error
    if read_bytes is None:
        raise WeightsError(f"weights={weights} wants a reader of files, got none: hand read_bytes to build_network")
    content = read_bytes(weights)
    # A safetensors file begins with the length of its header, eight bytes, and the header is JSON.
    state = _unpickled(content, weights=weights) if _is_torch(content) else _from_safetensors(content, weights=weights)
    return _plain_names(state)


def _is_torch(content: bytes) -> bool:
    """Whether torch.save wrote a file: a zip archive, or, before PyTorch 1.6, a pickle of protocol 2."""
    return content[8:9] != b"{" and content.startswith((b"PK\x03\x04", b"\x80\x02"))


def _from_safetensors(content: bytes, *, weights: str) -> dict[str, Tensor]:
    try:
        return safetensors.torch.load(content)
    except (OSError, safetensors.SafetensorError) as error:
        raise WeightsError(
            f"weights={weights} can be read neither as safetensors ({error}) nor as a state dict of torch.save: "
            "name a .safetensors or .pth file"
        ) from error


def _unpickled(content: bytes, *, weights: str) -> dict[str, Tensor]:
    """The tensors of a state dict that torch.save wrote; nothing in the file is run."""
    try:
        found: Any = torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
    except Exception as error:  # whatever a damaged or hostile file makes of the reader
        raise WeightsError(
            f"weights={weights} cannot be read as tensors alone ({_reason(error)}): such a file may run "
            "code when it is loaded; where you trust it, load it and save model.state_dict() by torch.save"
        ) from error
    for _ in WRAPPERS:  # a file may hold a dictionary that holds itself
        inner = found if isinstance(found, Mapping) else {}
        found = next((inner[name] for name in WRAPPERS if isinstance(inner.get(name), Mapping)), found)
    state = dict(_tensors(found))
    if not state:
        keys = ", ".join(str(name)[:40] for name in list(found)[:6]) if isinstance(found, Mapping) else type(found)
        raise WeightsError(
            f"weights={weights} wants a state dict, names and tensors, alone or under {', '.join(WRAPPERS)}; the file "
            f"holds {keys or 'nothing'}: save model.state_dict()"
        )
    return state


def _reason(error: Exception) -> str:
    """What torch's reader stumbled over, without its advice to read such a file nevertheless."""
    whole = " ".join(str(error).split())
    found = re.search(r"(?:Unsupported global: |unsupported )GLOBAL (\S+)", whole)
    return f"it wants {found[1]} to be called" if found else whole[:200].partition(". ")[0]


def _tensors(found: Any) -> Iterator[tuple[str, Tensor]]:
    """Names and dense tensors of real numbers among a mapping's values."""
    for name, values in found.items() if isinstance(found, Mapping) else ():
        is_dense = isinstance(values, Tensor) and values.layout == torch.strided and values.is_floating_point()
        if is_dense and isinstance(name, str):
            yield name, values.detach()


def _plain_names(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The state without the prefixes of wrappers such as DataParallel."""
    prefix = next((one for one in _PREFIXES if state and all(name.startswith(one) for name in state)), None)
    if prefix is None:
        return dict(state)
    return _plain_names({name.removeprefix(prefix): values for name, values in state.items()})


def _renamed(state: Mapping[str, Tensor], tower: Tower) -> dict[str, Tensor]:
    """The state under the tower's names, whether torchvision, a tower or a whole network wrote it."""
    first_filters = next(weights for weights in tower.parameters() if weights.dim() == 4)
    streams = ["spatial", "temporal"] if first_filters.shape[1] == RGB_CHANNELS else ["temporal", "spatial"]
    for stream in streams:
        own = {
            name.removeprefix(f"{stream}."): values for name, values in state.items() if name.startswith(f"{stream}.")
        }
        if own:
            return own
    if tower.published and not state.keys() & tower.published.keys() - set(tower.published.values()):
        return {own: state[its] for own, its in tower.published.items() if its in state}
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
