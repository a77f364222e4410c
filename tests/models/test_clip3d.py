import io
from pathlib import Path

import pytest
import safetensors.torch
import torch
import torchvision
from small_networks import CLIP3D, built
from torch import Tensor, nn

from twostream_ray.data.loading.device import RGB_MEAN, RGB_STD, normalise_rgb
from twostream_ray.errors import ConfigError, WeightsError
from twostream_ray.models.build import Network, build_network
from twostream_ray.models.description import count_parameters, describe
from twostream_ray.models.layers import IMAGENET_MEAN, IMAGENET_STD
from twostream_ray.models.settings import Clip3dConfig, ModelConfig

PUBLISHED = {"r2plus1d_18": 31_505_325, "r3d_18": 33_371_472, "mc3_18": 11_695_440, "mvit_v2_s": 34_537_744}
"""Parameters with the 400 classes of Kinetics-400, by torchvision's own table."""


def model(name: str, **settings: object) -> ModelConfig:
    return ModelConfig(architecture="clip3d", clip3d=Clip3dConfig(network=name, **settings))


def on_meta(config: ModelConfig) -> Network:
    with torch.device("meta"):
        return build_network(config, num_classes=400, flow_length=10)


def levels(num_snippets: int, size: int) -> Tensor:
    return torch.randint(0, 256, (1, num_snippets, 3, size, size), dtype=torch.uint8)


@pytest.mark.parametrize("name", PUBLISHED)
def test_a_video_network_has_as_many_parameters_as_torchvision_publishes(name: str) -> None:
    assert count_parameters(on_meta(model(name))) == PUBLISHED[name]
    weights = torchvision.models.get_model_weights(name).KINETICS400_V1
    assert weights.meta["num_params"] == PUBLISHED[name]


@pytest.mark.parametrize(
    "name", ["mc3_18", *(pytest.param(name, marks=pytest.mark.soak) for name in PUBLISHED if name != "mc3_18")]
)
def test_a_video_network_computes_what_torchvisions_does_with_its_own_normalisation(name: str) -> None:
    snippets, size = (16, 224) if name == "mvit_v2_s" else (4, 32)
    torch.manual_seed(0)
    theirs = getattr(torchvision.models.video, name)(num_classes=7).eval()
    for module in theirs.modules():
        if isinstance(module, nn.BatchNorm3d):
            nn.init.uniform_(module.running_mean, -0.1, 0.1)
            nn.init.uniform_(module.running_var, 0.5, 1.5)
    stored = io.BytesIO()
    torch.save(theirs.state_dict(), stored)
    ours = build_network(
        model(name, weights="file.pth"), num_classes=7, flow_length=10, read_bytes={"file.pth": stored.getvalue()}.get
    ).eval()
    shown = levels(snippets, size)
    preset = torchvision.models.get_model_weights(name).KINETICS400_V1.transforms()
    mean, std = (torch.tensor(values)[:, None, None] for values in (preset.mean, preset.std))
    with torch.no_grad():
        wanted = theirs(((shown.float() / 255 - mean) / std).transpose(1, 2))
        torch.testing.assert_close(ours(normalise_rgb(shown), None)["spatial"], wanted, rtol=1e-4, atol=1e-4)


def test_frames_come_normalised_by_the_mean_and_deviation_that_the_networks_count_on() -> None:
    assert pytest.approx([255 * value for value in IMAGENET_MEAN]) == RGB_MEAN
    assert pytest.approx([255 * value for value in IMAGENET_STD]) == RGB_STD


@pytest.mark.parametrize("name", ["r2plus1d_18", "r3d_18", "mc3_18"])
def test_all_maps_of_a_narrow_video_network_are_in_proportion(name: str) -> None:
    whole, narrow = (
        [module for module in on_meta(model(name, width=width)).video.modules() if isinstance(module, nn.Conv3d)]
        for width in (None, 16)
    )
    assert len(whole) == len(narrow)
    for theirs, ours in zip(whole, narrow, strict=True):
        assert ours.out_channels == round(theirs.out_channels / 4)
        assert (ours.kernel_size, ours.stride, ours.padding) == (theirs.kernel_size, theirs.stride, theirs.padding)
    assert built(model(name, width=8))(torch.rand(2, 1, 3, 20, 20), None)["spatial"].shape == (2, 5)


def test_a_video_network_sees_the_order_of_frames_and_no_flow() -> None:
    network = built(CLIP3D).eval()
    rgb = torch.rand(1, 6, 3, 32, 32)
    assert (network.needs_rgb, network.needs_flow) == (True, False)
    forward, backward = (network(frames, None)["spatial"] for frames in (rgb, rgb.flip(1)))
    assert not torch.allclose(forward, backward, atol=1e-4)
    with pytest.raises(ConfigError, match="needs rgb, got None"):
        network(None, rgb)


def test_mvit_takes_sixteen_snippets_of_224_px_alone() -> None:
    network = on_meta(model("mvit_v2_s"))
    assert network(torch.empty(1, 16, 3, 224, 224, device="meta"), None)["spatial"].shape == (1, 400)
    for snippets, size in ((5, 224), (16, 112)):
        with pytest.raises(ConfigError, match=rf"16 snippets of 224x224 px, got {snippets} of {size}x{size}: set"):
            network(torch.empty(1, snippets, 3, size, size, device="meta"), None)


def test_weights_of_this_package_and_of_safetensors_start_a_network_but_for_a_classifier_of_other_classes() -> None:
    source = built(CLIP3D, seed=1)
    store = {"model.safetensors": safetensors.torch.save(source.state_dict())}
    started = build_network(
        model("r3d_18", width=4, weights="model.safetensors"), num_classes=6, flow_length=2, read_bytes=store.get
    )
    for name, tensor in started.state_dict().items():
        assert name.startswith("classifier.") or torch.equal(tensor, source.state_dict()[name]), name
    assert started.get_parameter("classifier.weight").shape[0] == 6


@pytest.mark.slow
def test_weights_of_another_network_or_with_what_is_no_number_are_refused() -> None:
    state = built(CLIP3D).state_dict()
    narrow = {"file": safetensors.torch.save(built(model("r3d_18", width=2)).state_dict())}
    with pytest.raises(WeightsError, match=r"weights=file do not fit r3d_18, which wants video\.stem\.0\.weight"):
        build_network(model("r3d_18", width=4, weights="file"), num_classes=5, flow_length=2, read_bytes=narrow.get)
    state["video.stem.0.weight"] = torch.full_like(state["video.stem.0.weight"], torch.nan)
    broken = {"file": safetensors.torch.save(state)}
    with pytest.raises(WeightsError, match=r"video\.stem\.0\.weight has NaN or infinite values"):
        build_network(model("r3d_18", width=4, weights="file"), num_classes=5, flow_length=2, read_bytes=broken.get)


def test_kinetics_weights_that_cannot_be_downloaded_name_the_file_and_the_way_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setenv("https_proxy", "http://127.0.0.1:9")  # nobody listens on the discard port
    with pytest.raises(WeightsError, match=r"mc3_18-\w+\.pth, which could not be .* weights fetch mc3_18 --to"):
        build_network(model("mc3_18", weights="kinetics400"), num_classes=5, flow_length=2)


def test_norms_do_not_decay() -> None:
    network = built(CLIP3D)
    groups = network.parameter_groups(lr=0.1, weight_decay=5e-4)
    decayed = {id(p) for group in groups if group["weight_decay"] for p in group["params"]}
    assert decayed == {id(parameter) for parameter in network.parameters() if parameter.dim() > 1}
    grouped = [id(parameter) for group in groups for parameter in group["params"]]
    assert sorted(grouped) == sorted(id(parameter) for parameter in network.parameters())


def test_a_video_network_is_described_by_its_stages_with_time_first() -> None:
    found = describe(model("r2plus1d_18"), num_classes=400, flow_length=10, num_snippets=16, size_px=112)
    assert found["parameters"] == PUBLISHED["r2plus1d_18"]
    # torchvision's table says 40.52, of which a multiply and an add are one.
    assert found["gflops_forward"] / 2 == pytest.approx(40.52, abs=0.01)
    assert found["parts"]["video"]["layers"]["stem"] == [16, 64, 56, 56]
    assert found["parts"]["video"]["layers"]["layer4"] == [2, 512, 7, 7]
    assert found["parts"]["classifier"]["layers"] == {"classifier": [1, 400]}


def test_activation_checkpointing_is_refused() -> None:
    with pytest.raises(ConfigError, match="is not supported by r3d_18"):
        built(CLIP3D).checkpoint_activations()


@pytest.mark.parametrize(("name", "blocks"), [("r3d_18", 4), ("mvit_v2_s", 16)])
def test_layer_decay_counts_the_stages_of_a_video_network_and_relative_positions_do_not_decay(
    name: str, blocks: int
) -> None:
    network = on_meta(model(name))
    groups = network.parameter_groups(lr=1.0, weight_decay=0.1, bias_lr_factor=1.0, layer_decay=0.5)
    found = {id(one): (group["lr"], group["weight_decay"]) for group in groups for one in group["params"]}
    assert found[id(network.get_parameter("classifier.weight"))] == (1.0, 0.1)
    assert min(rate for rate, _ in found.values()) == 0.5 ** (blocks + 1)
    for parameter, values in network.named_parameters():
        decays = parameter.endswith(".weight") and values.dim() > 1
        assert found[id(values)][1] == (0.1 if decays else 0.0), parameter
