import pytest
import torch

from twostream_ray.errors import ConfigError, WeightsError
from twostream_ray.models.settings import TowerConfig
from twostream_ray.models.streams import build_tower
from twostream_ray.models.timm_registry import known_name, require_published

timm = pytest.importorskip("timm")


@pytest.mark.parametrize(
    ("backbone", "said"),
    [
        ("timm:convnext_tinny", r"knows no network 'convnext_tinny'; near it are convnext_tiny"),
        ("timm:ResNet18", r"knows no network 'ResNet18'; near it are resnet18,"),
        ("timm: resnet18 ", r"near it are resnet18,"),
        ("timm:resnet18/..", r"near it are resnet18,"),
        ("timm:", r"knows no network ''; timm.list_models\(\) names all$"),
        ("timm:.resnet18", r"knows no network '.resnet18'; timm.list_models"),
        ("timm:hf-hub:timm/resnet18", "knows no network"),
        ("timm:resnet18.nope", r"no weights 'nope' of resnet18: leave .nope out, or take one of .*tv_in1k"),
        ("timm:resnet18.", r"no weights '' of resnet18: leave . out"),
    ],
)
def test_a_name_that_timm_does_not_know_is_refused_with_those_near_it(backbone: str, said: str) -> None:
    with pytest.raises(ConfigError, match=said) as told:
        known_name(backbone)
    assert "\n" not in str(told.value)


@pytest.mark.parametrize("name", ["resnet18", "resnet18.tv_in1k", "convnext_tiny.fb_in22k", "regnetz_005.untrained"])
def test_names_and_tags_of_timm_are_known(name: str) -> None:
    assert known_name(f"timm:{name}") == name


def test_weights_that_timm_does_not_publish_are_refused_without_asking_a_server() -> None:
    require_published("timm:test_vit")
    with pytest.raises(WeightsError, match=r"timm:regnetz_005: timm .* publishes none: leave weights out, name a file"):
        build_tower(TowerConfig(backbone="timm:regnetz_005", weights="timm"), in_channels=3, num_classes=2)


def test_a_network_without_stochastic_depth_is_refused_where_some_is_wanted() -> None:
    with pytest.raises(ConfigError, match="timm:vgg11 takes no drop_path"), torch.device("meta"):
        build_tower(TowerConfig(backbone="timm:vgg11", drop_path=0.1), in_channels=3, num_classes=2)


def test_published_weights_that_cannot_be_had_are_said_with_both_ways_to_bring_them(
    monkeypatch: pytest.MonkeyPatch, tmp_path: object
) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")

    def unreachable(*_: object, **__: object) -> None:
        raise OSError("no network")

    monkeypatch.setattr(timm, "create_model", unreachable)
    config = TowerConfig(backbone="timm:convnext_tiny", weights="timm")
    with pytest.raises(WeightsError, match=r"neither from the cache nor from the network .*HF_HOME.* as weights"):
        build_tower(config, in_channels=3, num_classes=4)
