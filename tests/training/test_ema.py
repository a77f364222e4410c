import pytest
import torch

from twostream_ray.models.build import Network, build_network
from twostream_ray.models.settings import ModelConfig, TowerConfig
from twostream_ray.training.ema import WeightEma


def network() -> Network:
    torch.manual_seed(0)
    tower = TowerConfig(backbone="vgg_small", width=4)
    return build_network(
        ModelConfig(architecture="late", streams="spatial", spatial=tower), num_classes=2, flow_length=2
    )


def test_the_average_of_still_weights_is_the_weights() -> None:
    still = network()
    average = WeightEma(still, decay=0.9)
    before = [weight.clone() for weight in still.parameters()]
    for step in range(3):
        average.update(step)
    with average.in_place():
        torch.testing.assert_close(list(still.parameters()), before)


def test_a_jump_of_the_weights_decays_into_the_average_and_the_weights_come_back_behind_it() -> None:
    jumping = network()
    average = WeightEma(jumping, decay=0.9)
    start = jumping.get_parameter("spatial.conv1.bias").clone()
    with torch.no_grad():
        jumping.get_parameter("spatial.conv1.bias").add_(1.0)
    for step in range(1000, 1003):
        average.update(step)
    with average.in_place():
        torch.testing.assert_close(jumping.get_parameter("spatial.conv1.bias"), start + 1 - 0.9**3)
    torch.testing.assert_close(jumping.get_parameter("spatial.conv1.bias"), start + 1, rtol=0, atol=0)


def test_early_steps_count_more() -> None:
    jumping = network()
    average = WeightEma(jumping, decay=0.999)
    start = jumping.get_parameter("spatial.conv1.bias").clone()
    with torch.no_grad():
        jumping.get_parameter("spatial.conv1.bias").add_(1.0)
    average.update(0)
    with average.in_place():
        torch.testing.assert_close(jumping.get_parameter("spatial.conv1.bias"), start + 0.9)


def test_the_weights_come_back_from_an_error() -> None:
    network_ = network()
    average = WeightEma(network_, decay=0.5)
    with torch.no_grad():
        network_.get_parameter("spatial.conv1.bias").add_(1.0)
    own = network_.get_parameter("spatial.conv1.bias").clone()
    with pytest.raises(KeyError), average.in_place():
        raise KeyError
    torch.testing.assert_close(network_.get_parameter("spatial.conv1.bias"), own, rtol=0, atol=0)
