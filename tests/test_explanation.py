import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from moving_square import moving_square
from small_networks import CLIP3D, CONFIGS, built, fused_model, late, residual, snippets
from torch import Tensor

from twostream_ray.data.encoded_clip import EncodedClip
from twostream_ray.data.flow import FlowContract
from twostream_ray.data.sampling import SamplingConfig
from twostream_ray.data.transforms import TransformConfig
from twostream_ray.data.video.prepare import prepare_clip
from twostream_ray.errors import ConfigError
from twostream_ray.explanation import LAYERS, Explainer, activation_layers, class_activations, occlusion_in_time
from twostream_ray.model_package import ModelPackage
from twostream_ray.models.settings import FusionConfig, ModelConfig
from twostream_ray.stream_contributions import Sample

pytestmark = pytest.mark.usefixtures("one_thread")


def sample_of(config: ModelConfig, *, num_snippets: int = 3) -> Sample:
    torch.manual_seed(1)
    rgb, flow = snippets(num_samples=1, num_snippets=num_snippets)
    return Sample(None if config.streams == "temporal" else rgb, None if config.streams == "spatial" else flow)


def test_contributions_are_counted_from_other_clips_where_they_are_given() -> None:
    _, clip = small_explainer(late())
    explainer, other = small_explainer(late())
    explainer._references = [other]
    streams = explainer.explain(clip, class_index=1).streams
    assert streams.method == "shapley" and streams.is_complete


def small_explainer(config: ModelConfig) -> tuple[Explainer, EncodedClip]:
    contract = FlowContract(short_side_px=64)
    package = ModelPackage(
        model=replace(config, num_classes=5),
        classes=tuple("abcde"),
        contract=contract,
        sampling=SamplingConfig(num_snippets=2, min_stride_frames=4, max_stride_frames=4, flow_length=2, test_times=2),
        transforms=TransformConfig(crop_px=48),
    )
    clip = prepare_clip(moving_square(20), contract, name="square")
    return Explainer(built(config), package), clip


@pytest.mark.parametrize("config", CONFIGS)
def test_activations_of_every_architecture_have_the_frames_shape(config: ModelConfig) -> None:
    network = built(config).eval()
    layers, missing = activation_layers(network)
    assert layers and layers.keys() | missing.keys() == set(LAYERS)
    found = class_activations(network, sample_of(config), layers=layers, class_index=1)
    assert found.keys() == layers.keys()
    for maps in found.values():
        assert maps.shape == (3, 32, 32)
        assert maps.min() >= 0 and maps.max() in (0, pytest.approx(1))


@pytest.mark.parametrize(
    ("config", "layers"),
    [
        (late(), {"spatial": "spatial.relu4", "temporal": "temporal.relu4"}),
        (
            fused_model(layers=("relu2",)),
            {"spatial": "spatial.relu2", "temporal": "temporal.relu4", "fused": "spatial.relu4"},
        ),
        (fused_model(), {"spatial": "spatial.relu4", "temporal": "temporal.relu4", "fused": "fusions.relu4"}),
        (
            fused_model(temporal="conv3d", keep=False),
            {"spatial": "spatial.relu4", "temporal": "temporal.relu4", "fused": "time_conv"},
        ),
        (
            residual("st_resnet"),
            {"spatial": "spatial.res5a", "temporal": "temporal.res5c_relu", "fused": "spatial.res5c_relu"},
        ),
        (CLIP3D, {"spatial": "video.layer4"}),
    ],
)
def test_activations_are_of_the_last_maps_of_either_tower_and_after_the_last_fusion(
    config: ModelConfig, layers: dict[str, str]
) -> None:
    assert activation_layers(built(config))[0] == layers


@pytest.mark.parametrize(
    ("config", "layer", "reason"),
    [
        (late(), "fused", "its streams meet only in their scores: choose of spatial, temporal"),
        (late(streams="spatial"), "temporal", "this network has no temporal stream"),
        (late(streams="temporal"), "spatial", "this network has no spatial stream"),
        (fused_model(method="bilinear"), "fused", "bilinear fusion sums over all positions"),
        (fused_model(layers=("fc8",), temporal="pool3d"), "fused", "fusion at fc8 joins maps without positions"),
        (residual("stfn", fusion=FusionConfig(method="sum")), "fused", "stfn joins features without positions"),
        (CLIP3D, "temporal", "this network has no temporal stream"),
        (fused_model(), "relu4", "layers must be of spatial, temporal, fused, got 'relu4'"),
    ],
)
def test_a_layer_that_a_network_lacks_is_refused_in_words(config: ModelConfig, layer: str, reason: str) -> None:
    with pytest.raises(ConfigError, match=reason):
        activation_layers(built(config), [layer])


def test_an_activation_is_the_maps_weighed_by_their_mean_gradients() -> None:
    """Below a mean over positions and one linear layer, the gradients are the layer's weights (Zhou et al. 2016)."""
    network = built(late(streams="spatial")).eval()
    sample = sample_of(late(streams="spatial"), num_snippets=1)
    assert sample.rgb is not None
    with torch.no_grad():
        tower: Any = network.spatial
        maps = tower(sample.rgb.flatten(0, 1), upto="relu4")
        weight = network.get_parameter("spatial.fc8.weight")
        expected = ((weight[1] - weight.mean(0))[:, None, None] * maps[0]).sum(0).clamp(min=0)
    found = class_activations(network, sample, layers={"spatial": "spatial.relu4"}, class_index=1)["spatial"][0]
    size = expected.shape[-1]
    shown = torch.nn.functional.interpolate(expected[None, None], size=(32, 32), mode="bilinear")[0, 0]
    assert size < 32
    np.testing.assert_allclose(found, (shown / shown.max()).numpy(), atol=1e-5)


def test_hiding_snippets_one_by_one_takes_a_late_networks_whole_answer_away() -> None:
    config = late()
    network, sample = built(config).eval(), sample_of(config)
    falls = occlusion_in_time(network, sample, [3, 8, 13], class_index=0)
    assert list(falls) == [3, 8, 13]
    assert sample.rgb is not None and sample.flow is not None
    with torch.no_grad():
        shown, still = (
            torch.stack(list(network(rgb, flow).values())).mean(0)[0]
            for rgb, flow in ((sample.rgb, sample.flow), (0 * sample.rgb, 0 * sample.flow))
        )
    whole = (shown - shown.mean())[0] - (still - still.mean())[0]
    assert sum(falls.values()) == pytest.approx(float(whole), abs=1e-6)


def test_a_time_that_a_short_clip_repeats_is_hidden_once() -> None:
    config = late()
    falls = occlusion_in_time(built(config).eval(), sample_of(config), [3, 8, 8], class_index=0)
    assert list(falls) == [3, 8]


@pytest.mark.parametrize(
    "config", [late(), late(streams="temporal"), fused_model(layers=("relu2",), temporal="conv3d"), CLIP3D]
)
def test_a_clip_is_explained_in_all_its_views(config: ModelConfig) -> None:
    explainer, clip = small_explainer(config)
    found = explainer.explain(clip, class_index=3)
    assert found.class_index == 3
    assert found.streams.is_complete
    assert len(found.snippets) == 4
    assert len(found.seconds) == len(found.falls) == len({snippet.seconds for snippet in found.snippets})
    assert list(found.seconds) == sorted(found.seconds) and 0 < found.seconds[-1] < 20 / 25
    for snippet in found.snippets:
        assert (snippet.rgb is None) == (config.streams == "temporal")
        assert (snippet.flow is None) != config.reads_flow
        assert all(maps.shape == (48, 48) for maps in snippet.activations.values())
        if snippet.flow is None:
            continue
        assert snippet.flow.shape == (48, 48, 2)
        # The square moves 2 px to the right and 1 px down a frame.
        assert np.abs(np.quantile(snippet.flow, 0.99, axis=(0, 1)) - (2, 1)).max() < 0.5


def test_passes_in_other_threads_do_not_get_into_an_explanation() -> None:
    network, sample, others = built(fused_model()).eval(), sample_of(fused_model()), sample_of(late(), num_snippets=2)
    layers, _ = activation_layers(network)
    alone = class_activations(network, sample, layers=layers, class_index=1)
    answers: list[dict[str, Tensor]] = []

    def answer_others(*_: object) -> None:
        if threading.current_thread() is threading.main_thread():
            with ThreadPoolExecutor(1) as pool:
                answers.append(pool.submit(torch.no_grad()(lambda: network(*others))).result())

    # While the last of the layers is passed, and the others have been.
    network.get_submodule(layers["fused"]).register_forward_hook(answer_others)
    found = class_activations(network, sample, layers=layers, class_index=1)
    assert answers
    for layer, maps in alone.items():
        np.testing.assert_array_equal(found[layer], maps)


def test_whoever_waits_for_an_explanation_may_end_it_between_passes() -> None:
    explainer, clip = small_explainer(late())
    passes: list[int] = []

    def progress() -> None:
        passes.append(1)
        if len(passes) == 3:
            raise InterruptedError

    with pytest.raises(InterruptedError):
        explainer.explain(clip, class_index=0, on_progress=progress)
    explainer.explain(clip, class_index=0)
    assert len(passes) == 3
