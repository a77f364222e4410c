import pytest

from twostream_ray.models.layers import counterpart, layer_specs


def layer_names(backbone: str) -> list[str]:
    return [spec.name for spec in layer_specs(backbone, width=None, in_channels=3, num_classes=101)]


@pytest.mark.parametrize(
    ("layer", "backbone", "other"),
    [
        ("relu5_3", "vgg16", "relu5_3"),
        ("relu5_3", "vgg_m_2048", "relu5"),
        ("relu5", "vgg16", "relu5_3"),
        ("relu5_3", "resnet50", "res5c_relu"),
        ("fc6", "vgg16", "fc6"),
    ],
)
def test_backbones_meet_at_the_end_of_a_stage(layer: str, backbone: str, other: str) -> None:
    assert counterpart(layer, among=layer_names(backbone)) == other


def test_only_the_classifiers_width_follows_the_classes() -> None:
    few, many = (list(layer_specs("resnet50", width=8, in_channels=20, num_classes=k)) for k in (2, 7))
    assert few[:-1] == many[:-1]
    assert (few[-1].name, few[-1].channels, many[-1].channels) == ("fc8", 2, 7)
