import shutil

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from twostream_ray.models.fusion import mixing_matrix
from twostream_ray.models.temporal import (
    ResidualInception,
    TimeConv,
    TimeMaxPool,
    TimeResidualConv,
    gaussian_window,
    mean_scores,
)


@pytest.mark.parametrize(("num_snippets", "windows"), [(5, 1), (11, 4), (12, 4), (25, 11)])
def test_time_pooling_before_pool5_is_the_papers_3d_pooling(num_snippets: int, windows: int) -> None:
    maps = torch.rand(2 * num_snippets, 3, 14, 14)
    pooled = F.max_pool2d(TimeMaxPool(window=5, stride=2)(maps, num_samples=2), 2)
    volume = maps.unflatten(0, (2, -1)).transpose(1, 2)
    expected = F.max_pool3d(volume, kernel_size=(5, 2, 2), stride=2)
    assert expected.shape[2] == windows
    torch.testing.assert_close(pooled.unflatten(0, (2, -1)), expected.transpose(1, 2))


def test_a_sample_shorter_than_the_window_is_pooled_whole() -> None:
    maps = torch.rand(2 * 3, 4, 2, 2)
    pooled = TimeMaxPool(window=5, stride=2)(maps, num_samples=2)
    torch.testing.assert_close(pooled, maps.unflatten(0, (2, 3)).amax(dim=1))


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("c++") is None, reason="torch.compile wants a C++ compiler")
@pytest.mark.parametrize("device", ["cpu", *(["cuda"] if torch.cuda.is_available() else [])])
def test_compiled_in_bfloat16_time_pooling_has_the_gradients_of_eager_pooling(device: str) -> None:
    """Maps come from a pointwise operation, as on a GPU, where a compiled convolution adds its bias apart."""
    pool = TimeMaxPool(window=5, stride=2)
    torch.manual_seed(0)
    maps = torch.randn(2 * 7, 8, 6, 6, device=device, dtype=torch.bfloat16, requires_grad=True)
    bias = torch.randn(8, 1, 1, device=device, dtype=torch.bfloat16)
    weights = torch.randn(2 * 2, 8, 6, 6, device=device, dtype=torch.bfloat16)

    def loss(maps: torch.Tensor) -> torch.Tensor:
        return (pool(F.relu(maps + bias), num_samples=2) * weights).sum()

    eager, compiled = (torch.autograd.grad(made(maps), maps)[0].float() for made in (loss, torch.compile(loss)))
    assert torch.isfinite(compiled).all()
    # Which of two values that are equal in 16 bits is the maximum may differ.
    different = (eager - compiled).abs() > 0.01 * eager.abs()
    assert different.float().mean() < 0.02
    torch.testing.assert_close(compiled.sum(), eager.sum(), rtol=0.01, atol=0.01)


def test_of_equal_snippets_time_pooling_gives_each_a_share_of_the_gradient() -> None:
    maps = torch.ones(3, 1, 1, 1, requires_grad=True)
    TimeMaxPool(window=3, stride=1)(maps, num_samples=1).backward()
    assert maps.grad is not None and maps.grad.sum() == 1 and (maps.grad > 0).all()


def test_the_window_of_the_3d_convolution_sums_to_one_and_falls_off_as_a_gaussian() -> None:
    window = gaussian_window()
    assert window.sum().item() == pytest.approx(1)
    assert (window[1, 1, 0] / window[1, 1, 1]).item() == pytest.approx(2.718281828**-0.5)
    assert (window[0, 0, 0] / window[1, 1, 1]).item() == pytest.approx(2.718281828**-1.5)


def test_3d_convolution_starts_out_as_a_blurred_mix_of_both_towers() -> None:
    mixing = mixing_matrix(4, stacked=2, initialisation="official")
    conv = TimeConv(8, 4, mixing=mixing)
    still = torch.rand(1, 8, 1, 1).expand(5, 8, 6, 6)
    fused = conv(still, num_samples=1)
    # Inside the volume, a constant stays what it was, mixed 1 to 3.
    torch.testing.assert_close(fused[1:-1, :, 1:-1, 1:-1], (0.25 * still[:3, :4] + 0.75 * still[:3, 4:])[..., :4, :4])


def test_3d_convolution_keeps_samples_apart() -> None:
    conv = TimeConv(2, 2, mixing=torch.eye(2))
    first, second = torch.rand(2, 3, 2, 5, 5)
    together = conv(torch.cat([first, second]), num_samples=2)
    torch.testing.assert_close(together[:3], conv(first, num_samples=1))


def test_mean_scores_average_over_snippets_and_places() -> None:
    maps = torch.rand(2 * 3, 7, 2, 2)
    torch.testing.assert_close(mean_scores(maps, num_samples=2)[1], maps[3:].mean(dim=(0, 2, 3)))


def test_temporal_residual_filters_start_as_a_third_of_the_2d_filter_on_every_tap() -> None:
    pointwise = nn.Conv2d(4, 6, 1, bias=False)
    conv = TimeResidualConv(pointwise)
    for tap in range(3):
        torch.testing.assert_close(conv.conv.weight[:, :, tap], pointwise.weight / 3)


def test_temporal_residual_convolution_of_a_still_clip_loses_a_third_at_its_ends_only() -> None:
    pointwise = nn.Conv2d(4, 6, 1, bias=False)
    frame = torch.rand(1, 4, 3, 3)
    expected = pointwise(frame)
    convolved = TimeResidualConv(pointwise)(frame.expand(5, -1, -1, -1), num_samples=1)
    torch.testing.assert_close(convolved[1:4], expected.expand(3, -1, -1, -1))
    torch.testing.assert_close(convolved[[0, 4]], expected.expand(2, -1, -1, -1) * 2 / 3)


def test_residual_inception_adds_a_scaled_residual_that_sees_two_snippets_to_either_side() -> None:
    block = ResidualInception(6, branch_maps=4, residual_scale=0.2).eval()
    features = torch.rand(1, 6, 11)
    moved = features.clone()
    moved[:, :, 5] += 1
    changed = (block(moved) - block(features)).abs().amax(dim=(0, 1)) > 1e-6
    assert changed.nonzero().flatten().tolist() == [3, 4, 5, 6, 7]
    nn.init.zeros_(block.expansion.weight)
    torch.testing.assert_close(block(features), features)
