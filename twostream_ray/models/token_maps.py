"""Feature maps of vision transformers: the grid of their tokens, beside it the tokens that have no place."""

from typing import NamedTuple

from torch import Tensor


class TokenMaps(NamedTuple):
    """What a vision transformer passes from layer to layer: its tokens, those of the grid as maps."""

    maps: Tensor
    """The grid, (N, D, H, W)."""
    prefix: Tensor
    """Class token and registers, (N, P, D)."""


Maps = Tensor | TokenMaps
"""What a layer returns: feature maps, in vision transformers with their class token and registers beside."""


def grid(state: Maps) -> Tensor:
    """The feature maps (N, D, H, W) of what a layer returned."""
    return state.maps if isinstance(state, TokenMaps) else state


def with_grid(state: Maps, maps: Tensor) -> Maps:
    """What a layer returned with other feature maps; a transformer's class token and registers stay its own."""
    return TokenMaps(maps, state.prefix) if isinstance(state, TokenMaps) else maps
