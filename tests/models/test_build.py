from dataclasses import replace

import pytest
import safetensors.torch
import torch
from small_networks import SMALL, built, fused_model, late, narrow_default, snippets

from twostream_ray.errors import ConfigError
from twostream_ray.models.build import build_network


def test_single_streams_inside_the_fused_network_equal_the_stand_alone_ones() -> None:
    fused = built(fused_model()).eval()
    rgb, flow = snippets()
    for stream in ("spatial", "temporal"):
        alone = built(late(streams=stream), seed=1).eval()
        own = {name: tensor for name, tensor in fused.state_dict().items() if name.startswith(stream)}
        alone.load_state_dict(own)
        inside = fused.get_submodule(stream)((rgb if stream == "spatial" else flow).flatten(0, 1))
        torch.testing.assert_close(alone(rgb, flow)[stream], inside.unflatten(0, (2, 3)).mean(dim=(1, 3, 4)))
    torch.testing.assert_close(fused(rgb, flow)["temporal"], alone(rgb, flow)["temporal"])


def test_class_counts_of_settings_and_data_must_agree() -> None:
    with pytest.raises(ConfigError, match=r"model\.num_classes is 7, but the data has 5 classes"):
        built(replace(fused_model(), num_classes=7))


def test_fused_networks_start_from_single_streams_trained_before() -> None:
    trained = {
        stream: safetensors.torch.save(built(late(streams=stream), seed=seed).state_dict())
        for seed, stream in enumerate(("spatial", "temporal"), start=1)
    }
    config = fused_model(tower=replace(SMALL, weights="spatial"))
    config = replace(config, temporal=replace(SMALL, weights="temporal"))
    network = build_network(config, num_classes=5, flow_length=2, read_bytes=trained.__getitem__)
    for state in trained.values():
        for name, tensor in safetensors.torch.load(state).items():
            assert torch.equal(network.state_dict()[name], tensor), name
    restored = build_network(config, num_classes=5, flow_length=2, pretrained=False)
    assert restored.state_dict().keys() == network.state_dict().keys()


@pytest.mark.slow
def test_the_default_network_compiles_whole_forward_and_backward() -> None:
    network = narrow_default()
    rgb, flow = snippets(num_samples=1, num_snippets=5, size=224)
    # aot_eager traces all that inductor would, without its minutes of C++.
    compiled = torch.compile(network, backend="aot_eager", fullgraph=True)
    outputs = compiled(rgb, flow)
    torch.testing.assert_close(outputs, network(rgb, flow))
    sum(logits.sum() for logits in outputs.values()).backward()
    assert network.get_parameter("temporal.conv1_1.weight").grad.isfinite().all()


@pytest.mark.slow
def test_the_default_network_exports_for_any_number_of_samples() -> None:
    network = narrow_default().eval()
    samples = torch.export.Dim("samples")
    program = torch.export.export(
        network, snippets(num_snippets=5, size=224), dynamic_shapes={"rgb": {0: samples}, "flow": {0: samples}}
    )
    other = snippets(num_samples=3, num_snippets=5, size=224)
    torch.testing.assert_close(program.module()(*other), network(*other))
