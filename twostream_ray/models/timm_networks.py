"""Adapter for timm (Wightman 2019): splits image networks into chains of named layers, like the papers' towers.

Networks are split between the modules that `forward_features` runs sequentially: a layer has
timm's name of its module, `_` for `.` (`stages_2`, `layer3`, `blocks_5`). The rest before the classifier is
one layer, pool5. A network that computes something between its modules cannot be split and is refused.
"""

import copy
from dataclasses import dataclass
from functools import cache
from itertools import pairwise
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from twostream_ray.errors import ConfigError, TwoStreamError
from twostream_ray.models.layers import CLASSIFIER, LAST_POOL, RGB_CHANNELS
from twostream_ray.models.timm_registry import create_network
from twostream_ray.models.token_maps import Maps, TokenMaps, grid

_PROBED_PX = 224
"""Frames that a chain is found with, where the network wants none of its own."""


class TimmLayer(NamedTuple):
    """Name, width and scale of a layer."""

    name: str
    """timm's name of the module, `_` for `.`."""
    channels: int
    """Number of output maps."""
    reduction: int
    """Total stride: the frame's height over the maps' height."""


@dataclass(frozen=True, kw_only=True)
class TimmChain:
    """A timm network split into layers, and the pooling before its classifier."""

    layers: dict[str, nn.Module]
    """Each takes what the one before returns; the first one frames (N, C, H, W)."""
    pool: nn.Module
    """The part between the last layer and the classifier: maps -> (N, D, 1, 1)."""
    features: int
    """D of the classifier's input."""
    published: dict[str, str]
    """timm's name of each parameter and buffer, by its name in `layers`, `pool` (as pool5) and the classifier (fc8)."""
    undecayed: frozenset[str]
    """The parameters without weight decay, by timm, under their names here."""
    mean: tuple[float, ...]
    """Mean of R, G, B in [0, 1] with which the network's inputs are normalised."""
    deviation: tuple[float, ...]
    """Standard deviation of R, G, B in [0, 1]."""


@cache
def layer_table(backbone: str) -> tuple[TimmLayer, ...]:
    """Names, maps and scales of a network's layers, pool5 without; found on torch's meta device.

    Raises:
        ConfigError: timm does not know the network, or it cannot be cut.
    """
    with torch.device("meta"), torch.no_grad():
        try:
            network = create_network(backbone, in_channels=RGB_CHANNELS, drop_path=0.0).eval()
            own_px = _input_px(network)
            chain = cut(network, backbone=backbone)
            try:
                # A size that every scale divides, so that scales come out whole; some take their own alone.
                return _rows(chain, px=_PROBED_PX)
            except Exception:  # noqa: BLE001  (the next attempt says what is wrong)
                return _rows(chain, px=own_px)
        except TwoStreamError:
            raise
        except Exception as error:  # whatever another kind of network makes of being taken apart
            why = f"taken apart it ends with {type(error).__name__}: {' '.join(str(error).split())}"
            raise _uncuttable(backbone, why[:200]) from error


def _rows(chain: TimmChain, *, px: int) -> tuple[TimmLayer, ...]:
    state: Maps = torch.empty(1, RGB_CHANNELS, px, px)
    rows = []
    for name, layer in chain.layers.items():
        state = layer(state)
        maps = grid(state)
        if maps.dim() != 4 or maps.shape[-2] != maps.shape[-1]:
            raise ValueError(f"{name} returns {tuple(maps.shape)} for a square frame, no maps (N, D, H, W)")
        rows.append(TimmLayer(name, maps.shape[1], round(px / maps.shape[-2])))
    chain.pool(state)
    return tuple(rows)


def cut(network: Any, *, backbone: str) -> TimmChain:
    """Split a timm network into layers; the network itself is unusable afterwards.

    Raises:
        ConfigError: it computes something between its modules, or returns no maps.
    """
    from timm.models.vision_transformer import VisionTransformer

    own = {id(values): name for name, values in network.state_dict(keep_vars=True).items()}
    undecayed = {name for name, _ in network.named_parameters() if name in _no_weight_decay(network)}
    classifier = network.get_classifier() if hasattr(network, "get_classifier") else None
    if not isinstance(classifier, nn.Linear):
        raise _uncuttable(backbone, f"its classifier is no linear layer but {type(classifier).__name__}")
    features, config = classifier.in_features, network.pretrained_cfg
    if isinstance(network, VisionTransformer):
        layers = _transformer_layers(network)
    else:
        layers = _module_chain(network, _names_in_order(backbone))
    # timm's own way to take a classifier off, reset_classifier(0), takes some networks' last norm with it.
    _replace(network, classifier, nn.Identity())
    pool = _Pool(network, is_transformer=isinstance(network, VisionTransformer), inner=_is_channels_last(network))
    parts = nn.ModuleDict({**layers, LAST_POOL: pool, CLASSIFIER: classifier}).state_dict(keep_vars=True)
    published = {name: own[id(values)] for name, values in parts.items()}
    return TimmChain(
        layers=layers,
        pool=pool,
        features=features,
        published=published,
        undecayed=frozenset(name for name, its in published.items() if its in undecayed),
        mean=tuple(config["mean"]),
        deviation=tuple(config["std"]),
    )


class _TokenStem(nn.Module):
    """Patches, class token, registers and positions of a vision transformer: frames -> its first tokens."""

    def __init__(self, network: Any) -> None:
        super().__init__()
        self.network = network

    def forward(self, frames: Tensor) -> Maps:
        """Embed; the grid's height and width are those of the frame in patches."""
        network = self.network
        patches = network.patch_embed(frames)
        height, width = (
            patches.shape[1:3]
            if patches.dim() == 4
            else network.patch_embed.dynamic_feat_size((frames.shape[-2], frames.shape[-1]))
        )
        tokens = network.norm_pre(network.patch_drop(network._pos_embed(patches)))
        return _to_maps(tokens, prefix=network.num_prefix_tokens, height=height, width=width)


class _TokenLayer(nn.Module):
    """A block of a vision transformer between maps: a grid and the prefix tokens become tokens and maps again."""

    def __init__(self, block: nn.Module) -> None:
        super().__init__()
        self.block = block

    def forward(self, state: Maps) -> Maps:
        """Run the block over all tokens."""
        maps, tokens = grid(state), _to_tokens(state)
        prefix = tokens.shape[1] - maps.shape[-2] * maps.shape[-1]
        return _to_maps(self.block(tokens), prefix=prefix, height=maps.shape[-2], width=maps.shape[-1])


class _ChannelsLastLayer(nn.Module):
    """Wraps a module with channels-last tensors (NHWC): (N, D, H, W) -> (N, D', H', W')."""

    def __init__(self, module: nn.Module, *, takes_frames: bool) -> None:
        super().__init__()
        self.module, self.takes_frames = module, takes_frames

    def forward(self, maps: Tensor) -> Tensor:
        """Permute, run, permute back."""
        result: Tensor = self.module(maps if self.takes_frames else maps.permute(0, 2, 3, 1))
        return result.permute(0, 3, 1, 2)


class _Pool(nn.Module):
    """What a network does between its last maps and its classifier: maps -> features (N, D, 1, 1)."""

    def __init__(self, network: Any, *, is_transformer: bool, inner: bool) -> None:
        super().__init__()
        self.network, self.is_transformer, self.inner = network, is_transformer, inner

    def forward(self, state: Maps) -> Tensor:
        """What timm does before the classifier, which is an identity here."""
        if self.is_transformer:
            values = _to_tokens(state)
        else:
            values = grid(state).permute(0, 2, 3, 1) if self.inner else grid(state)
        return self.network.forward_head(values)[:, :, None, None]


def _to_tokens(state: Maps) -> Tensor:
    tokens = grid(state).flatten(2).transpose(1, 2)
    return torch.cat([state.prefix, tokens], dim=1) if isinstance(state, TokenMaps) else tokens


def _to_maps(tokens: Tensor, *, prefix: int, height: int, width: int) -> Maps:
    maps = tokens[:, prefix:].transpose(1, 2).unflatten(2, (height, width))
    return TokenMaps(maps, tokens[:, :prefix]) if prefix else maps


def _transformer_layers(network: Any) -> dict[str, nn.Module]:
    """Stem, blocks and the last norm of a vision transformer, taken out of it."""
    blocks, norm = network.blocks, network.norm
    network.blocks, network.norm = nn.Sequential(), nn.Identity()
    stem = copy.copy(network)
    stem._modules, stem._parameters = dict(network._modules), dict(network._parameters)
    for name in ("patch_embed", "pos_drop", "patch_drop", "norm_pre"):
        network._modules[name] = nn.Identity()
    for name in ("cls_token", "reg_token", "pos_embed"):
        if name in network._parameters:
            network._parameters[name] = None
    for name in ("attn_pool", "fc_norm", "head_drop", "head"):
        if name in stem._modules:
            stem._modules[name] = nn.Identity()
    layers: dict[str, nn.Module] = {"stem": _TokenStem(stem)}
    layers |= {f"blocks_{index}": _TokenLayer(block) for index, block in enumerate(blocks)}
    return {**layers, "norm": _TokenLayer(norm)}


@cache
def _names_in_order(backbone: str) -> tuple[str, ...]:
    with torch.device("meta"):
        network = create_network(backbone, in_channels=RGB_CHANNELS, drop_path=0.0).eval()
        return modules_in_order(network, backbone=backbone)


def modules_in_order(network: Any, *, backbone: str) -> tuple[str, ...]:
    """The modules that `forward_features` runs one after the other, by timm's names; `network` is on the meta device.

    Each takes the very tensor that the one before returned: nothing else is computed between them.

    Raises:
        ConfigError: something is, or no maps are returned.
    """
    calls: list[tuple[str, Any, Any]] = []

    def record(name: str) -> Any:
        def hook(_module: nn.Module, inputs: Any, options: dict[str, Any], output: Any) -> None:
            calls.append((name, (*inputs, *(one for one in options.values() if one is not None)), output))

        return hook

    for name, module in _candidates(network).items():
        module.register_forward_hook(record(name), with_kwargs=True)
    px = _input_px(network)
    with torch.no_grad():
        frames = torch.empty(1, RGB_CHANNELS, px, px, device="meta")
        result = network.forward_features(frames)
    if not calls or len({name for name, _, _ in calls}) != len(calls):
        raise _uncuttable(backbone, "its modules do not run once each")
    for (before, _, output), (name, inputs, _) in pairwise([("the frames", (), frames), *calls]):
        if len(inputs) != 1 or inputs[0] is not output:
            came = "the frames" if output is frames else f"what {before} returns"
            raise _uncuttable(backbone, f"{name} takes something else than {came}")
    if calls[-1][2] is not result or not isinstance(result, Tensor) or result.dim() != 4:
        raise _uncuttable(backbone, f"it returns no maps behind {calls[-1][0]}")
    return tuple(name for name, _, _ in calls)


def _module_chain(network: Any, names: tuple[str, ...]) -> dict[str, nn.Module]:
    """These modules, taken out of the network."""
    inner = _is_channels_last(network)
    layers: dict[str, nn.Module] = {}
    for position, name in enumerate(names):
        module = network.get_submodule(name)
        layers[name.replace(".", "_")] = _ChannelsLastLayer(module, takes_frames=position == 0) if inner else module
        _replace(network, module, nn.Identity())
    return layers


def _replace(network: nn.Module, module: nn.Module, other: nn.Module) -> None:
    name = next(name for name, one in network.named_modules() if one is module)
    holder, _, leaf = name.rpartition(".")
    network.get_submodule(holder)._modules[leaf] = other


def _candidates(network: Any) -> dict[str, nn.Module]:
    """The modules to cut between: children, and children of the containers that hold timm's feature modules."""
    stages = {info["module"].rpartition(".")[0] for info in _feature_info(network)}
    found: dict[str, nn.Module] = {}
    for name, child in network.named_children():
        if name in stages and isinstance(child, nn.Sequential | nn.ModuleList):
            found |= {f"{name}.{index}": module for index, module in child.named_children()}
        else:
            found[name] = child
    return found


def _feature_info(network: Any) -> list[dict[str, Any]]:
    info = getattr(network, "feature_info", [])
    return list(getattr(info, "info", info))


def _is_channels_last(network: Any) -> bool:
    return getattr(network, "output_fmt", "NCHW") == "NHWC"


def _input_px(network: Any) -> int:
    return int(network.pretrained_cfg.get("input_size", (0, _PROBED_PX))[1])


def _no_weight_decay(network: Any) -> set[str]:
    return set(network.no_weight_decay()) if hasattr(network, "no_weight_decay") else set()


def _uncuttable(backbone: str, why: str) -> ConfigError:
    return ConfigError(
        f"backbone {backbone} cannot be cut into layers: {why}; ConvNeXt, ResNet, RegNet, EfficientNet, MobileNet, "
        "Swin and plain vision transformers can, among others"
    )
