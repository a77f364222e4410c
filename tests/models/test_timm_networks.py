import copy
from typing import Any, ClassVar

import pytest
import torch
from small_networks import CONVNEXT, VIT
from torch import Tensor

from twostream_ray.errors import ConfigError, WeightsError
from twostream_ray.models.layers import IMAGENET_MEAN, IMAGENET_STD
from twostream_ray.models.settings import TowerConfig, layer_channels
from twostream_ray.models.streams import build_tower
from twostream_ray.models.timm_networks import _names_in_order, layer_table, modules_in_order
from twostream_ray.models.token_maps import TokenMaps, grid
from twostream_ray.models.towers import Tower

timm = pytest.importorskip("timm")

NETWORKS = ("test_convnext", "test_vit", "test_vit2", "test_vit3", "test_resnet", "test_efficientnet", "test_byobnet")
"""timm's own small networks: a class token, registers with averaging, attention pooling among the transformers."""
NORM_IN_CLASSIFIER = "efficientvit_m0"
PX = 96
pytestmark = pytest.mark.usefixtures("seeded")


def with_own_weights(name: str, *, num_classes: int) -> tuple[Tower, Any]:
    """A tower with the weights of timm's own module of the same name."""
    theirs = timm.create_model(name, num_classes=num_classes).eval()
    tower = build_tower(TowerConfig(backbone=f"timm:{name}", dropout=0.0), in_channels=3, num_classes=num_classes)
    values = theirs.state_dict()
    tower.load_state_dict({own: values[its] for own, its in tower.published.items()})
    return tower.eval(), theirs


@pytest.mark.parametrize("name", NETWORKS)
def test_a_tower_scores_as_the_network_of_timm(name: str) -> None:
    tower, theirs = with_own_weights(name, num_classes=5)
    frames = torch.randn(2, 3, 160, 160)
    tower.normalise = None  # the same input
    with torch.no_grad():
        features = theirs.forward_head(theirs.forward_features(frames))
        torch.testing.assert_close(grid(tower(frames)).flatten(1), features, rtol=0, atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize(
    "name", ("convnext_tiny", "vit_tiny_patch16_224", "resnet18", "swin_tiny_patch4_window7_224", NORM_IN_CLASSIFIER)
)
def test_a_tower_has_as_many_parameters_as_the_network_of_timm(name: str) -> None:
    with torch.device("meta"):
        tower = build_tower(TowerConfig(backbone=f"timm:{name}"), in_channels=3, num_classes=1000)
        theirs = timm.create_model(name)
    assert sum(p.numel() for p in tower.parameters()) == sum(p.numel() for p in theirs.parameters())
    assert set(tower.published.values()) == set(theirs.state_dict())


@pytest.mark.parametrize("name", NETWORKS)
def test_a_tower_run_in_two_parts_gives_what_it_gives_in_one(name: str) -> None:
    tower = build_tower(TowerConfig(backbone=f"timm:{name}"), in_channels=6, num_classes=4).eval()
    frames = torch.randn(2, 6, PX, PX)
    with torch.no_grad():
        whole = grid(tower(frames))
        for layer in tower.names[:-1]:
            half = tower(frames, upto=layer)
            torch.testing.assert_close(grid(tower(half, after=layer)), whole)
            assert grid(half).shape[1] == tower.channels[layer]


@pytest.mark.parametrize("name", ["test_convnext", "test_vit"])
def test_weights_do_not_depend_on_whether_the_layers_were_asked_for_before(name: str) -> None:
    def weights() -> list[Tensor]:
        torch.manual_seed(3)
        config = TowerConfig(backbone=f"timm:{name}", frozen_through="stem")
        return list(build_tower(config, in_channels=3, num_classes=2).parameters())

    layer_table.cache_clear()
    _names_in_order.cache_clear()
    assert all(torch.equal(first, second) for first, second in zip(weights(), weights(), strict=True))


@pytest.mark.slow
def test_layers_carry_timms_names_and_know_their_scale() -> None:
    assert [tuple(row) for row in layer_table("timm:convnext_tiny")] == [
        ("stem", 96, 4),
        ("stages_0", 96, 4),
        ("stages_1", 192, 8),
        ("stages_2", 384, 16),
        ("stages_3", 768, 32),
        ("norm_pre", 768, 32),
    ]
    assert [row.name for row in layer_table("timm:test_vit")] == ["stem", *(f"blocks_{i}" for i in range(6)), "norm"]
    assert list(layer_channels(CONVNEXT))[-3:] == ["pool5", "drop5", "fc8"]


@pytest.mark.slow
@pytest.mark.parametrize(("name", "reduction"), [("tf_efficientnetv2_s", 32), ("vit_small_patch14_dinov2", 14)])
def test_scales_are_whole_also_of_networks_for_frames_that_they_do_not_divide(name: str, reduction: int) -> None:
    assert layer_table(f"timm:{name}")[-1].reduction == reduction


def test_maps_with_channels_last_that_timm_does_not_tell_of_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"patch_embed returns .* for a square frame, no maps"):
        layer_table("timm:pvt_v2_b0")


def test_a_class_token_passes_the_fusion_and_the_grid_is_fused() -> None:
    tower = build_tower(VIT, in_channels=3, num_classes=4).eval()
    state = tower(torch.randn(2, 3, PX, PX), upto="blocks_2")
    assert isinstance(state, TokenMaps)
    assert state.maps.shape == (2, 64, PX // 16, PX // 16)
    assert state.prefix.shape == (2, 1, 64)


def test_frames_are_normalised_as_the_network_was_trained() -> None:
    tower = build_tower(CONVNEXT, in_channels=3, num_classes=4)
    assert tower.normalise is not None, "timm's small ConvNeXt wants mean and deviation of a half"
    levels = torch.rand(1, 3, PX, PX)

    def normalised(mean: tuple[float, ...], deviation: tuple[float, ...]) -> Tensor:
        return (levels - torch.tensor(mean)[:, None, None]) / torch.tensor(deviation)[:, None, None]

    given = normalised(IMAGENET_MEAN, IMAGENET_STD)
    torch.testing.assert_close(tower.normalise(given), normalised((0.5,) * 3, (0.5,) * 3))
    assert build_tower(CONVNEXT, in_channels=20, num_classes=4).normalise is None, "flow is no colour"
    imagenets = build_tower(TowerConfig(backbone="timm:test_resnet"), in_channels=3, num_classes=4)
    wants_imagenets = tuple(timm.create_model("test_resnet").pretrained_cfg["mean"]) == IMAGENET_MEAN
    assert (imagenets.normalise is None) == wants_imagenets


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"backbone": "timm:convnext_tiny", "width": 8}, "leave it out"),
        ({"backbone": "timm:convnext_tiny", "weights": "imagenet"}, "weights=timm"),
        ({"backbone": "vgg16", "weights": "timm"}, "need a backbone timm:NAME"),
        ({"backbone": "vgg16", "drop_path": 0.1}, "need a backbone timm:NAME"),
        ({"backbone": "convnext_tiny"}, "timm:convnext_tiny"),
        ({"backbone": "timm:test_vit", "frozen_through": "stages_0"}, "its layers are stem, blocks_0"),
    ],
)
def test_settings_that_do_not_go_are_refused_with_a_way_out(settings: dict[str, object], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        build_tower(TowerConfig(**settings), in_channels=3, num_classes=2)


class _Chain(torch.nn.Module):
    """A network whose features are a chain, unless a subclass computes something else."""

    pretrained_cfg: ClassVar = {"input_size": (3, 32, 32), "mean": IMAGENET_MEAN, "std": IMAGENET_STD}

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.stage = torch.nn.Conv2d(3, 8, 3, padding=1), _Scaled(8, 8, 3, padding=1)
        self.fc = torch.nn.Linear(8, 2)

    def get_classifier(self) -> torch.nn.Linear:
        return self.fc

    def forward_features(self, frames: Tensor) -> Tensor:
        return self.stage(self.stem(frames))


class _Scaled(torch.nn.Conv2d):
    def forward(self, maps: Tensor, by: Tensor | None = None) -> Tensor:
        return super().forward(maps if by is None else maps * by)


class _Between(_Chain):
    def forward_features(self, frames: Tensor) -> Tensor:
        return self.stage(self.stem(frames) + 1)


class _Before(_Chain):
    def forward_features(self, frames: Tensor) -> Tensor:
        return self.stage(self.stem(2 * frames))


class _Behind(_Chain):
    def forward_features(self, frames: Tensor) -> Tensor:
        return super().forward_features(frames) + 1


class _Beside(_Chain):
    def forward_features(self, frames: Tensor) -> Tensor:
        return self.stage(self.stem(frames), by=frames.mean())


class _Twice(_Chain):
    def forward_features(self, frames: Tensor) -> Tensor:
        return self.stage(super().forward_features(frames))


def test_a_chain_of_modules_is_named_in_its_order() -> None:
    with torch.device("meta"):
        assert modules_in_order(_Chain(), backbone="timm:chain") == ("stem", "stage")


@pytest.mark.parametrize(
    ("network", "said"),
    [
        (_Between, "stage takes something else than what stem returns"),
        (_Before, "stem takes something else than the frames"),
        (_Behind, "returns no maps behind stage"),
        (_Beside, "stage takes something else than what stem returns"),
        (_Twice, "do not run once each"),
    ],
)
def test_a_network_that_computes_beside_its_modules_is_refused(network: type[_Chain], said: str) -> None:
    with pytest.raises(ConfigError, match=f"cannot be cut into layers: .*{said}"), torch.device("meta"):
        modules_in_order(network(), backbone="timm:branched")


def test_a_network_that_cannot_be_taken_apart_is_refused_in_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(timm, "create_model", lambda *_, **__: _Chain())
    _names_in_order.cache_clear()
    with pytest.raises(ConfigError, match="cannot be cut into layers: taken apart it ends with AttributeError") as told:
        layer_table.__wrapped__("timm:resnet18")
    assert "\n" not in str(told.value)
    _names_in_order.cache_clear()


def test_the_first_filters_of_a_temporal_tower_are_the_rgb_filters_averaged(monkeypatch: pytest.MonkeyPatch) -> None:
    published = timm.create_model("test_vit")

    def create(name: str, *, in_chans: int, pretrained: bool, **_: object) -> torch.nn.Module:
        assert (name, in_chans, pretrained) == ("test_vit", 3, True), "the published network is one for RGB"
        return copy.deepcopy(published)

    monkeypatch.setattr(timm, "create_model", create)
    config = TowerConfig(backbone="timm:test_vit", weights="timm")
    temporal = build_tower(config, in_channels=20, num_classes=4)
    filters = published.patch_embed.proj.weight
    widened = next(weights for weights in temporal.parameters() if weights.dim() == 4)
    assert widened.shape == (64, 20, 16, 16)
    for field in range(20):
        torch.testing.assert_close(widened[:, field], filters.mean(dim=1))
    spatial = build_tower(config, in_channels=3, num_classes=4)
    torch.testing.assert_close(next(w for w in spatial.parameters() if w.dim() == 4), filters)


@pytest.mark.parametrize("kind", ["safetensors", "pth"])
@pytest.mark.parametrize("in_channels", [3, 20])
def test_a_file_of_timms_state_dict_starts_a_tower(kind: str, in_channels: int) -> None:
    import io

    import safetensors.torch

    theirs = timm.create_model("test_convnext", num_classes=4)
    buffer = io.BytesIO()
    torch.save(theirs.state_dict(), buffer)
    content = safetensors.torch.save(theirs.state_dict()) if kind == "safetensors" else buffer.getvalue()
    config = TowerConfig(backbone="timm:test_convnext", weights="s3://bucket/weights")
    tower = build_tower(config, in_channels=in_channels, num_classes=4, read_bytes=lambda _: content)
    values, own = theirs.state_dict(), tower.state_dict()
    first = next(name for name, weights in own.items() if weights.dim() == 4)
    for name, its in tower.published.items():
        if name != first:
            torch.testing.assert_close(own[name], values[its])
    wanted = values[tower.published[first]]
    torch.testing.assert_close(
        own[first], wanted if in_channels == 3 else wanted.mean(1, keepdim=True).repeat(1, 20, 1, 1)
    )


def test_weights_of_another_network_are_refused() -> None:
    import safetensors.torch

    content = safetensors.torch.save(timm.create_model("test_resnet").state_dict())
    config = TowerConfig(backbone="timm:test_convnext", weights="other.safetensors")
    with pytest.raises(WeightsError, match="do not fit timm:test_convnext, which wants"):
        build_tower(config, in_channels=3, num_classes=4, read_bytes=lambda _: content)


def test_stochastic_depth_passes_by_blocks_in_training_alone() -> None:
    config = TowerConfig(backbone="timm:test_convnext", dropout=0.0, drop_path=0.9)
    tower = build_tower(config, in_channels=3, num_classes=4)
    frames = torch.randn(4, 3, PX, PX)
    with torch.no_grad():
        assert not torch.equal(grid(tower.train()(frames)), grid(tower(frames)))
        assert torch.equal(grid(tower.eval()(frames)), grid(tower(frames)))
