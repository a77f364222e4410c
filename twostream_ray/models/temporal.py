"""Temporal layers: pooling, convolution and residual blocks over T snippets (Feichtenhofer et al. 2016, sec. 3.2).

Towers process snippets as a batch (N * T, D, H, W); these layers take N to restore the time axis.
"""

from functools import reduce

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class TimeMaxPool(nn.Module):
    """Maximum over windows of snippets; with the max pooling over space that follows, the papers' 3D pooling.

    Maxima over time and over space may be taken one after the other: the 2x2x5 pooling is this, then pool5.

    Shape: (N * T, D, H, W) -> (N * T', D, H, W), T' = (T - window) // stride + 1.
    """

    def __init__(self, *, window: int, stride: int) -> None:
        super().__init__()
        self.window, self.stride = window, stride

    def forward(self, maps: Tensor, *, num_samples: int) -> Tensor:
        """Pool; fewer snippets than a window count as one window."""
        over_time = maps.unflatten(0, (num_samples, -1))
        window = min(self.window, over_time.shape[1])
        starts = over_time.shape[1] - window + 1
        # Not `amax`: its gradient asks which values equal the maximum. Compiled, values computed again in 32 bits are
        # compared with a maximum kept in 16, none is equal, and the gradient is 0 / 0.
        shifted = (over_time[:, first : first + starts : self.stride] for first in range(window))
        return reduce(torch.maximum, shifted).flatten(0, 1)


class TimeConv(nn.Module):
    """3x3x3 convolution over time and space, then a ReLU (Feichtenhofer et al. 2016, official code).

    It starts as `mixing` (D', D) at every position of a Gaussian window with sigma 1 that sums to 1, or, where mixing
    is None, at 0.01 randn.

    Shape: (N * T, D, H, W) -> (N * T, D', H, W).
    """

    def __init__(self, in_maps: int, out_maps: int, *, mixing: Tensor | None, rectifies: bool = True) -> None:
        super().__init__()
        self.rectifies = rectifies
        """False between the layers of networks whose maps have signs."""
        self.conv = nn.Conv3d(in_maps, out_maps, kernel_size=3, padding=1)
        nn.init.zeros_(self.conv.bias)  # type: ignore[arg-type]
        if mixing is None:
            nn.init.normal_(self.conv.weight, std=0.01)
        else:
            self.conv.weight.data.copy_(mixing[:, :, None, None, None] * gaussian_window())

    def forward(self, maps: Tensor, *, num_samples: int) -> Tensor:
        """Convolve each sample's snippets; with zeros before the first and after the last."""
        volume = maps.unflatten(0, (num_samples, -1)).transpose(1, 2)
        convolved = self.conv(volume)
        return (F.relu(convolved) if self.rectifies else convolved).transpose(1, 2).flatten(0, 1)


class TimeResidualConv(nn.Module):
    """A 1x1 convolution inflated over three snippets: every tap starts at W / 3 (Feichtenhofer et al. 2016b, code).

    On a still clip it is the 1x1 convolution, but for the first and last snippet, where a tap meets zeros.

    Shape: (N * T, D, H, W) -> (N * T, D', H, W).
    """

    def __init__(self, pointwise: nn.Conv2d) -> None:
        super().__init__()
        self.conv = nn.Conv3d(
            pointwise.in_channels, pointwise.out_channels, kernel_size=(3, 1, 1), padding=(1, 0, 0), bias=False
        )
        self.conv.weight.data.copy_(pointwise.weight.data[:, :, None].expand(-1, -1, 3, -1, -1) / 3)

    def forward(self, maps: Tensor, *, num_samples: int) -> Tensor:
        """Convolve each sample's snippets; with zeros before the first and after the last."""
        volume = maps.unflatten(0, (num_samples, -1)).transpose(1, 2)
        return self.conv(volume).transpose(1, 2).flatten(0, 1)


class TimeResidualUnit(nn.Module):
    """A residual unit over time, whose branch may read other maps than its shortcut (Feichtenhofer et al. 2016b, code).

    y = x + F(injected): the maps of the other stream enter the branch only, the identity stays unfused.

    Shape: (N * T, D, H, W) -> (N * T, D, H, W).
    """

    def __init__(
        self, convolutions: tuple[nn.Conv2d, nn.Conv2d, nn.Conv2d], norms: tuple[nn.Module, nn.Module, nn.Module]
    ) -> None:
        super().__init__()
        self.branch2a, self.bn2a = TimeResidualConv(convolutions[0]), norms[0]
        self.branch2b, self.bn2b = convolutions[1], norms[1]
        self.branch2c, self.bn2c = TimeResidualConv(convolutions[2]), norms[2]

    def forward(self, maps: Tensor, *, injected: Tensor, num_samples: int) -> Tensor:
        """The sum, before its ReLU; injected is `maps` itself where no other stream enters."""
        residual = F.relu(self.bn2a(self.branch2a(injected, num_samples=num_samples)))
        residual = F.relu(self.bn2b(self.branch2b(residual)))
        return maps + self.bn2c(self.branch2c(residual, num_samples=num_samples))


class ResidualInception(nn.Module):
    """A residual inception block over time: branches that see 1, 3 and 5 snippets (after Szegedy et al. 2016).

    A 1x1 filter expansion without activation matches the depth before the addition; batch norm is on the
    branches only, and the residual is scaled down, which steadies wide networks.

    Shape: (N, D, T) -> (N, D, T).
    """

    def __init__(self, num_channels: int, *, branch_maps: int, residual_scale: float) -> None:
        super().__init__()
        self.residual_scale = residual_scale
        self.branches = nn.ModuleList(
            nn.Sequential(
                _time_conv_norm(num_channels, branch_maps, taps=1),
                *(_time_conv_norm(branch_maps, branch_maps, taps=3) for _ in range(depth)),
            )
            for depth in range(3)
        )
        self.expansion = nn.Conv1d(3 * branch_maps, num_channels, kernel_size=1)
        nn.init.kaiming_normal_(self.expansion.weight, nonlinearity="linear")
        nn.init.zeros_(self.expansion.bias)  # type: ignore[arg-type]

    def forward(self, features: Tensor) -> Tensor:
        """ReLU of the features plus what the branches add."""
        residual = self.expansion(torch.cat([branch(features) for branch in self.branches], dim=1))
        return F.relu(features + self.residual_scale * residual)


def _time_conv_norm(in_maps: int, out_maps: int, *, taps: int) -> nn.Sequential:
    conv = nn.Conv1d(in_maps, out_maps, kernel_size=taps, padding=taps // 2, bias=False)
    nn.init.kaiming_normal_(conv.weight, nonlinearity="relu")
    return nn.Sequential(conv, nn.BatchNorm1d(out_maps), nn.ReLU())


def gaussian_window() -> Tensor:
    """exp(-(x^2 + y^2 + z^2) / 2) on {-1, 0, 1}^3, over its sum; shape (3, 3, 3)."""
    line = torch.exp(-(torch.tensor([-1.0, 0.0, 1.0]) ** 2) / 2)
    window = line[:, None, None] * line[:, None] * line
    return window / window.sum()


def mean_scores(maps: Tensor, *, num_samples: int) -> Tensor:
    """2D pooling: the mean of the class scores over snippets and space, (N * T, K, H, W) -> (N, K)."""
    return maps.unflatten(0, (num_samples, -1)).mean(dim=(1, 3, 4))
