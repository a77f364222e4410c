"""Layer specifications of the backbones VGG-16, VGG-M-2048 and ResNet-50 with the papers' layer names; without torch.

VGG-M-2048 after Simonyan and Zisserman 2014 (sec. 2, fig. 1), VGG-16 after Feichtenhofer, Pinz and Zisserman 2016
(sec. 3.4), ResNet-50 after Feichtenhofer, Pinz and Wildes 2016. Settings name layers, so they need these tables;
`streams` makes modules of them.
"""

import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Literal, NamedTuple, cast, get_args

from twostream_ray.errors import ConfigError

Backbone = Literal["vgg16", "vgg_m_2048", "resnet50", "vgg_small"]
"""The backbones with tables here; any other is a network of timm."""
LayerKind = Literal[
    "conv",
    "relu",
    "batch_norm",
    "slow_batch_norm",
    "local_response_norm",
    "max_pool",
    "mean_pool",
    "dropout",
    "bottleneck",
    "fully_connected",
]
"""slow_batch_norm has momentum 0.05; mean_pool is global average pooling."""

RGB_CHANNELS = 3
IMAGENET_MEAN = (0.485, 0.456, 0.406)
"""Of R G B in [0, 1]: with it and the deviation frames come normalised."""
IMAGENET_STD = (0.229, 0.224, 0.225)
"""Standard deviation of R G B in [0, 1]."""
CLASSIFIER = "fc8"
LAST_POOL = "pool5"
DROPOUT = "drop5"
TIMM = "timm:"
"""Prefix of timm backbones."""

_FIRST_STAGE_MAPS: dict[Backbone, int] = {"vgg16": 64, "vgg_m_2048": 96, "resnet50": 64, "vgg_small": 32}


class LayerSpec(NamedTuple):
    """Specification of a layer, without its number of input maps."""

    name: str
    """The paper's name of the layer."""
    kind: LayerKind
    """What it computes."""
    channels: int | None = None
    """Output maps; None: as many as input maps. A bottleneck has a quarter of them inside."""
    kernel: int = 1
    """Height and width of the window of a convolution, pooling or fully connected layer."""
    stride: int = 1
    """Step between windows in px."""
    padding: int = 0
    """Zero padding on each side in px."""
    has_bias: bool = True
    """Whether a convolution adds a bias; one before a batch norm does not."""
    rounds_up: bool = False
    """Whether pooling uses partial windows at the edge (ceil_mode)."""


def as_table(backbone: str) -> Backbone:
    """Check that a backbone is one of `Backbone`.

    Raises:
        ConfigError: it is not.
    """
    for known in get_args(Backbone):
        if backbone == known:
            return cast(Backbone, known)
    raise ConfigError(
        f"backbone must be one of {', '.join(get_args(Backbone))}, or {TIMM} and the name of a network of timm "
        f"({TIMM}convnext_tiny), got {backbone!r}"
    )


def layer_specs(backbone: Backbone, *, width: int | None, in_channels: int, num_classes: int) -> Iterator[LayerSpec]:
    """The layers of a tower in their order.

    Args:
        backbone: whose layers.
        width: maps of the first layer, all others in proportion; None is the paper's width.
        in_channels: 3 for RGB, 2L for flow.
        num_classes: K, the outputs of fc8.
    """
    full = _FIRST_STAGE_MAPS[backbone]

    def scaled(maps: int) -> int:
        return max(1, round(maps * (width or full) / full))

    if backbone == "vgg16":
        yield from _vgg16(scaled)
        yield from _classifier(scaled(4096), scaled(4096), num_classes, window=7)
    elif backbone == "vgg_m_2048":
        yield from _vgg_m(scaled, normalises_twice=in_channels == RGB_CHANNELS)
        yield from _classifier(scaled(4096), scaled(2048), num_classes, window=6)
    else:
        yield from _resnet50(scaled) if backbone == "resnet50" else _vgg_small(scaled)
        yield LayerSpec(LAST_POOL, "mean_pool")
        yield LayerSpec(DROPOUT, "dropout")
        yield LayerSpec(CLASSIFIER, "fully_connected", num_classes)


def reductions(specs: Iterable[LayerSpec]) -> dict[str, int]:
    """Layer -> total stride, the frame's height over the maps' height; 0 from global pooling on."""
    found: dict[str, int] = {}
    reduction = 1
    for spec in specs:
        slides = spec.kind not in ("mean_pool", "fully_connected")
        reduction *= spec.stride if slides else 0
        found[spec.name] = reduction
    return found


def is_head(name: str) -> bool:
    """Whether a weight's shape depends on the classes: a tower's or the joint classifier, or a fusion of scores."""
    parts = name.split(".")
    return CLASSIFIER in parts or parts[0] == "classifier"


def counterpart(layer: str, *, among: Sequence[str]) -> str:
    """The layer of another backbone that corresponds to `layer`: relu5_3 and relu5 and res5c_relu.

    Raises:
        ConfigError: there is none.
    """
    if layer in among:
        return layer
    matches = [name for name in among if _kind_and_stage(name) == _kind_and_stage(layer)]
    if not matches:
        raise ConfigError(
            f"fusion.layers: the other tower has no counterpart of {layer!r}; its layers are {', '.join(among)}"
        )
    return matches[-1]


def _kind_and_stage(layer: str) -> tuple[str, str]:
    digits = re.search(r"\d", layer)
    kind = "relu" if "relu" in layer else re.split(r"\d", layer)[0]
    return kind, digits.group() if digits else ""


def _vgg16(scaled: Callable[[int], int]) -> Iterator[LayerSpec]:
    for stage, (depth, maps) in enumerate(((2, 64), (2, 128), (3, 256), (3, 512), (3, 512)), start=1):
        for index in range(1, depth + 1):
            yield LayerSpec(f"conv{stage}_{index}", "conv", scaled(maps), kernel=3, padding=1)
            yield LayerSpec(f"relu{stage}_{index}", "relu")
        yield LayerSpec(f"pool{stage}", "max_pool", kernel=2, stride=2)


def _vgg_m(scaled: Callable[[int], int], *, normalises_twice: bool) -> Iterator[LayerSpec]:
    """VGG-M-2048; the temporal net leaves out the second normalisation (Simonyan and Zisserman 2014, sec. 2)."""
    yield LayerSpec("conv1", "conv", scaled(96), kernel=7, stride=2)
    yield LayerSpec("relu1", "relu")
    yield LayerSpec("norm1", "local_response_norm")
    yield LayerSpec("pool1", "max_pool", kernel=3, stride=2)
    yield LayerSpec("conv2", "conv", scaled(256), kernel=5, stride=2, padding=1)
    yield LayerSpec("relu2", "relu")
    if normalises_twice:
        yield LayerSpec("norm2", "local_response_norm")
    # Rounding up makes 26 into 13; rounding down would leave 12, and fc6 a third of its weights short.
    yield LayerSpec("pool2", "max_pool", kernel=3, stride=2, rounds_up=True)
    for stage in (3, 4, 5):
        yield LayerSpec(f"conv{stage}", "conv", scaled(512), kernel=3, padding=1)
        yield LayerSpec(f"relu{stage}", "relu")
    yield LayerSpec(LAST_POOL, "max_pool", kernel=3, stride=2)


def _vgg_small(scaled: Callable[[int], int]) -> Iterator[LayerSpec]:
    for stage, maps in enumerate((32, 64, 64, 64), start=1):
        yield LayerSpec(f"conv{stage}", "conv", scaled(maps), kernel=3, stride=2 if stage == 1 else 1, padding=1)
        yield LayerSpec(f"bn{stage}", "batch_norm")
        yield LayerSpec(f"relu{stage}", "relu")
        if stage < 4:
            yield LayerSpec(f"pool{stage}", "max_pool", kernel=2, stride=2)


def _resnet50(scaled: Callable[[int], int]) -> Iterator[LayerSpec]:
    yield LayerSpec("conv1", "conv", scaled(64), kernel=7, stride=2, padding=3, has_bias=False)
    yield LayerSpec("bn1", "slow_batch_norm")
    yield LayerSpec("relu1", "relu")
    yield LayerSpec("pool1", "max_pool", kernel=3, stride=2, padding=1)
    for stage, (units, maps) in enumerate(((3, 64), (4, 128), (6, 256), (3, 512)), start=2):
        for unit in "abcdef"[:units]:
            stride = 2 if unit == "a" and stage > 2 else 1
            yield LayerSpec(f"res{stage}{unit}", "bottleneck", 4 * scaled(maps), stride=stride)
            yield LayerSpec(f"res{stage}{unit}_relu", "relu")


def _classifier(fc6: int, fc7: int, num_classes: int, *, window: int) -> Iterator[LayerSpec]:
    yield LayerSpec("fc6", "fully_connected", fc6, kernel=window)
    yield LayerSpec("relu6", "relu")
    yield LayerSpec("drop6", "dropout")
    yield LayerSpec("fc7", "fully_connected", fc7)
    yield LayerSpec("relu7", "relu")
    yield LayerSpec("drop7", "dropout")
    yield LayerSpec(CLASSIFIER, "fully_connected", num_classes)
