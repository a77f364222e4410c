import io
import itertools
from pathlib import Path

import pytest
import safetensors.torch
import torch
import torchvision
from torch import nn

from twostream_ray.errors import WeightsError
from twostream_ray.models.build import build_network
from twostream_ray.models.pretrained import WRAPPERS
from twostream_ray.models.settings import ModelConfig, TowerConfig
from twostream_ray.models.streams import build_tower
from twostream_ray.models.towers import Tower


def small(**settings: object) -> TowerConfig:
    return TowerConfig(backbone="vgg_small", width=4, **settings)


def saved(module: nn.Module, **changes: torch.Tensor) -> dict[str, bytes]:
    """A store of one safetensors file, for reading by its name."""
    return {"file.safetensors": safetensors.torch.save(module.state_dict() | changes)}


def loaded(store: dict[str, bytes], *, in_channels: int = 3, num_classes: int = 5, **settings: object) -> Tower:
    return build_tower(
        small(weights="file.safetensors"),
        in_channels=in_channels,
        num_classes=num_classes,
        read_bytes=store.__getitem__,
        **settings,
    )


def test_a_tower_starts_from_its_weights_file() -> None:
    source = build_tower(small(), in_channels=3, num_classes=5)
    for name, tensor in loaded(saved(source)).state_dict().items():
        assert torch.equal(tensor, source.state_dict()[name]), name


def test_a_temporal_tower_starts_from_rgb_filters_averaged_over_colour() -> None:
    source = build_tower(small(), in_channels=3, num_classes=5)
    tower = loaded(saved(source), in_channels=20)
    mean = source.get_parameter("conv1.weight").mean(dim=1)
    for channel in range(20):
        torch.testing.assert_close(tower.get_parameter("conv1.weight")[:, channel], mean)
    assert torch.equal(tower.get_parameter("conv2.weight"), source.get_parameter("conv2.weight"))


def test_a_classifier_of_other_classes_stays_at_random() -> None:
    source = build_tower(small(), in_channels=3, num_classes=7)
    tower = loaded(saved(source), num_classes=5)
    assert tower.get_parameter("fc8.weight").shape == (5, 8)
    assert torch.equal(tower.get_parameter("conv4.weight"), source.get_parameter("conv4.weight"))


def test_a_layer_over_stacked_maps_takes_half_of_its_filters_for_either_tower() -> None:
    source = build_tower(small(), in_channels=3, num_classes=5)
    tower = loaded(saved(source), stacked={"relu3": 8})
    half = source.get_parameter("conv4.weight") / 2
    torch.testing.assert_close(tower.get_parameter("conv4.weight"), torch.cat([half, half], dim=1))


def test_a_tower_that_ends_early_ignores_the_weights_behind() -> None:
    source = build_tower(small(), in_channels=3, num_classes=5)
    tower = loaded(saved(source), upto="relu3")
    assert tower.names[-1] == "relu3"
    assert torch.equal(tower.get_parameter("conv3.weight"), source.get_parameter("conv3.weight"))


@pytest.mark.slow
def test_imagenet_resnet50_computes_what_torchvisions_does(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    theirs = torchvision.models.resnet50().eval()
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    url = torchvision.models.ResNet50_Weights.IMAGENET1K_V1.url
    cached = tmp_path / "hub" / "checkpoints" / url.rsplit("/", 1)[1]
    cached.parent.mkdir(parents=True)
    torch.save(theirs.state_dict(), cached)
    ours = build_tower(TowerConfig(backbone="resnet50", weights="imagenet"), in_channels=3, num_classes=1000).eval()
    frames = torch.rand(1, 3, 64, 64)
    with torch.no_grad():
        torch.testing.assert_close(ours(frames).flatten(1), theirs(frames), rtol=1e-3, atol=1e-4)


@pytest.mark.slow
def test_vgg16_with_torchvisions_names_computes_what_torchvisions_does() -> None:
    shape = [4, 4, "M", 8, 8, "M", 16, 16, 16, "M", 32, 32, 32, "M", 32, 32, 32, "M"]
    theirs = torchvision.models.VGG(torchvision.models.vgg.make_layers(shape)).eval()
    sizes = (32 * 49, 256, 256, 10)
    for index, (inputs, outputs) in zip((0, 3, 6), itertools.pairwise(sizes), strict=True):
        theirs.classifier[index] = nn.Linear(inputs, outputs)
    store = saved(theirs)
    config = TowerConfig(width=4, weights="file.safetensors")
    ours = build_tower(config, in_channels=3, num_classes=10, read_bytes=store.__getitem__).eval()
    frames = torch.rand(1, 3, 224, 224)
    torch.testing.assert_close(ours(frames).flatten(1), theirs(frames))
    shorter = build_tower(config, in_channels=3, num_classes=10, upto="relu4_3", read_bytes=store.__getitem__).eval()
    torch.testing.assert_close(shorter(frames), ours(frames, upto="relu4_3"))


def test_weights_that_cannot_be_downloaded_name_the_file_and_the_way_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setenv("https_proxy", "http://127.0.0.1:9")  # nobody listens on the discard port
    config = TowerConfig(backbone="resnet50", weights="imagenet")
    with pytest.raises(
        WeightsError, match=r"resnet50-\w+\.pth, which could not be downloaded .* weights fetch resnet50 --to"
    ):
        build_tower(config, in_channels=3, num_classes=5)


def test_weights_that_do_not_fit_are_refused_by_names_and_shapes_wanted_and_got() -> None:
    tower = build_tower(small(), in_channels=3, num_classes=5)
    with pytest.raises(
        WeightsError, match=r"vgg_small, which wants conv2\.weight of shape \(8, 4, .*got \(9, 4, 3, 3\);"
    ):
        loaded(saved(tower, **{"conv2.weight": torch.zeros(9, 4, 3, 3)}))
    with pytest.raises(
        WeightsError,
        match=r"wants conv1\.weight of shape \(4, 3, 3, 3\), got nothing; .* more; the file has 2 tensors",
    ):
        loaded(saved(nn.Sequential(nn.Linear(2, 2))))
    with pytest.raises(WeightsError, match=r"conv1\.weight of shape \(4, 20, 3, 3\), got \(4, 10, 3, 3\)"):
        loaded(saved(build_tower(small(), in_channels=10, num_classes=5)), in_channels=20)
    with pytest.raises(WeightsError, match=r"file\.safetensors: conv2\.bias has NaN or infinite values"):
        loaded(saved(tower, **{"conv2.bias": torch.full((8,), torch.nan)}))


def test_weights_that_do_not_fit_are_refused_with_the_names_that_the_file_has() -> None:
    source = build_tower(TowerConfig(backbone="vgg_small", width=4), in_channels=3, num_classes=5).state_dict()
    store = {"file.safetensors": safetensors.torch.save({f"backbone.{name}": one for name, one in source.items()})}
    with pytest.raises(WeightsError, match=rf"file has {len(source)} tensors \(backbone\.bn1\.bias .* torchvision's"):
        loaded(store)
    with pytest.raises(WeightsError, match=rf"file has {len(source)} tensors \(backbone\.bn1\.bias .* timm's names"):
        build_tower(
            TowerConfig(backbone="timm:test_resnet", weights="file.safetensors"),
            in_channels=3,
            num_classes=5,
            read_bytes=store.__getitem__,
        )


def test_whole_numbers_are_not_taken_for_weights() -> None:
    tower = build_tower(small(), in_channels=3, num_classes=5)
    eights = {name: values.to(torch.int8) for name, values in tower.state_dict().items()}
    with pytest.raises(WeightsError, match=r"conv1\.weight of shape \(4, 3, 3, 3\), got \(4, 3, 3, 3\) of int8"):
        loaded({"file.safetensors": safetensors.torch.save(eights)})


def test_weights_that_are_no_state_dict_or_have_no_reader_are_refused() -> None:
    with pytest.raises(WeightsError, match=r"weights=file\.safetensors can be read neither as safetensors .* nor as"):
        loaded({"file.safetensors": b"not weights at all"})
    with pytest.raises(WeightsError, match=r"wants a reader of files, got none"):
        build_tower(small(weights="file.safetensors"), in_channels=3, num_classes=5)


def pickled(values: object, **settings: object) -> dict[str, bytes]:
    file = io.BytesIO()
    torch.save(values, file, **settings)
    return {"file.safetensors": file.getvalue()}


@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "before PyTorch 1.6"])
@pytest.mark.parametrize("wrapper", [None, *WRAPPERS])
def test_a_tower_starts_from_a_state_dict_of_torch_save_alone_or_as_training_scripts_keep_it(
    wrapper: str | None, zipped: bool
) -> None:
    source = build_tower(small(), in_channels=3, num_classes=5)
    state = {f"module.{name}": values for name, values in source.state_dict().items()}
    values = state if wrapper is None else {"epoch": 3, wrapper: state, "optimizer": {"lr": 0.1}}
    tower = loaded(pickled(values, _use_new_zipfile_serialization=zipped))
    assert all(torch.equal(values, source.state_dict()[name]) for name, values in tower.state_dict().items())


def test_a_state_dict_is_found_under_two_names_and_not_sought_for_ever() -> None:
    source = build_tower(small(), in_channels=3, num_classes=5)
    for outer, inner in itertools.permutations(WRAPPERS, 2):
        tower = loaded(pickled({outer: {inner: source.state_dict()}, "epoch": 3}))
        assert torch.equal(tower.get_parameter("conv4.weight"), source.get_parameter("conv4.weight"))
    endless: dict[str, object] = {}
    endless["model"] = endless
    with pytest.raises(WeightsError, match="the file holds model: save"):
        loaded(pickled(endless))


def test_the_streams_of_a_checkpoint_of_this_package_start_a_tower_each() -> None:
    network = build_network(
        ModelConfig(architecture="late", spatial=small(), temporal=small()), num_classes=5, flow_length=4
    )
    for store in (saved(network), pickled({f"module.{name}": one for name, one in network.state_dict().items()})):
        for stream, channels in (("spatial", 3), ("temporal", 8)):
            tower = loaded(store, in_channels=channels)
            for name, values in tower.state_dict().items():
                assert torch.equal(values, network.state_dict()[f"{stream}.{name}"]), name


@pytest.mark.slow
def test_torchvisions_own_vgg16_file_starts_both_streams(tmp_path: Path) -> None:
    # Its real sizes; weights that torch has not filled cost no time to draw.
    with torch.device("meta"):
        theirs = torchvision.models.vgg16()
    state = {name: torch.zeros(1).expand(values.shape) for name, values in theirs.state_dict().items()}
    state["features.0.weight"] = torch.rand(64, 3, 3, 3)
    state["features.28.weight"], state["classifier.0.bias"] = torch.rand(512, 512, 3, 3), torch.rand(4096)
    torch.save(state, tmp_path / "vgg16-397923af.pth")
    config = TowerConfig(weights=str(tmp_path / "vgg16-397923af.pth"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(nn.init, "kaiming_normal_", lambda tensor, **_: tensor)  # 138 million numbers, written over
        for channels in (3, 20):
            tower = build_tower(
                config, in_channels=channels, num_classes=7, read_bytes=lambda path: Path(path).read_bytes()
            )
            assert torch.equal(tower.get_parameter("conv5_3.weight"), state["features.28.weight"])
            assert torch.equal(tower.get_parameter("fc6.bias"), state["classifier.0.bias"])
            assert tower.get_parameter("fc8.weight").std() > 0, "of other classes: stays random"
        mean = state["features.0.weight"].mean(dim=1)
        torch.testing.assert_close(tower.get_parameter("conv1_1.weight")[:, 19], mean)


class Shouts:
    """Writes a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, tuple[object, ...]]:
        return Path.touch, (self.path,)


def test_no_code_in_a_weights_file_is_run(tmp_path: Path) -> None:
    tower = build_tower(small(), in_channels=3, num_classes=5)
    for zipped in (True, False):
        store = pickled(
            tower.state_dict() | {"fc8.bias": Shouts(tmp_path / "run")}, _use_new_zipfile_serialization=zipped
        )
        with pytest.raises(
            WeightsError, match=r"as tensors alone \(it wants \S+ to be called\): .* save model\."
        ) as told:
            loaded(store)
        assert str(told.value).isprintable() and "weights_only" not in str(told.value)
    assert not (tmp_path / "run").exists()


def test_a_file_of_torch_save_that_is_damaged_or_holds_no_tensors_is_refused() -> None:
    tower = build_tower(small(), in_channels=3, num_classes=5)
    content = pickled(tower.state_dict())["file.safetensors"]
    for damaged in (content[:-40], content[:200], content[:6]):
        with pytest.raises(WeightsError, match=r"weights=file\.safetensors can"):
            loaded({"file.safetensors": damaged})
    with pytest.raises(WeightsError, match=r"wants a state dict, .* the file holds epoch, lr: save"):
        loaded(pickled({"epoch": 1, "lr": 0.1}))
    with pytest.raises(WeightsError, match=r"wants a state dict"):
        loaded(pickled([torch.zeros(1)]))
