from typing import Any

import pytest
import torch

from twostream_ray.data.loading import decode_choice
from twostream_ray.data.loading.decode_choice import choose_decode_at
from twostream_ray.data.loading.settings import DataConfig
from twostream_ray.data.sampling import SamplingConfig

CPU, GPU = torch.device("cpu"), torch.device("cuda", 0)
TRAJECTORY = SamplingConfig(flow_stack="trajectory")


@pytest.mark.parametrize(
    ("settings", "device", "fault", "at", "reason"),
    [
        ({}, CPU, None, "worker", "the network is on a CPU"),
        ({}, GPU, None, "device", "cuda:0 decodes the flow fields of a batch in lists"),
        ({}, GPU, "torchcodec cannot be imported", "worker", "torchcodec cannot be imported"),
        ({"sample_cache": "x"}, GPU, None, "worker", "data.sample_cache keeps decoded samples"),
        ({"sampling": TRAJECTORY}, GPU, None, "worker", "flow along trajectories is sampled on CPUs"),
        ({"decode_at": "device"}, CPU, None, "device", "cpu decodes the flow fields of a batch in lists"),
        ({"decode_at": "device"}, GPU, "no engine", "worker", "no engine"),
        ({"decode_at": "worker"}, GPU, None, "worker", "data.decode_at is worker"),
        ({"decode_at": "stream"}, GPU, None, "stream", "data.decode_at is stream"),
    ],
)
def test_samples_are_decoded_where_the_settings_and_the_device_allow_it(
    monkeypatch: pytest.MonkeyPatch,
    settings: dict[str, Any],
    device: torch.device,
    fault: str | None,
    at: str,
    reason: str,
) -> None:
    monkeypatch.setattr(decode_choice, "device_decoder_fault", lambda _: fault)
    choice = choose_decode_at(DataConfig(shards="x", **settings), device)
    assert (choice.at, choice.reason) == (at, reason)
    assert choice.fell_back == (settings.get("decode_at") == "device" and at == "worker")


def test_a_network_without_flow_has_nothing_for_the_device_to_decode() -> None:
    choice = choose_decode_at(DataConfig(shards="x", decode_at="device"), GPU, want_flow=False)
    assert (choice.at, choice.reason, choice.fell_back) == ("worker", "the network takes no flow", True)
