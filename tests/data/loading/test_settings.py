from typing import Any

import pytest

from twostream_ray.data.loading.settings import DataConfig
from twostream_ray.data.sampling import SamplingConfig
from twostream_ray.errors import ConfigError


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"lanes": 0}, r"data\.lanes must be at least 1, got 0"),
        ({"cache_gb": 0.0}, r"data\.cache_gb must be more than 0"),
        ({"decode_at": "nowhere"}, r"data\.decode_at must be one of auto, device, worker, stream, got 'nowhere'"),
        (
            {"decode_at": "stream", "sample_cache": "x"},
            r"data\.sample_cache needs data\.decode_at worker or auto, got stream",
        ),
        (
            {"decode_at": "device", "sampling": SamplingConfig(flow_stack="trajectory")},
            r"data\.decode_at=device does not support data\.sampling\.flow_stack=trajectory",
        ),
    ],
)
def test_settings_that_cannot_be_are_refused_by_name(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        DataConfig(shards="x", **change)
