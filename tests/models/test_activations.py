import torch
from torch import nn

from twostream_ray.models.activations import peak_activation_bytes


def test_two_maps_are_alive_at_a_time_in_a_chain_of_layers() -> None:
    with torch.device("meta"):
        chain = nn.Sequential(*(nn.Conv2d(8, 8, 3, padding=1) for _ in range(5)))
        maps = torch.empty(1, 8, 32, 32)
    # The input is the caller's; each layer reads what the one before has made.
    assert peak_activation_bytes(lambda: chain(maps)) == 2 * 8 * 32 * 32 * 4


def test_a_shortcut_is_alive_until_it_is_added() -> None:
    with torch.device("meta"):
        layers = [nn.Conv2d(8, 8, 1) for _ in range(3)]
        maps = torch.empty(1, 8, 32, 32)

    def residual() -> torch.Tensor:
        first = layers[0](maps)
        return first + layers[2](layers[1](first))

    assert peak_activation_bytes(residual) == 3 * 8 * 32 * 32 * 4


def test_views_and_changes_in_place_take_no_memory() -> None:
    maps = torch.empty(4, 8, device="meta")
    assert peak_activation_bytes(lambda: maps.flatten().relu_().view(2, 16)) == 0
    assert peak_activation_bytes(lambda: maps.float().double()) == 4 * 8 * 8


def test_twice_the_samples_take_twice_the_memory() -> None:
    with torch.device("meta"):
        chain = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(8, 8, 3))

    def peak(count: int) -> int:
        return peak_activation_bytes(lambda: chain(torch.empty(count, 3, 32, 32, device="meta")))

    assert peak(6) == 6 * peak(1) > 0
