"""All of timm's networks: accepted ones score as timm's do, the others are refused in one line."""

import gc
import random

import pytest
import torch

from twostream_ray.errors import ConfigError
from twostream_ray.models.settings import TowerConfig
from twostream_ray.models.streams import build_tower
from twostream_ray.models.timm_networks import _names_in_order, layer_table
from twostream_ray.models.token_maps import grid

timm = pytest.importorskip("timm")

COMPARED = 40
LARGEST = 30_000_000
"""Parameters of a network that is compared by numbers."""


@pytest.fixture(scope="module")
def asked() -> tuple[dict[str, int], dict[str, str]]:
    """Parameters of the networks that are accepted, by name, and what is said of those that are not."""
    accepted, refused = {}, {}
    for name in timm.list_models():
        try:
            layer_table.__wrapped__(f"timm:{name}")
            with torch.device("meta"):
                accepted[name] = sum(one.numel() for one in timm.create_model(name).parameters())
        except ConfigError as error:
            refused[name] = str(error)
        _names_in_order.cache_clear()
        gc.collect()
    return accepted, refused


@pytest.mark.soak
@pytest.mark.timeout(7200)
def test_every_network_of_timm_is_accepted_or_refused_in_a_line_with_a_way_out(
    asked: tuple[dict[str, int], dict[str, str]],
) -> None:
    accepted, refused = asked
    if timm.__version__ == "1.0.31":
        assert (len(accepted), len(refused)) == (976, 395), "as docs/modern_towers.md says"
    for told in refused.values():
        assert "cannot be cut into layers: " in told and "plain vision transformers can" in told
        assert "\n" not in told and len(told) < 500


@pytest.mark.soak
@pytest.mark.timeout(7200)
def test_accepted_networks_score_as_timms_do_in_training_and_behind_it(
    asked: tuple[dict[str, int], dict[str, str]],
) -> None:
    small = sorted(name for name, parameters in asked[0].items() if parameters < LARGEST)
    for name in random.Random(7).sample(small, COMPARED):
        torch.manual_seed(0)
        theirs = timm.create_model(name, num_classes=7)
        with torch.no_grad():
            for one in theirs.parameters():  # scales that begin at 0 or 1 would hide what is left out
                one.add_(0.05 * torch.rand_like(one))
        tower = build_tower(TowerConfig(backbone=f"timm:{name}", dropout=0.0), in_channels=3, num_classes=7)
        tower.normalise = None  # the same input
        values = theirs.state_dict()
        assert set(tower.published.values()) == values.keys(), name
        tower.load_state_dict({own: values[its] for own, its in tower.published.items()})
        frames = torch.randn(2, *theirs.pretrained_cfg["input_size"])
        for is_training in (True, False):
            scores = []
            for network in (theirs.train(is_training), tower.train(is_training)):
                torch.manual_seed(1)
                with torch.no_grad():
                    scores.append(grid(network(frames)).flatten(1))
            scale = scores[0].abs().max().clamp(min=1.0)
            torch.testing.assert_close(scores[1] / scale, scores[0] / scale, rtol=0, atol=1e-5, msg=name)
