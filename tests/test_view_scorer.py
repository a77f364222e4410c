import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from moving_square import moving_square
from small_networks import CONFIGS

from twostream_ray.data.encoded_clip import EncodedClip
from twostream_ray.data.flow import FlowContract
from twostream_ray.data.loading.decode_cpu import decode_sample
from twostream_ray.data.loading.device import normalise_flow, normalise_rgb
from twostream_ray.data.protocols import PROTOCOLS, Protocol
from twostream_ray.data.sampling import SamplingConfig
from twostream_ray.data.transforms import TransformConfig
from twostream_ray.data.video.prepare import prepare_clip
from twostream_ray.errors import ConfigError, DecodeError
from twostream_ray.model_package import ModelPackage
from twostream_ray.models.build import Network
from twostream_ray.models.settings import FusionConfig, ModelConfig, TowerConfig
from twostream_ray.view_scorer import ViewScorer

CONTRACT = FlowContract(short_side_px=64)
TOWER = TowerConfig(backbone="vgg_small", width=4)
FUSED = ModelConfig(
    spatial=TOWER, temporal=TOWER, fusion=FusionConfig(layers=("relu4",), temporal="pool2d"), num_classes=5
)
LATE = ModelConfig(architecture="late", spatial=TOWER, temporal=TOWER, num_classes=5)


@pytest.fixture(scope="module")
def clip() -> EncodedClip:
    return prepare_clip(moving_square(24), CONTRACT, name="square")


def made(model: ModelConfig = FUSED, **sampling: object) -> tuple[Network, ModelPackage]:
    torch.manual_seed(0)
    package = ModelPackage(
        model=model,
        classes=tuple("abcde"),
        contract=CONTRACT,
        sampling=SamplingConfig(**{"num_snippets": 2, "test_times": 2, "flow_length": 4} | sampling),
        transforms=TransformConfig(crop_px=48),
    )
    return package.build(pretrained=False).eval(), package


@pytest.mark.parametrize("model", [FUSED, LATE], ids=["fused", "late"])
@pytest.mark.parametrize("name", PROTOCOLS)
def test_every_view_has_the_logits_of_its_own_sample(clip: EncodedClip, model: ModelConfig, name: str) -> None:
    network, package = made(model)
    times = PROTOCOLS[name].times
    scorer = ViewScorer(network, package, protocol=replace(PROTOCOLS[name], times=times and min(times, 2)))
    scores = scorer.score(clip)
    views = scorer.views_of(num_frames=24, height=clip.height, width=clip.width)
    assert scores.dtype == np.float32 and scores.shape == (len(views), len(scorer.towers), 5)
    for view, found in list(zip(views, scores, strict=True))[:: max(len(views) // 7, 1)]:
        rgb, flow = decode_sample(clip, view, config=package.sampling, contract=CONTRACT)
        with torch.no_grad():
            outputs = network(normalise_rgb(torch.from_numpy(rgb)[None]), normalise_flow(torch.from_numpy(flow)[None]))
        assert tuple(outputs) == scorer.towers
        np.testing.assert_allclose(found, torch.cat(list(outputs.values())), atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("number", range(len(CONFIGS)))
def test_every_network_scores_by_every_protocol(clip: EncodedClip, number: int) -> None:
    network, package = made(replace(CONFIGS[number], num_classes=5))
    for name in ("paper_2014", "fusion_2016", "st_resnet_2016"):
        # One view suffices: another number of snippets and size of the frame are what a network may not take.
        protocol = replace(PROTOCOLS[name], times=1, mirrored=False, snippets=min(PROTOCOLS[name].snippets or 2, 5))
        if protocol.crops == "corners":
            protocol = replace(protocol, crops="centre")
        scorer = ViewScorer(network, package, protocol=protocol)
        scores = scorer.score(clip)
        assert scores.shape == (len(scorer.keys), len(scorer.towers), 5) and np.isfinite(scores).all()


def test_what_a_network_averages_is_what_network_stands_for() -> None:
    for model, average in ((FUSED, "logits"), (LATE, "softmax")):
        assert ViewScorer(*made(model), protocol=PROTOCOLS["validation"]).average == average
    assert ViewScorer(*made(FUSED), protocol=PROTOCOLS["paper_2014"]).average == "softmax"


def test_towers_are_those_that_give_logits() -> None:
    def towers(model: ModelConfig) -> tuple[str, ...]:
        return ViewScorer(*made(model), protocol=Protocol(name="custom")).towers

    assert towers(LATE) == ("spatial", "temporal") and towers(replace(LATE, streams="temporal")) == ("temporal",)
    assert towers(FUSED) == ("fused", "temporal") and towers(replace(FUSED, keep_temporal_tower=False)) == ("fused",)


def test_a_clip_scores_the_same_in_any_company(clip: EncodedClip) -> None:
    scorer = ViewScorer(*made(), protocol=PROTOCOLS["fast"])
    other = prepare_clip(moving_square(9), CONTRACT, name="other")
    alone = scorer.score(clip)
    for company in ([clip, other], [other, other, clip]):
        np.testing.assert_array_equal(scorer.score_all(company)[company.index(clip)], alone)


def test_a_batch_takes_no_more_memory_than_it_may_and_views_do_not_care(clip: EncodedClip) -> None:
    network, package = made()
    protocol = replace(PROTOCOLS["tsn"], times=3)
    sizes: list[int] = []
    network.register_forward_pre_hook(lambda module, inputs: sizes.append(len(inputs[0])))
    whole = ViewScorer(network, package, protocol=protocol).score(clip)
    assert sum(sizes) == 30
    sizes.clear()
    one_by_one = ViewScorer(network, package, protocol=protocol, memory_bytes=1).score(clip)
    assert sizes == [1] * 30
    np.testing.assert_allclose(one_by_one, whole, atol=1e-5)


def test_out_of_memory_halves_a_batch_and_goes_on(clip: EncodedClip) -> None:
    network, package = made()
    sizes: list[int] = []

    def refuse_more_than_three(module: torch.nn.Module, inputs: tuple[torch.Tensor, ...]) -> None:
        sizes.append(len(inputs[0]))
        if len(inputs[0]) > 3:
            raise torch.OutOfMemoryError("CUDA out of memory")

    scorer = ViewScorer(network, package, protocol=Protocol(name="custom", times=8), memory_bytes=10**9)
    expected = scorer.score(clip)
    scorer = ViewScorer(network, package, protocol=Protocol(name="custom", times=8), memory_bytes=10**9)
    network.register_forward_pre_hook(refuse_more_than_three)
    np.testing.assert_allclose(scorer.score(clip), expected, atol=1e-5)
    assert max(sizes) == 8
    sizes.clear()
    scorer.score(clip)
    assert max(sizes) <= 3 and sum(sizes) == 8


@pytest.mark.slow
def test_a_view_that_fits_no_memory_is_refused(clip: EncodedClip) -> None:
    network, package = made()

    def refuse(module: torch.nn.Module, inputs: tuple[torch.Tensor, ...]) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    scorer = ViewScorer(network, package, protocol=PROTOCOLS["fast"])
    network.register_forward_pre_hook(refuse)
    with pytest.raises(ConfigError, match=r"one view of 2 snippets of 48 x 48 px does not fit .*views\.snippets"):
        scorer.score(clip)


def test_a_damaged_clip_is_refused(clip: EncodedClip) -> None:
    assert clip.flow is not None
    flow = [content[:40] if index == 12 else content for index, content in enumerate(clip.flow)]
    with pytest.raises(DecodeError, match="flow field 12"):
        ViewScorer(*made(), protocol=PROTOCOLS["tsn"]).score(replace(clip, flow=flow))


CRAWLING = "ucf101/BabyCrawling/v_BabyCrawling_g19_c01.avi"


def memory_of(video: Path, *arguments: str) -> dict[str, Any]:
    command = [sys.executable, str(Path(__file__).with_name("view_memory.py")), str(video), *arguments]
    done = subprocess.run(
        command, capture_output=True, text=True, env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.mark.real
@pytest.mark.soak
def test_250_views_take_as_much_memory_as_one(real: Path) -> None:
    one = memory_of(real / CRAWLING, "vgg_small", "fast", "16")
    many = memory_of(real / CRAWLING, "vgg_small", "tsn", "16")
    assert (one["shape"], many["shape"]) == ([1, 2, 101], [250, 2, 101])
    # What a batch may take, and some for decoding; the samples of 250 views alone are 290 MB as a network takes them.
    assert many["peak_bytes"] - one["peak_bytes"] < 64 << 20


@pytest.mark.real
@pytest.mark.soak
@pytest.mark.timeout(1800)
def test_dense_vgg16_of_25_frames_x_10_crops_takes_less_than_3_gb(real: Path) -> None:
    found = memory_of(real / CRAWLING, "vgg16", "paper_2014", "default")
    assert found["shape"] == [250, 2, 101] and found["peak_bytes"] < 3e9
