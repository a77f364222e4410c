from dataclasses import replace

import numpy as np
import pytest
import torch
from moving_square import moving_square

from twostream_ray.data.encoded_clip import EncodedClip
from twostream_ray.data.flow import FlowContract
from twostream_ray.data.loading.decode_cpu import decode_sample
from twostream_ray.data.loading.device import normalise_flow, normalise_rgb
from twostream_ray.data.protocols import PROTOCOLS, Protocol
from twostream_ray.data.sampling import SamplingConfig
from twostream_ray.data.transforms import TransformConfig
from twostream_ray.data.video.prepare import prepare_clip
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
    scorer = ViewScorer(network, package, protocol=PROTOCOLS[name])
    scores = scorer.score(clip)
    views = scorer.views_of(num_frames=24, height=clip.height, width=clip.width)
    assert scores.dtype == np.float32 and scores.shape == (len(views), len(scorer.towers), 5)
    for view, found in list(zip(views, scores, strict=True))[:: max(len(views) // 7, 1)]:
        rgb, flow = decode_sample(clip, view, config=package.sampling, contract=CONTRACT)
        with torch.no_grad():
            outputs = network(normalise_rgb(torch.from_numpy(rgb)[None]), normalise_flow(torch.from_numpy(flow)[None]))
        assert tuple(outputs) == scorer.towers
        np.testing.assert_allclose(found, torch.cat(list(outputs.values())), atol=1e-5)


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
