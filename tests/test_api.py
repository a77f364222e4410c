import ast
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from noise_shards import noise_shards

import twostream_ray as ts
from twostream_ray.data.shards.shards import ShardSet

ROOT = Path(__file__).resolve().parents[1]
SMALL = {
    "name": "small",
    "data": {
        "shards": "shards",
        "sampling": {"num_snippets": 2, "flow_length": 4, "min_stride_frames": 1, "max_stride_frames": 3},
        "transforms": {"crop_px": 32},
    },
    "model": {
        "spatial": {"backbone": "vgg_small", "width": 4},
        "temporal": {"backbone": "vgg_small", "width": 4},
        "fusion": {"layers": ["relu3"], "temporal": "pool2d"},
    },
}
"""A recipe's values."""


@pytest.fixture(scope="module")
def shard_set(tmp_path_factory: pytest.TempPathFactory) -> ShardSet:
    return noise_shards(str(tmp_path_factory.mktemp("api")), rows=(5, 9), num_fields=12, video=True)


def test_the_import_is_light_and_every_name_is_there() -> None:
    code = (
        "import sys; before = set(sys.modules); import twostream_ray as ts; "
        "print(sorted({name.partition('.')[0] for name in set(sys.modules) - before} - sys.stdlib_module_names), "
        "set(ts.__all__) <= set(dir(ts)))"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout == "['twostream_ray'] True\n"
    assert all(hasattr(ts, name) for name in ts.__all__)


def test_checkers_see_the_names_that_the_package_gives() -> None:
    tree = ast.parse((ROOT / "twostream_ray/__init__.py").read_text())
    block, _ = [node for node in tree.body if isinstance(node, ast.If)]
    seen = {alias.name for node in block.body if isinstance(node, ast.ImportFrom) for alias in node.names}
    assert seen | {"__version__"} == set(ts.__all__)
    assert (ROOT / "twostream_ray/py.typed").exists()
    for name in seen:
        assert getattr(ts, name).__doc__, name


def test_a_name_that_is_not_there_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="module 'twostream_ray' has no attribute 'nothing'"):
        getattr(ts, "nothing")  # noqa: B009  (mypy knows that it is not there)


def test_a_network_of_a_recipe_goes_through_a_plain_training_loop(shard_set: ShardSet) -> None:
    network = ts.network(SMALL, num_classes=3, seed=0)
    assert isinstance(network, torch.nn.Module) and network.training
    optimiser = torch.optim.SGD(network.parameters(), lr=0.01)
    loader = ts.loader(shard_set, batch=7, recipe=SMALL)
    before = [parameter.clone() for parameter in network.parameters()]
    for batch in loader:
        outputs = network(batch.rgb, batch.flow)
        loss = sum(torch.nn.functional.cross_entropy(logits, batch.labels) for logits in outputs.values())
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        shares = network.probabilities(outputs)
        assert shares.shape == (7, 3) and torch.allclose(shares.sum(dim=1), torch.ones(7))
    assert any(not torch.equal(one, parameter) for one, parameter in zip(before, network.parameters(), strict=True))


def test_a_seed_fixes_the_network_and_leaves_torchs_own_state_alone() -> None:
    torch.manual_seed(5)
    state = torch.random.get_rng_state()
    first, second = (ts.network(SMALL, num_classes=3, seed=1).state_dict() for _ in range(2))
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert torch.equal(torch.random.get_rng_state(), state)
    other = ts.network(SMALL, num_classes=3, seed=2).state_dict()
    assert any(not torch.equal(first[name], other[name]) for name in first)


def test_a_recipe_is_a_path_its_values_or_finished_settings(tmp_path: Path) -> None:
    import json

    path = tmp_path / "small.yaml"
    path.write_text(json.dumps(SMALL))
    settings = [ts.experiment_config(one) for one in (path, str(path), SMALL)]
    assert settings[0] == settings[1] == settings[2] == ts.experiment_config(settings[0])
    assert isinstance(settings[0], ts.ExperimentConfig)


def test_a_recipe_of_the_package_is_found_by_its_name() -> None:
    assert ts.experiment_config("fusion_2016", data={"shards": "mine"}).model.fusion.layers == ("relu5_3",)
    small = {"backbone": "vgg_small", "width": 4, "weights": None}
    towers = {"spatial": small, "temporal": small, "fusion": {"layers": ["relu4"]}}
    network = ts.network("fusion_2016", num_classes=3, model=towers)
    rgb, flow = torch.zeros(1, 5, 3, 64, 64), torch.zeros(1, 5, 20, 64, 64)
    assert {name: logits.shape for name, logits in network(rgb, flow).items()} == {"fused": (1, 3), "temporal": (1, 3)}


def test_changes_are_laid_over_a_recipe_and_leave_the_rest_as_it_is() -> None:
    plain = ts.experiment_config(SMALL)
    for recipe in (SMALL, plain):
        changed = ts.experiment_config(
            recipe, seed=3, training={"epochs": 2}, data={"shards": "mine", "transforms": {"flip": False}}
        )
        assert (changed.seed, changed.training.epochs, changed.data.shards) == (3, 2, "mine")
        assert (changed.data.transforms.crop_px, changed.data.transforms.flip) == (32, False)
        assert changed.model == plain.model and changed.data.sampling == plain.data.sampling


def test_the_loader_takes_shards_by_name_and_how_samples_are_drawn_from_a_recipe(shard_set: ShardSet) -> None:
    (batch,) = ts.loader(shard_set.uri, batch=100, recipe=SMALL, sampling={"num_snippets": 3}, want_flow=False)
    assert batch.rgb is not None and batch.rgb.shape == (14, 3, 3, 32, 32) and batch.flow is None
    drawn = ts.loader(Path(shard_set.uri), batch=100, recipe=SMALL)
    views = ts.loader(ts.open_shards(shard_set.uri), batch=100, recipe=SMALL, training=False)
    assert [len(next(iter(one)).labels) for one in (drawn, views)] == [14, 4 * 14]


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: ts.experiment_config(SMALL, trainig={}), "unknown setting 'trainig'; did you mean training"),
        (lambda: ts.experiment_config(SMALL, training={"epochs": "many"}), "training.epochs must be a whole number"),
        (lambda: ts.experiment_config(SMALL, training={"epochs": {1}}), "settings are texts, numbers"),
        (lambda: ts.experiment_config("nowhere.yaml"), "no such recipe: cannot read nowhere.yaml"),
        (lambda: ts.network(SMALL, num_classes=0), "num_classes must be at least 1, got 0"),
        (lambda: ts.loader("nowhere", batch=8), "no shards at nowhere, .* run `twostream ingest` first"),
        (lambda: ts.train(SMALL | {"data": {"shards": "nowhere"}}), "no shards at nowhere"),
    ],
)
def test_what_is_wrong_is_refused_in_a_line_before_ray_starts(call: object, message: str) -> None:
    with pytest.raises(ts.TwoStreamError, match=message) as caught:
        call()  # type: ignore[operator]
    assert "\n" not in str(caught.value)
    assert "ray" not in sys.modules or not sys.modules["ray"].is_initialized()
