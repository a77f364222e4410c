"""Backbones of the streams: VGG-16, VGG-M-2048, ResNet-50, with the papers' layer names; as settings and as towers.

VGG-M-2048 after Simonyan and Zisserman 2014 (sec. 2, fig. 1), VGG-16 after Feichtenhofer, Pinz and Zisserman 2016
(sec. 3.4), ResNet-50 after Feichtenhofer, Pinz and Wildes 2016.
"""

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple, get_args

from torch import nn

from twostream_ray.errors import ConfigError
from twostream_ray.models.pretrained import load_weights
from twostream_ray.models.towers import (
    CLASSIFIER,
    LAST_POOL,
    RGB_CHANNELS,
    Backbone,
    Bottleneck,
    FullyConnected,
    ReadBytes,
    Tower,
    batch_norm,
)
from twostream_ray.settings.bounds import require_within

_FIRST_STAGE_MAPS: dict[Backbone, int] = {"vgg16": 64, "vgg_m_2048": 96, "resnet50": 64, "vgg_small": 32}


@dataclass(frozen=True, kw_only=True)
class TowerConfig:
    """One stream's network."""

    backbone: Backbone = "vgg16"
    """vgg16, vgg_m_2048 and resnet50 are the papers'; vgg_small is for small frames and few cores."""
    weights: str | None = None
    """Where the tower starts: None at random, "imagenet" at torchvision's weights, else a safetensors path or URI."""
    dropout: float = 0.85
    """Share of features dropped before each later fully connected layer, 0 <= dropout < 1."""
    width: int | None = None
    """Feature maps of the first layer, all others in proportion; None is the paper's width (vgg_small: 32)."""
    frozen_through: str | None = None
    """Last layer of the part that does not learn (drop7: only the classifier learns); None lets all learn."""

    def __post_init__(self) -> None:
        if self.backbone not in get_args(Backbone):
            raise ConfigError(f"backbone must be one of {', '.join(get_args(Backbone))}, got {self.backbone!r}")
        require_within(self, dropout="[0, 1)", width="[1, 4_096]")
        if self.weights == "imagenet" and self.backbone not in ("vgg16", "resnet50"):
            raise ConfigError(
                f"weights=imagenet exists for vgg16 and resnet50, not for {self.backbone}: give a safetensors file"
            )
        if self.weights == "imagenet" and self.width is not None:
            raise ConfigError(f"weights=imagenet needs the full width, got width={self.width}: leave width out")
        if self.frozen_through is not None and self.frozen_through not in layer_channels(self):
            raise ConfigError(
                f"frozen_through names no layer of {self.backbone}: {self.frozen_through!r}; its layers are "
                + ", ".join(layer_channels(self))
            )


def build_tower(
    config: TowerConfig,
    *,
    in_channels: int,
    num_classes: int,
    upto: str | None = None,
    stacked: Mapping[str, int] | None = None,
    read_bytes: ReadBytes | None = None,
) -> Tower:
    """Make a tower, initialised from torch's global random numbers or from the weights its settings name.

    Args:
        config: the tower's settings.
        in_channels: 3 for RGB, 2L for flow.
        num_classes: K, the outputs of fc8.
        upto: the last layer to make; None makes all.
        stacked: maps that a fusion stacks onto a layer's own, by layer; the next weight layer takes them too.
        read_bytes: reads the safetensors file that config.weights names.

    Raises:
        WeightsError: the weights cannot be had, or do not fit.
    """
    layers: dict[str, nn.Module] = {}
    channels: dict[str, int] = {}
    maps = in_channels
    for spec in _specs(config, in_channels=in_channels, num_classes=num_classes):
        layers[spec.name] = spec.make(maps)
        channels[spec.name] = maps if spec.channels is None else spec.channels
        maps = channels[spec.name] + (stacked or {}).get(spec.name, 0)
        if spec.name == upto:
            break
    tower = Tower(layers, channels=channels)
    for module in tower.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
            if module.bias is not None:
                nn.init.zeros_(module.bias)
    if config.weights is not None:
        load_weights(tower, weights=config.weights, backbone=config.backbone, read_bytes=read_bytes)
    if config.frozen_through is not None:
        tower.freeze(config.frozen_through if config.frozen_through in layers else tower.names[-1])
    return tower


def layer_channels(config: TowerConfig, *, num_classes: int = 1) -> dict[str, int]:
    """D of every layer of the spatial tower that `config` describes, in order; makes no layer."""
    channels: dict[str, int] = {}
    maps = RGB_CHANNELS
    for spec in _specs(config, in_channels=RGB_CHANNELS, num_classes=num_classes):
        maps = maps if spec.channels is None else spec.channels
        channels[spec.name] = maps
    return channels


def counterpart(layer: str, *, among: Sequence[str]) -> str:
    """The layer of another backbone that corresponds to `layer`: relu5_3 and relu5 and res5c_relu.

    Raises:
        ConfigError: none does.
    """
    if layer in among:
        return layer
    matches = [name for name in among if _kind_and_stage(name) == _kind_and_stage(layer)]
    if not matches:
        raise ConfigError(
            f"fusion.layers: the other tower has nothing like {layer!r}; its layers are {', '.join(among)}"
        )
    return matches[-1]


def _kind_and_stage(layer: str) -> tuple[str, str]:
    digits = re.search(r"\d", layer)
    kind = "relu" if "relu" in layer else re.split(r"\d", layer)[0]
    return kind, digits.group() if digits else ""


class _Spec(NamedTuple):
    """Specification of a layer: its width is known, the number of maps that come in is not."""

    name: str
    make: Callable[[int], nn.Module]
    channels: int | None = None


def _specs(config: TowerConfig, *, in_channels: int, num_classes: int) -> Iterator[_Spec]:
    full = _FIRST_STAGE_MAPS[config.backbone]

    def scaled(maps: int) -> int:
        return max(1, round(maps * (config.width or full) / full))

    if config.backbone == "vgg16":
        yield from _vgg16(scaled)
        yield from _classifier(scaled(4096), scaled(4096), num_classes, window=7, dropout=config.dropout)
    elif config.backbone == "vgg_m_2048":
        yield from _vgg_m(scaled, normalises_twice=in_channels == RGB_CHANNELS)
        yield from _classifier(scaled(4096), scaled(2048), num_classes, window=6, dropout=config.dropout)
    else:
        yield from _resnet50(scaled) if config.backbone == "resnet50" else _vgg_small(scaled)
        yield _Spec(LAST_POOL, lambda _: nn.AdaptiveAvgPool2d(1))
        yield _Spec("drop5", lambda _: nn.Dropout(config.dropout))
        yield _fc(CLASSIFIER, num_classes, classifies=True)


def _vgg16(scaled: Callable[[int], int]) -> Iterator[_Spec]:
    for stage, (depth, maps) in enumerate(((2, 64), (2, 128), (3, 256), (3, 512), (3, 512)), start=1):
        for index in range(1, depth + 1):
            yield _conv(f"conv{stage}_{index}", scaled(maps), kernel=3, padding=1)
            yield _relu(f"relu{stage}_{index}")
        yield _Spec(f"pool{stage}", lambda _: nn.MaxPool2d(2))


def _vgg_m(scaled: Callable[[int], int], *, normalises_twice: bool) -> Iterator[_Spec]:
    """VGG-M-2048; the temporal net leaves out the second normalisation (Simonyan and Zisserman 2014, sec. 2)."""
    yield _conv("conv1", scaled(96), kernel=7, stride=2)
    yield _relu("relu1")
    yield _Spec("norm1", lambda _: _local_response_norm())
    yield _Spec("pool1", lambda _: nn.MaxPool2d(3, stride=2))
    yield _conv("conv2", scaled(256), kernel=5, stride=2, padding=1)
    yield _relu("relu2")
    if normalises_twice:
        yield _Spec("norm2", lambda _: _local_response_norm())
    # Rounding up makes 26 into 13; rounding down would leave 12, and fc6 a third of its weights short.
    yield _Spec("pool2", lambda _: nn.MaxPool2d(3, stride=2, ceil_mode=True))
    for stage in (3, 4, 5):
        yield _conv(f"conv{stage}", scaled(512), kernel=3, padding=1)
        yield _relu(f"relu{stage}")
    yield _Spec(LAST_POOL, lambda _: nn.MaxPool2d(3, stride=2))


def _vgg_small(scaled: Callable[[int], int]) -> Iterator[_Spec]:
    for stage, maps in enumerate((32, 64, 64, 64), start=1):
        yield _conv(f"conv{stage}", scaled(maps), kernel=3, stride=2 if stage == 1 else 1, padding=1)
        yield _Spec(f"bn{stage}", nn.BatchNorm2d)
        yield _relu(f"relu{stage}")
        if stage < 4:
            yield _Spec(f"pool{stage}", lambda _: nn.MaxPool2d(2))


def _resnet50(scaled: Callable[[int], int]) -> Iterator[_Spec]:
    yield _conv("conv1", scaled(64), kernel=7, stride=2, padding=3, bias=False)
    yield _Spec("bn1", batch_norm)
    yield _relu("relu1")
    yield _Spec("pool1", lambda _: nn.MaxPool2d(3, stride=2, padding=1))
    for stage, (units, maps) in enumerate(((3, 64), (4, 128), (6, 256), (3, 512)), start=2):
        for unit in "abcdef"[:units]:
            yield _bottleneck(f"res{stage}{unit}", scaled(maps), stride=2 if unit == "a" and stage > 2 else 1)
            yield _relu(f"res{stage}{unit}_relu")


def _classifier(fc6: int, fc7: int, num_classes: int, *, window: int, dropout: float) -> Iterator[_Spec]:
    yield _fc("fc6", fc6, window=window)
    yield _relu("relu6")
    yield _Spec("drop6", lambda _: nn.Dropout(dropout))
    yield _fc("fc7", fc7)
    yield _relu("relu7")
    yield _Spec("drop7", lambda _: nn.Dropout(dropout))
    yield _fc(CLASSIFIER, num_classes, classifies=True)


def _conv(name: str, maps: int, *, kernel: int, stride: int = 1, padding: int = 0, bias: bool = True) -> _Spec:
    return _Spec(name, lambda inputs: nn.Conv2d(inputs, maps, kernel, stride, padding, bias=bias), maps)


def _bottleneck(name: str, maps: int, *, stride: int) -> _Spec:
    return _Spec(name, lambda inputs: Bottleneck(inputs, maps, stride=stride), 4 * maps)


def _fc(name: str, maps: int, *, window: int = 1, classifies: bool = False) -> _Spec:
    return _Spec(name, lambda inputs: FullyConnected(inputs, maps, window=window, classifies=classifies), maps)


def _relu(name: str) -> _Spec:
    return _Spec(name, lambda _: nn.ReLU())


def _local_response_norm() -> nn.LocalResponseNorm:
    """Krizhevsky's settings, k = 2, n = 5, alpha = 1e-4, beta = 0.75; torch divides alpha by n."""
    return nn.LocalResponseNorm(size=5, alpha=5e-4, beta=0.75, k=2.0)
