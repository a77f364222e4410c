"""docs/modern_towers.md: its commands, and what it says of timm's networks."""

import re
import shlex
from collections.abc import Iterator

import pytest
from pages import ROOT, fenced_blocks

from twostream_ray import cli
from twostream_ray.models.settings import ModelConfig, TowerConfig, layer_channels, layer_reductions

pytest.importorskip("timm")

PAGE = (ROOT / "docs/modern_towers.md").read_text()
BLOCKS = fenced_blocks(PAGE)
NETWORKS = re.findall(r"^\| `(\w+)` \| (.*) \| (\d+) at (.*) \|$", PAGE, re.MULTILINE)


def commands(*, pasted: bool) -> Iterator[list[str]]:
    """The `twostream` commands of the page, as a shell splits them."""
    for block in BLOCKS:
        if (block.reason is None) == pasted:
            for line in block.code.replace("\\\n", " ").splitlines():
                words = shlex.split(line, comments=True) if line.startswith("twostream") else []
                if words:
                    yield words[1:]


@pytest.mark.slow
@pytest.mark.parametrize("command", list(commands(pasted=True)), ids=" ".join)
def test_a_network_that_the_page_describes_can_be_described(
    command: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert command[0] == "describe"
    assert cli.main(command) == 0
    assert "GFLOPs forward" in capsys.readouterr().out


@pytest.mark.parametrize("command", list(commands(pasted=False)), ids=" ".join)
def test_a_command_that_wants_shards_asks_for_them_and_for_no_other_spelling(
    command: list[str],
    capsys: pytest.CaptureFixture[str],
    tmp_path_factory: pytest.TempPathFactory,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path_factory.mktemp("empty"))
    assert command[0] == "train" and cli.main(command) == 2
    assert re.search(r"shards|no such|does not exist", said := capsys.readouterr().err) and "unknown" not in said, said


@pytest.mark.slow
@pytest.mark.parametrize(("name", "layers", "maps", "where"), NETWORKS, ids=[row[0] for row in NETWORKS])
def test_layers_and_maps_are_those_that_the_page_names(name: str, layers: str, maps: str, where: str) -> None:
    tower = TowerConfig(backbone=f"timm:{name}")
    channels, reductions = layer_channels(tower), layer_reductions(tower)
    named = []
    for part in layers.split(", "):
        ends = re.findall(r"`(\w+)`", part)
        if len(ends) == 1:
            named += ends
        else:
            stem, first = re.fullmatch(r"(\D+?)(\d+)", ends[0]).groups()
            named += [f"{stem}{number}" for number in range(int(first), int(ends[1].removeprefix(stem)) + 1)]
    assert named == list(channels)[:-3]
    at = [layer for layer in named if reductions[layer] == 16]
    assert {channels[layer] for layer in at[-1:]} == {int(maps)}
    assert (where == "every layer" and at == named) or f"`{at[-1]}`" == where


@pytest.mark.slow
@pytest.mark.parametrize("name", re.findall(r"\(`(\w+)`, `(\w+)`\)", PAGE)[0])
def test_a_network_that_is_no_chain_is_refused_as_the_page_says(name: str) -> None:
    from twostream_ray.errors import ConfigError

    with pytest.raises(ConfigError, match="cannot be cut into layers"):
        layer_channels(TowerConfig(backbone=f"timm:{name}"))


def test_values_of_the_recipe_in_the_table_of_settings_are_the_recipes() -> None:
    from twostream_ray.runs.experiment import ExperimentConfig
    from twostream_ray.verbs.commands import parse

    config = parse("train", ExperimentConfig, ["mine", "--config", "convnext_fusion"])
    rows = re.findall(r"^\| (`(?:training|model)\..*`) \| .* \| (`.*`) \|$", PAGE, re.MULTILINE)
    assert len(rows) == 8
    for names, values in rows:
        for name, value in zip(re.findall(r"`([\w.]+)`", names), re.findall(r"`([\w.]+)`", values), strict=True):
            found: object = config
            for part in (name if "." in name else f"training.{name}").split("."):
                found = getattr(found, part)
            assert found == (type(found)(value) if isinstance(found, float | int) else value), name


def test_a_model_asks_for_timm_where_a_tower_is_of_timm_alone() -> None:
    own, modern = TowerConfig(backbone="vgg_small"), TowerConfig(backbone="timm:test_convnext")
    late = {"architecture": "late", "spatial": own}
    assert ModelConfig(**late, temporal=modern).libraries == ("timm",)
    assert ModelConfig(**late, temporal=own).libraries == ()
    assert ModelConfig(**late, temporal=modern, streams="spatial").libraries == ()
