import torch

from twostream_ray.data.loading.device import normalise_flow, normalise_rgb


def test_no_motion_becomes_zero_and_mean_colour_nearly_so() -> None:
    assert normalise_flow(torch.full((1, 2, 4, 4), 128, dtype=torch.uint8)).abs().max() == 0
    grey = torch.tensor([124, 116, 104], dtype=torch.uint8)[:, None, None].expand(3, 4, 4)
    assert normalise_rgb(grey).abs().max() < 0.02
