import torch

from twostream_ray.models.token_maps import TokenMaps, grid, with_grid


def test_other_maps_leave_the_class_token_where_it_is_and_maps_alone_are_replaced() -> None:
    maps, prefix, others = torch.rand(2, 3, 4, 4), torch.rand(2, 1, 3), torch.rand(2, 5, 4, 4)
    state = with_grid(TokenMaps(maps, prefix), others)
    assert isinstance(state, TokenMaps) and state.prefix is prefix and grid(state) is others
    assert with_grid(maps, others) is others and grid(maps) is maps
