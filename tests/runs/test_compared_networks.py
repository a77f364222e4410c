from pathlib import Path
from typing import get_args

import pytest

from twostream_ray.data.sources.synthetic import Group
from twostream_ray.models.build import build_network
from twostream_ray.runs import findings
from twostream_ray.runs.compared_networks import comparisons
from twostream_ray.runs.settings import FindingsConfig, Towers


@pytest.mark.parametrize("towers", get_args(Towers))
def test_every_contestant_of_a_contest_has_the_same_videos_and_budget_and_can_be_built(towers: Towers) -> None:
    for comparison in comparisons(towers).values():
        assert len(comparison.networks) >= 4
        for model in comparison.networks.values():
            network = build_network(model, num_classes=4, flow_length=comparison.sampling.flow_length)
            assert sum(parameter.numel() for parameter in network.parameters()) > 10_000


def test_one_tower_above_an_early_fusion_has_about_half_the_parameters_of_late() -> None:
    networks = comparisons()["binding"].networks

    def parameters(name: str) -> int:
        network = build_network(networks[name], num_classes=4, flow_length=10)
        return sum(parameter.numel() for parameter in network.parameters())

    share = parameters("conv at relu1, one tower above") / parameters("late: scores averaged")
    assert share == pytest.approx(0.5, abs=0.06)


@pytest.mark.soak
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("group", ["binding", "order"])
@pytest.mark.parametrize("kind", ["ConvNeXt", "ViT"])
def test_modern_towers_find_what_the_papers_found(group: Group, kind: str, tmp_path: Path) -> None:
    """One seed of `findings --towers modern`: fused at least 90 %, late at most 60."""
    comparison = comparisons("modern")[group]
    shards = findings.prepare(FindingsConfig(out=str(tmp_path)), comparison, progress=lambda *_: None)
    top1 = {}
    for network in comparison.networks:
        if network.startswith(kind):
            top1[network] = findings._train_one(group, network, 0, shards, "modern")["top1"]
    (late,) = (value for name, value in top1.items() if "late" in name)
    (fused,) = (value for name, value in top1.items() if "conv at" in name)
    assert late <= 0.6 and fused >= 0.9
