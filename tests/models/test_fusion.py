import pytest
import torch

from twostream_ray.errors import ConfigError
from twostream_ray.models.fusion import BilinearFusion, ConcatFusion, ConvFusion, MaxFusion, SumFusion, build_fusion
from twostream_ray.models.settings import FusionConfig


def test_sum_and_max_fusion_are_map_by_map() -> None:
    spatial, temporal = torch.randn(2, 3, 8, 5, 5)
    assert torch.equal(SumFusion()(spatial, temporal), spatial + temporal)
    assert torch.equal(MaxFusion()(spatial, temporal), torch.where(spatial > temporal, spatial, temporal))


def test_concat_fusion_stacks_the_spatial_maps_first() -> None:
    spatial, temporal = torch.randn(2, 3, 8, 5, 5)
    stacked = ConcatFusion()(spatial, temporal)
    assert torch.equal(stacked[:, :8], spatial)
    assert torch.equal(stacked[:, 8:], temporal)


def test_conv_fusion_starts_out_as_sum_fusion() -> None:
    spatial, temporal = torch.rand(2, 3, 8, 5, 5)
    torch.testing.assert_close(ConvFusion(8)(spatial, temporal), spatial + temporal)


def test_official_conv_fusion_starts_out_with_three_times_the_weight_on_motion() -> None:
    spatial, temporal = torch.rand(2, 3, 8, 5, 5)
    fused = ConvFusion(8, initialisation="official")(spatial, temporal)
    torch.testing.assert_close(fused, 0.25 * spatial + 0.75 * temporal)


def test_gaussian_conv_fusion_starts_out_at_one_hundredth() -> None:
    torch.manual_seed(0)
    fusion = ConvFusion(64, initialisation="gaussian")
    assert fusion.mix.weight.std().item() == pytest.approx(0.01, rel=0.05)
    assert not fusion.mix.bias.any()


def test_conv_fusion_rectifies_features_but_not_scores() -> None:
    spatial, temporal = -torch.rand(2, 1, 4, 2, 2)
    assert not ConvFusion(4)(spatial, temporal).any()
    assert (ConvFusion(4, rectifies=False)(spatial, temporal) < 0).all()


def test_bilinear_fusion_is_the_sum_of_outer_products_rooted_and_normalised() -> None:
    spatial, temporal = torch.randn(2, 2, 3, 4, 4)
    fused = BilinearFusion()(spatial, temporal)
    products = sum(spatial[0, :, i, j, None] * temporal[0, None, :, i, j] for i in range(4) for j in range(4)).flatten()
    expected = products.sign() * products.abs().sqrt()
    assert fused.shape == (2, 9, 1, 1)
    torch.testing.assert_close(fused[0].flatten(), expected / expected.norm(), atol=1e-4, rtol=1e-4)


def test_bilinear_fusion_of_rectified_maps_has_finite_gradients() -> None:
    spatial = torch.zeros(1, 3, 2, 2, requires_grad=True)
    BilinearFusion()(spatial, torch.zeros(1, 3, 2, 2)).sum().backward()
    assert spatial.grad is not None
    assert spatial.grad.isfinite().all()


@pytest.mark.parametrize("method", ["sum", "max", "concat", "conv"])
def test_maps_that_differ_by_one_get_a_zero_row_and_column_at_the_bottom_right(method: str) -> None:
    fusion = build_fusion(FusionConfig(method=method), num_channels=2)
    spatial, temporal = torch.rand(1, 2, 14, 14), torch.rand(1, 2, 13, 13)
    padded = torch.zeros(1, 2, 14, 14)
    padded[:, :, :13, :13] = temporal
    torch.testing.assert_close(fusion(spatial, temporal), fusion(spatial, padded))
    torch.testing.assert_close(fusion(temporal, spatial), fusion(padded, spatial))


def test_maps_that_differ_by_more_are_refused_with_both_sizes() -> None:
    with pytest.raises(ConfigError, match=r"spatial \(14, 14\) and temporal \(12, 12\)"):
        SumFusion()(torch.rand(1, 2, 14, 14), torch.rand(1, 2, 12, 12))
