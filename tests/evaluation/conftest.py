"""Published scores of real networks, and what is known to come of them."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray


@pytest.fixture(scope="session")
def expected(real: Path) -> dict[str, Any]:
    return json.loads((real / "expected" / "scores_expected.json").read_text())


@pytest.fixture(scope="session")
def ucf101(real: Path) -> dict[str, NDArray[Any]]:
    """Two ResNet streams' logits on the 3783 test clips of UCF101 split 1, summed over 19 frames of each clip."""
    with np.load(real / "scores" / "ucf101_split1_two_stream_minli.npz") as arrays:
        return dict(arrays)
