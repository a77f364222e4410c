"""Score files of two streams as `twostream evaluate` writes them."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from twostream_ray.errors import TwoStreamError
from twostream_ray.runs.score.settings import StreamScoresConfig, TuneScoresConfig
from twostream_ray.runs.score.tune_scores import tune_scores


def write_scores(path: Path, scores: NDArray[Any], labels: NDArray[Any], ids: list[str], **more: Any) -> str:
    np.savez(path, scores=scores, labels=labels, clip_ids=np.asarray(ids), **more)
    return str(path)


def two_score_files(folder: Path) -> dict[str, Any]:
    """Two files as `evaluate` writes them, of 60 clips of 3 classes, 10 videos each; the second is shuffled."""
    rng = np.random.default_rng(0)
    labels = np.repeat(np.arange(3), 20)
    ids = [f"class{label}/v_{number // 2:02d}_c{number % 2}.avi" for number, label in enumerate(labels)]
    spatial, temporal = (rng.normal(size=(60, 3)) + 1.2 * np.eye(3)[labels] for _ in range(2))
    order = rng.permutation(60)
    return {
        "labels": labels,
        "ids": ids,
        "spatial": spatial,
        "temporal": temporal,
        "files": {
            "spatial": write_scores(folder / "s.npz", spatial, labels, ids, split=np.asarray("val"), num_expected=61),
            "temporal": write_scores(folder / "t.npz", temporal[order], labels[order], [ids[row] for row in order]),
        },
    }


def refused(kind: type[TwoStreamError], **choose: str) -> str:
    with pytest.raises(kind) as caught:
        tune_scores(TuneScoresConfig(choose=StreamScoresConfig(**choose), out="/nowhere"))
    return str(caught.value)
