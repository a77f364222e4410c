"""Feature maps of vision transformers: patch tokens as a grid, with class token and registers kept separately."""

from typing import NamedTuple

from torch import Tensor


class TokenMaps(NamedTuple):
    """The tokens between two layers of a vision transformer, the patch tokens arranged as maps."""

    maps: Tensor
    """Patch tokens, (N, D, H, W)."""
    prefix: Tensor
    """Class token and registers, (N, P, D)."""


Maps = Tensor | TokenMaps
"""A layer's output: feature maps, with class token and registers for vision transformers."""


def grid(state: Maps) -> Tensor:
    """The feature maps (N, D, H, W) of a layer's output."""
    return state.maps if isinstance(state, TokenMaps) else state


def with_grid(state: Maps, maps: Tensor) -> Maps:
    """Replace the feature maps of a layer's output; class token and registers are kept."""
    return TokenMaps(maps, state.prefix) if isinstance(state, TokenMaps) else maps
