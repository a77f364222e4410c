import json
import re
from pathlib import Path

import pytest
from pages import ROOT

from twostream_ray import cli
from twostream_ray.console import console
from twostream_ray.runs.experiment import ExperimentConfig
from twostream_ray.training.settings import TrainingConfig
from twostream_ray.verbs.commands import parse

SMALL = [
    "--model.architecture=late",
    "--model.spatial.backbone=vgg_small",
    "--model.temporal.backbone=vgg_small",
    "--size_px=32",
]


@pytest.mark.parametrize("switch", ["--json", "--format=json"])
def test_json_has_the_numbers_of_the_network(capsys: pytest.CaptureFixture[str], switch: str) -> None:
    assert cli.main(["describe", "--model.temporal.backbone=vgg_m_2048", switch]) == 0
    described = json.loads(capsys.readouterr().out)
    # VGG-16 134,674,341, VGG-M 90,707,781 with 20 flow channels, 3D convolution 27 x 1024 x 512 + 512.
    assert described["parameters"] == 134_674_341 + 90_707_781 + 14_156_288
    assert described["weight_layers"] == 16 + 8 + 1
    assert described["gradient_bytes"] == 4 * described["parameters"]
    assert {"gflops_forward", "activation_bytes", "parts"} < described.keys()
    assert described["parts"]["temporal"]["weight_layers"] == 8
    assert described["parts"]["fusions"]["layers"] == {"relu5_3": [5, 1024, 14, 14]}


def test_text_shows_parts_totals_and_the_shape_of_each_layer(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(console, "width", 120)
    assert cli.main(["describe", *SMALL, "--num_snippets=3", "--model.head_classes=[7,4]"]) == 0
    out = capsys.readouterr().out
    rows = {line.split()[1]: line for line in out.splitlines() if line.startswith("│")}
    assert "11" in rows["spatial.fc8"] and "3 x 11 x 1 x 1" in rows["spatial.fc8"]
    assert "3 x 32 x 16 x 16" in rows["temporal.relu1"]
    assert rows["all"].split()[-2] == "10"
    assert "GFLOPs forward" in out and "bytes of activations" in out


def test_groups_of_parameters_have_their_share_of_the_rate_and_a_recipe_says_which(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text("training: {optimiser: adamw, layer_decay: 0.5, epochs: 3}\n")

    def groups(*arguments: str) -> dict[str, tuple[int, float, bool]]:
        assert cli.main(["describe", *SMALL, "--model.streams=spatial", "--num_classes=7", "--json", *arguments]) == 0
        described = json.loads(capsys.readouterr().out)
        assert 4 * sum(group["parameters"] for group in described["parameter_groups"]) == described["gradient_bytes"]
        return {one["name"]: (one["parameters"], one["rate"], one["decays"]) for one in described["parameter_groups"]}

    assert {name: group[1:] for name, group in groups().items()} == {
        "weights": (1.0, True),
        "biases": (2.0, False),
        "without decay": (1.0, False),
    }
    modern = groups("--config", str(recipe))
    assert modern["weights under 0 layers"] == (64 * 7, 1.0, True)
    assert modern["weights under 4 layers"] == (32 * 3 * 9, 0.5**4, True)
    assert modern["without decay under 4 layers"] == (3 * 32, 0.5**4, False)
    assert cli.main(["describe", *SMALL, "--config", str(recipe)]) == 0
    assert "parameter groups of adamw" in capsys.readouterr().out


def test_frames_too_small_are_refused_in_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["describe", "--size_px=96"]) == 2
    assert "use larger" in capsys.readouterr().err
    assert cli.main(["describe", "--num_snippets=0"]) == 2
    assert "num_snippets must be at least 1, got 0" in capsys.readouterr().err


def training_of(recipe: str) -> TrainingConfig:
    return parse("train", ExperimentConfig, ["mine", "--config", recipe]).training


_ROWS = re.findall(
    r"^\| `(\w+)` \|((?: [\d,.]+ \|){8})$", (ROOT / "docs/choosing_settings.md").read_text(), re.MULTILINE
)


@pytest.mark.slow
@pytest.mark.parametrize(("recipe", "row"), _ROWS, ids=[recipe for recipe, _ in _ROWS])
def test_the_costs_of_recipes_in_the_docs_are_what_describe_says(
    capsys: pytest.CaptureFixture[str], recipe: str, row: str
) -> None:
    assert cli.main(["describe", "--config", recipe, "--json"]) == 0
    said = json.loads(capsys.readouterr().out)
    # Weights, gradients and the optimiser's moments.
    kept, weights = said["activation_bytes"], (2 + training_of(recipe).num_moments) * said["gradient_bytes"]
    assert [cell.strip() for cell in row.split("|")[:-1]] == [
        f"{said['parameters']:,}",
        f"{said['gflops_forward']:.2f}",
        f"{kept / 1e6:.0f}",
        *(str(int((0.9e9 * memory - weights) // kept)) for memory in (12, 16, 24, 40, 80)),
    ]


def test_the_docs_have_the_costs_of_every_recipe_of_a_network() -> None:
    assert {recipe for recipe, _ in _ROWS} == {
        *("own_videos_cpu", "own_videos_gpu", "two_stream_2014", "fusion_2016", "st_resnet_2016", "stfn_2018"),
        *("convnext_fusion", "convnext_fusion_small"),
    }
