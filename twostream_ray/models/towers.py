"""Tower: the network of one stream as a chain of named layers that can be run in parts, and its building blocks.

Every layer returns maps (N, D, H, W), also the fully connected ones: so a tower accepts frames of any larger size
(fully convolutional testing), and fusion is possible at any layer.
"""

from collections.abc import Callable, Mapping, Sequence, Set

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from twostream_ray.errors import ConfigError
from twostream_ray.models.layers import IMAGENET_MEAN, IMAGENET_STD
from twostream_ray.models.token_maps import Maps

ReadBytes = Callable[[str], bytes]
"""Reads the whole file at a path or URI."""

_BATCH_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d)
"""Of maps, and of features: some networks of timm have one before their classifier."""


class FullyConnected(nn.Linear):
    """A fully connected layer over a window of maps, applied convolutionally to larger maps.

    Shape: (N, D, window + a, window + b) -> (N, D', 1 + a, 1 + b).
    """

    def __init__(self, in_maps: int, out_maps: int, *, window: int = 1, classifies: bool = False) -> None:
        self.in_maps, self.window, self.classifies = in_maps, window, classifies
        super().__init__(in_maps * window**2, out_maps)

    def reset_parameters(self) -> None:
        """A classifier is initialised with 0.01 randn (official code), a hidden layer by He initialisation."""
        if self.classifies:
            nn.init.normal_(self.weight, std=0.01)
        else:
            nn.init.kaiming_normal_(self.weight, nonlinearity="relu")
        nn.init.zeros_(self.bias)

    def forward(self, maps: Tensor) -> Tensor:
        """One matrix product where the maps are exactly one window."""
        height, width = maps.shape[-2:]
        if min(height, width) < self.window:
            raise ConfigError(
                f"the frames are too small: a fully connected layer needs maps of at least "
                f"{self.window}x{self.window}, got {height}x{width}; use larger "
                "frames (224 px for vgg16 and vgg_m_2048) or the vgg_small backbone"
            )
        if (height, width) == (self.window, self.window):
            return super().forward(maps.flatten(1))[:, :, None, None]
        return F.conv2d(maps, self.weight.unflatten(1, (self.in_maps, self.window, self.window)), self.bias)


class Bottleneck(nn.Module):
    """A residual unit up to its sum, before the ReLU: shortcut(x) + F(x); the stride is in the 3x3 (torchvision's).

    Shape: (N, D, H, W) -> (N, 4 maps, H / stride, W / stride).
    """

    def __init__(self, in_maps: int, maps: int, *, stride: int) -> None:
        super().__init__()
        self.branch2a = nn.Conv2d(in_maps, maps, 1, bias=False)
        self.bn2a = batch_norm(maps)
        self.branch2b = nn.Conv2d(maps, maps, 3, stride=stride, padding=1, bias=False)
        self.bn2b = batch_norm(maps)
        self.branch2c = nn.Conv2d(maps, 4 * maps, 1, bias=False)
        self.bn2c = batch_norm(4 * maps)
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or in_maps != 4 * maps:
            self.shortcut = nn.Sequential(
                nn.Conv2d(in_maps, 4 * maps, 1, stride=stride, bias=False), batch_norm(4 * maps)
            )

    def forward(self, maps: Tensor) -> Tensor:
        """The sum of shortcut and residual branch."""
        residual = F.relu(self.bn2a(self.branch2a(maps)))
        residual = F.relu(self.bn2b(self.branch2b(residual)))
        return self.shortcut(maps) + self.bn2c(self.branch2c(residual))


class Tower(nn.Module):
    """A chain of named layers that can be run in parts.

    Shape: frames (N, C, H, W) -> class scores (N, K, 1 + a, 1 + b), one for each window of larger frames.
    """

    def __init__(
        self,
        layers: Mapping[str, nn.Module],
        *,
        channels: Mapping[str, int],
        normalise: nn.Module | None = None,
        published: Mapping[str, str] | None = None,
        undecayed: Set[str] = frozenset(),
    ) -> None:
        super().__init__()
        for name, layer in layers.items():
            self.add_module(name, layer)
        self.normalise = normalise
        """From ImageNet's mean and deviation to those that a network of timm was made for."""
        self.published = dict(published or {})
        """timm's name of each parameter and buffer, by its name here; empty for the papers' towers."""
        self.undecayed = undecayed
        """Parameters that timm gives no weight decay, by their names here."""
        self.names = tuple(layers)
        """The layers in their order."""
        self.channels = dict(channels)
        """D of each layer's output."""
        self.frozen: tuple[str, ...] = ()
        """Frozen layers, from the first on."""
        self.recomputes = False
        """Keep only the maps at poolings, of timm's networks those between layers, for the backward pass (Chen et al.
        2016)."""

    def forward(self, maps: Maps, *, after: str | None = None, upto: str | None = None) -> Maps:
        """Run the layers after `after` (None: from the first) up to and including `upto` (None: to the last)."""
        if after is None and self.normalise is not None:
            maps = self.normalise(maps)
        start = 0 if after is None else self.names.index(after) + 1
        stop = len(self.names) if upto is None else self.names.index(upto) + 1
        names = self.names[start:stop]
        if not (self.recomputes and self.training):
            return self._run(maps, names)
        while names:
            kept = (index for index, name in enumerate(names) if self.published or name.startswith("pool"))
            cut = next(kept, len(names) - 1) + 1
            maps = checkpoint(self._run, maps, names[:cut], use_reentrant=False)
            names = names[cut:]
        return maps

    def _run(self, maps: Maps, names: Sequence[str]) -> Maps:
        for name in names:
            maps = self.get_submodule(name)(maps)
        return maps

    def layers(self, *, after: str | None = None) -> list[nn.Module]:
        """The layers after `after` (None: from the first), in order."""
        start = 0 if after is None else self.names.index(after) + 1
        return [self.get_submodule(name) for name in self.names[start:]]

    def freeze(self, upto: str) -> None:
        """Freeze the layers up to and including `upto`: no gradients, and batch norm in evaluation mode."""
        self.frozen = self.names[: max(len(self.frozen), self.names.index(upto) + 1)]
        for name in self.frozen:
            self.get_submodule(name).requires_grad_(False)
        self.train(self.training)

    def train(self, mode: bool = True) -> "Tower":
        """Switch modes; batch norm in the frozen part stays in evaluation mode."""
        super().train(mode)
        for name in self.frozen:
            for module in self.get_submodule(name).modules():
                if isinstance(module, _BATCH_NORMS):
                    module.eval()
        return self


class Renormalise(nn.Module):
    """Frames normalised by ImageNet's mean and deviation -> the same frames normalised by others.

    Shape: (N, 3, ...) -> (N, 3, ...).
    """

    scale: Tensor
    shift: Tensor

    def __init__(self, *, mean: tuple[float, ...], std: tuple[float, ...]) -> None:
        super().__init__()
        given_mean, given_std = torch.tensor(IMAGENET_MEAN), torch.tensor(IMAGENET_STD)
        wanted_mean, wanted_std = torch.tensor(mean), torch.tensor(std)
        # No part of the state: weights keep the names and the number that their publishers' have.
        self.register_buffer("scale", given_std / wanted_std, persistent=False)
        self.register_buffer("shift", (given_mean - wanted_mean) / wanted_std, persistent=False)

    def forward(self, frames: Tensor) -> Tensor:
        """An affine function of each colour."""
        each = (slice(None), *(None,) * (frames.dim() - 2))
        return frames * self.scale[each] + self.shift[each]


def batch_norm(maps: int) -> nn.BatchNorm2d:
    """Batch norm with momentum 0.05 (the official ST-ResNet code)."""
    return nn.BatchNorm2d(maps, momentum=0.05)
