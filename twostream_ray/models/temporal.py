"""Fusion over time: what a network does with the maps of T snippets (Feichtenhofer et al. 2016, sec. 3.2).

Towers see snippets one by one, as (N * T, D, H, W); the layers here get N and so find the time axis again.
"""

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
        """Pool; fewer snippets than a window are one window."""
        over_time = maps.unflatten(0, (num_samples, -1))
        window = min(self.window, over_time.shape[1])
        return over_time.unfold(1, window, self.stride).amax(-1).flatten(0, 1)


class TimeConv(nn.Module):
    """3x3x3 convolution over time and space, then a ReLU (Feichtenhofer et al. 2016, official code).

    It starts as `mixing` (D', D) at every place of a Gaussian window with sigma 1 that sums to 1, or, where mixing is
    None, at 0.01 randn.

    Shape: (N * T, D, H, W) -> (N * T, D', H, W).
    """

    def __init__(self, in_maps: int, out_maps: int, *, mixing: Tensor | None) -> None:
        super().__init__()
        self.conv = nn.Conv3d(in_maps, out_maps, kernel_size=3, padding=1)
        nn.init.zeros_(self.conv.bias)  # type: ignore[arg-type]
        if mixing is None:
            nn.init.normal_(self.conv.weight, std=0.01)
        else:
            self.conv.weight.data.copy_(mixing[:, :, None, None, None] * gaussian_window())

    def forward(self, maps: Tensor, *, num_samples: int) -> Tensor:
        """Convolve each sample's snippets; zeros stand before the first and after the last."""
        volume = maps.unflatten(0, (num_samples, -1)).transpose(1, 2)
        return F.relu(self.conv(volume)).transpose(1, 2).flatten(0, 1)


def gaussian_window() -> Tensor:
    """exp(-(x^2 + y^2 + z^2) / 2) on {-1, 0, 1}^3, over its sum; shape (3, 3, 3)."""
    line = torch.exp(-(torch.tensor([-1.0, 0.0, 1.0]) ** 2) / 2)
    window = line[:, None, None] * line[:, None] * line
    return window / window.sum()


def mean_scores(maps: Tensor, *, num_samples: int) -> Tensor:
    """2D pooling: the mean of the class scores over snippets and places, (N * T, K, H, W) -> (N, K)."""
    return maps.unflatten(0, (num_samples, -1)).mean(dim=(1, 3, 4))
