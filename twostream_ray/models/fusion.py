"""Fusion functions: two towers' feature maps into one (Feichtenhofer et al. 2016, sec. 3.1)."""

from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from twostream_ray.errors import ConfigError
from twostream_ray.models.settings import FusionConfig, Initialisation


class SumFusion(nn.Module):
    """y = spatial + temporal. Shape: (N, D, H, W) twice -> (N, D, H, W)."""

    def forward(self, spatial: Tensor, temporal: Tensor) -> Tensor:
        """Add map by map."""
        spatial, temporal = pad_to_match(spatial, temporal)
        return spatial + temporal


class MaxFusion(nn.Module):
    """y = max(spatial, temporal). Shape: (N, D, H, W) twice -> (N, D, H, W)."""

    def forward(self, spatial: Tensor, temporal: Tensor) -> Tensor:
        """Take the larger, map by map."""
        return torch.maximum(*pad_to_match(spatial, temporal))


class ConcatFusion(nn.Module):
    """Stack the maps, the spatial tower's first (the official code). Shape: (N, D, H, W) twice -> (N, 2D, H, W)."""

    def forward(self, spatial: Tensor, temporal: Tensor) -> Tensor:
        """Stack along the channels."""
        return torch.cat(pad_to_match(spatial, temporal), dim=1)


class ConvFusion(nn.Module):
    """Stack the maps, then a learned 1x1 convolution and a ReLU; starts out as sum fusion.

    Shape: (N, D, H, W) twice -> (N, D, H, W).
    """

    def __init__(
        self, num_channels: int, *, initialisation: Initialisation = "identity", rectifies: bool = True
    ) -> None:
        super().__init__()
        self.mix = nn.Conv2d(2 * num_channels, num_channels, kernel_size=1)
        self.rectifies = rectifies
        """False where class scores are fused, or maps of networks without ReLU: they have signs."""
        nn.init.zeros_(self.mix.bias)  # type: ignore[arg-type]
        if initialisation == "gaussian":
            nn.init.normal_(self.mix.weight, std=0.01)
        else:
            mixing = mixing_matrix(num_channels, stacked=2, initialisation=initialisation)
            self.mix.weight.data.copy_(mixing[:, :, None, None])

    def forward(self, spatial: Tensor, temporal: Tensor) -> Tensor:
        """Mix the stacked maps, pixel by pixel."""
        mixed: Tensor = self.mix(torch.cat(pad_to_match(spatial, temporal), dim=1))
        return F.relu(mixed) if self.rectifies else mixed


class StackedFusion(nn.Module):
    """Concatenation followed by a 1x1 convolution back to D maps, for layers whose input width is fixed.

    Initialised to the mean of both towers' maps.

    Shape: (N, D, H, W) twice -> (N, D, H, W).
    """

    def __init__(self, num_channels: int) -> None:
        super().__init__()
        self.mix = nn.Conv2d(2 * num_channels, num_channels, kernel_size=1)
        nn.init.zeros_(self.mix.bias)  # type: ignore[arg-type]
        self.mix.weight.data.copy_(torch.cat([torch.eye(num_channels) / 2] * 2, dim=1)[:, :, None, None])

    def forward(self, spatial: Tensor, temporal: Tensor) -> Tensor:
        """Stack and mix."""
        mixed: Tensor = self.mix(torch.cat(pad_to_match(spatial, temporal), dim=1))
        return mixed


class BilinearFusion(nn.Module):
    """Outer product of the maps, summed over space; signed square root, then unit length.

    Shape: (N, D, H, W) twice -> (N, D * D, 1, 1).
    """

    def forward(self, spatial: Tensor, temporal: Tensor) -> Tensor:
        """Pool the products of every map with every other."""
        spatial, temporal = (maps.flatten(2) for maps in pad_to_match(spatial, temporal))
        products = (spatial @ temporal.transpose(1, 2)).flatten(1).float()
        # The root's slope has no bound at zero, where many products of rectified maps are; bfloat16 would lose 1e-10.
        powered = products.sign() * (products.abs() + 1e-10).sqrt()
        return F.normalize(powered, dim=1)[:, :, None, None]


def build_fusion(config: FusionConfig, *, num_channels: int, rectifies: bool = True, stacks: bool = True) -> nn.Module:
    """The fusion function for D = num_channels maps of each tower; `stacks`: the next layer takes twice as many."""
    match config.method:
        case "sum":
            return SumFusion()
        case "max":
            return MaxFusion()
        case "concat":
            return ConcatFusion() if stacks else StackedFusion(num_channels)
        case "conv":
            return ConvFusion(num_channels, initialisation=config.initialisation, rectifies=rectifies)
        case "bilinear":
            return BilinearFusion()


def mixing_matrix(num_channels: int, *, stacked: int, initialisation: Literal["identity", "official"]) -> Tensor:
    """Initial weights with which a learned fusion mixes `stacked` towers' maps, shape (D, stacked * D).

    identity is [I; I], the sum; official is [0.25 I; 0.75 I], as the temporal tower's maps are about 3 times smaller
    (Feichtenhofer et al. 2016, official code). Maps fused already (stacked = 1) pass as they are.
    """
    shares = (0.25, 0.75) if initialisation == "official" and stacked == 2 else (1.0,) * stacked
    return torch.cat([share * torch.eye(num_channels) for share in shares], dim=1)


def pad_to_match(spatial: Tensor, temporal: Tensor) -> tuple[Tensor, Tensor]:
    """Add a zero row below or column on the right of the smaller maps (Feichtenhofer et al. 2016, official code).

    Raises:
        ConfigError: the maps differ by more than one row or column.
    """
    height, width = (max(sizes) for sizes in zip(spatial.shape[-2:], temporal.shape[-2:], strict=True))
    if (height, width) == tuple(spatial.shape[-2:]) == tuple(temporal.shape[-2:]):
        return spatial, temporal
    padded = []
    for maps in (spatial, temporal):
        rows, columns = height - maps.shape[-2], width - maps.shape[-1]
        if max(rows, columns) > 1:
            raise ConfigError(
                f"fused maps may differ by one row and column at most, got spatial {tuple(spatial.shape[-2:])} "
                f"and temporal {tuple(temporal.shape[-2:])}: choose fusion.layers where both towers have one size"
            )
        padded.append(F.pad(maps, (0, columns, 0, rows)))
    return padded[0], padded[1]
