from dataclasses import replace
from pathlib import Path

import pytest
import torch

from twostream_ray.models.description import count_parameters
from twostream_ray.models.networks import ModelConfig, Network, build_network
from twostream_ray.runs.config import ExperimentConfig
from twostream_ray.settings import from_arguments

RECIPES = {path.stem: path for path in (Path(__file__).resolve().parents[1] / "jobs/recipes").glob("*.yaml")}
PAPERS = ("two_stream_2014", "fusion_2016", "st_resnet_2016", "stfn_2018")


def loaded(recipe: str) -> ExperimentConfig:
    return from_arguments(ExperimentConfig, ["--config", str(RECIPES[recipe]), "--data.shards", "mine"])


def on_paper(config: ExperimentConfig) -> Network:
    """The network for UCF101, without memory behind its parameters and without its pretrained weights."""
    with torch.device("meta"):
        return build_network(
            config.model, num_classes=101, flow_length=config.data.sampling.flow_length, pretrained=False
        )


def test_every_paper_has_its_recipe() -> None:
    assert RECIPES.keys() >= set(PAPERS)


@pytest.mark.parametrize("recipe", RECIPES)
def test_a_sample_of_the_recipe_goes_through_its_network(recipe: str) -> None:
    config = loaded(recipe)
    assert (config.name, config.data.shards) == (recipe, "mine")
    assert config.training.global_batch % config.data.lanes == 0
    if config.training.schedule == "steps":
        assert max(config.training.step_epochs) < config.training.epochs
    num_snippets, size = config.data.sampling.num_snippets, config.data.transforms.crop_px
    with torch.device("meta"):
        rgb = torch.empty(1, num_snippets, 3, size, size)
        flow = torch.empty(1, num_snippets, 2 * config.data.sampling.flow_length, size, size)
    network = on_paper(config)
    assert network.scores(network(rgb, flow)).shape == (1, 101)


@pytest.mark.parametrize(
    ("recipe", "parameters"),
    [("two_stream_2014", 181_335_594), ("fusion_2016", 283_514_762), ("st_resnet_2016", 58_624_394)],
)
def test_a_recipe_has_the_parameters_of_the_papers_network(recipe: str, parameters: int) -> None:
    assert count_parameters(on_paper(loaded(recipe))) == parameters


def test_the_default_model_is_that_of_fusion_2016_without_a_download() -> None:
    model = loaded("fusion_2016").model
    assert (model.spatial.weights, model.temporal.weights) == ("imagenet", "imagenet")
    towers = {"spatial": replace(model.spatial, weights=None), "temporal": replace(model.temporal, weights=None)}
    assert replace(model, **towers) == ModelConfig()


def test_of_the_spatial_tower_of_2014_only_the_last_layer_learns() -> None:
    learning = {name for name, p in on_paper(loaded("two_stream_2014")).named_parameters() if p.requires_grad}
    assert {name for name in learning if name.startswith("spatial")} == {"spatial.fc8.weight", "spatial.fc8.bias"}
    assert "temporal.conv1.weight" in learning


def test_the_schedule_of_2014_is_its_80000_steps_in_passes_over_split_1() -> None:
    training = loaded("two_stream_2014").training
    steps_per_pass = 9537 / training.global_batch
    for passes, steps in zip((*training.step_epochs, training.epochs), (50_000, 70_000, 80_000), strict=True):
        assert passes == round(steps / steps_per_pass)
