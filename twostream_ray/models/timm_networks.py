"""Image networks of timm (Wightman 2019) cut into chains of named layers, as the papers' towers are.

timm's networks are cut between the modules that its `forward_features` runs one after the other: a layer carries
timm's name of its module, `_` for `.` (`stages_2`, `layer3`, `blocks_5`). What follows them up to the classifier is
one layer, pool5. A network that computes something between its modules cannot be cut there and is refused.
"""

import copy
from dataclasses import dataclass
from functools import cache
from itertools import pairwise
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from twostream_ray.errors import ConfigError, WeightsError
from twostream_ray.models.layers import CLASSIFIER, LAST_POOL, RGB_CHANNELS, TIMM
from twostream_ray.models.token_maps import Maps, TokenMaps, grid

_PUBLISHED_CLASSES = 1000
"""What a network is made for before it gets a classifier of ours; some have none of their own."""
_PROBED_PX = 224
"""Frames that a chain is found with, where the network wants none of its own."""


class TimmLayer(NamedTuple):
    """A row of a network's table."""

    name: str
    """timm's name of the module, `_` for `.`."""
    channels: int
    """Maps that come out."""
    reduction: int
    """Height of the frame by height of the maps."""


@dataclass(frozen=True, kw_only=True)
class TimmChain:
    """A network of timm in parts: layers with maps between them, then the rest of it."""

    layers: dict[str, nn.Module]
    """Each takes what the one before returns; the first one frames (N, C, H, W)."""
    pool: nn.Module
    """What comes between the last layer and the classifier: maps -> (N, D, 1, 1)."""
    features: int
    """D of what the classifier takes."""
    published: dict[str, str]
    """timm's name of each parameter and buffer, by its name in `layers`, `pool` (as pool5) and the classifier (fc8)."""
    undecayed: frozenset[str]
    """The parameters without weight decay, by timm, under their names here."""
    mean: tuple[float, ...]
    """Of the RGB levels that the network was made for, in [0, 1]."""
    deviation: tuple[float, ...]
    """Of the same levels."""


def known_name(backbone: str) -> str:
    """Timm's name in `timm:NAME`, without a tag of weights where there is none.

    Raises:
        ConfigError: timm is not installed, or knows no such network.
    """
    timm = _timm()
    name = backbone.removeprefix(TIMM)
    if not timm.is_model(name.split(".")[0]):
        near = ", ".join(timm.list_models(f"*{name.split('.')[0].split('_')[0]}*")[:8])
        raise ConfigError(
            f"backbone {backbone}: timm {timm.__version__} knows no network {name!r}"
            + (f"; near it are {near}" if near else "")
            + "; timm.list_models() names all"
        )
    return name


@cache
def layer_table(backbone: str) -> tuple[TimmLayer, ...]:
    """Names, maps and scales of a network's layers, pool5 without; found on torch's meta device.

    Raises:
        ConfigError: timm does not know the network, or it cannot be cut.
    """
    with torch.device("meta"), torch.no_grad():
        network = create_network(backbone, in_channels=RGB_CHANNELS, drop_path=0.0).eval()
        own_px = _input_px(network)
        chain = cut(network, backbone=backbone)
        try:
            # A size that every scale divides, so that scales come out whole; some take their own alone.
            return _rows(chain, px=_PROBED_PX)
        except Exception:  # noqa: BLE001  (the next attempt says what is wrong)
            try:
                return _rows(chain, px=own_px)
            except Exception as error:  # whatever another kind of network makes of being run in parts
                raise _uncuttable(backbone, f"run in parts it ends with {error!r}"[:200]) from error


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


def create_network(backbone: str, *, in_channels: int, drop_path: float, pretrained: bool = False) -> Any:
    """Timm's module, initialised by timm from torch's global random numbers, or from its published weights.

    Raises:
        ConfigError: timm is not installed, does not know the network, or it has no stochastic depth.
        WeightsError: its published weights can be had neither from the cache nor from the network.
    """
    name, timm = known_name(backbone), _timm()
    settings: dict[str, Any] = {"in_chans": in_channels, "pretrained": pretrained, "num_classes": _PUBLISHED_CLASSES}
    if drop_path:
        settings["drop_path_rate"] = drop_path
    try:
        try:
            # Vision transformers take frames of any size with it: their position embedding is resampled.
            return timm.create_model(name, dynamic_img_size=True, **settings)
        except TypeError:
            return timm.create_model(name, **settings)
    except TypeError as error:
        if not drop_path:
            raise
        raise ConfigError(f"backbone {backbone} takes no drop_path ({error}): leave drop_path at 0") from error
    except Exception as error:  # the hub's client raises errors of four libraries
        if not pretrained:
            raise
        raise WeightsError(
            f"weights=timm of {backbone} could be had neither from the cache nor from the network "
            f"({' '.join(str(error).split())[:200]}): fetch them where there is a network by "
            f"`python -c \"import timm; timm.create_model('{name}', pretrained=True)\"` and bring the cache's folder "
            "(HF_HOME), or save that network's state_dict() to a file and give its path or URI as weights"
        ) from error


def cut(network: Any, *, backbone: str) -> TimmChain:
    """Take a network of timm apart; it is of no use afterwards.

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
    network.reset_classifier(0)
    pool = _Pool(network, is_transformer=isinstance(network, VisionTransformer), inner=_is_channels_inner(network))
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


class _InnerLayer(nn.Module):
    """A module that has its channels last, between maps: (N, D, H, W) -> (N, D', H', W')."""

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
        """Pool as timm does."""
        if self.is_transformer:
            values = _to_tokens(state)
        else:
            values = grid(state).permute(0, 2, 3, 1) if self.inner else grid(state)
        return self.network.forward_head(values, pre_logits=True)[:, :, None, None]


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
        return lambda _module, inputs, output: calls.append((name, inputs, output))

    for name, module in _candidates(network).items():
        module.register_forward_hook(record(name))
    px = _input_px(network)
    try:
        with torch.no_grad():
            result = network.forward_features(torch.empty(1, RGB_CHANNELS, px, px, device="meta"))
    except Exception as error:
        raise _uncuttable(backbone, f"its forward_features ended with {error!r}"[:200]) from error
    if not calls or len({name for name, _, _ in calls}) != len(calls):
        raise _uncuttable(backbone, "its modules do not run once each")
    for (before, _, output), (name, inputs, _) in pairwise(calls):
        if len(inputs) != 1 or inputs[0] is not output:
            raise _uncuttable(backbone, f"{name} takes something else than what {before} returns")
    if calls[-1][2] is not result or not isinstance(result, Tensor) or result.dim() != 4:
        raise _uncuttable(backbone, f"it returns no maps behind {calls[-1][0]}")
    return tuple(name for name, _, _ in calls)


def _module_chain(network: Any, names: tuple[str, ...]) -> dict[str, nn.Module]:
    """These modules, taken out of the network."""
    inner = _is_channels_inner(network)
    layers: dict[str, nn.Module] = {}
    for position, name in enumerate(names):
        module = network.get_submodule(name)
        layers[name.replace(".", "_")] = _InnerLayer(module, takes_frames=position == 0) if inner else module
        holder, _, leaf = name.rpartition(".")
        network.get_submodule(holder)._modules[leaf] = nn.Identity()
    return layers


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


def _is_channels_inner(network: Any) -> bool:
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


def _timm() -> Any:
    try:
        import timm
    except ImportError as error:
        raise ConfigError(
            "a backbone timm:... wants the package timm, which is not installed: pip install 'twostream_ray[timm]'"
        ) from error
    return timm
