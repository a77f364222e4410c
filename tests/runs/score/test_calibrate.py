from pathlib import Path
from typing import Any

import numpy as np
import pytest
from score_tables import write_table

from twostream_ray.errors import ConfigError
from twostream_ray.heads import softmax
from twostream_ray.runs.score.calibrate import fitted_temperature, require_calibrates
from twostream_ray.runs.score.clip_scores import read_clip_scores


def write_overconfident(folder: Path, *, seed: int, **changed: Any) -> None:
    """A table of 400 clips whose logits are four times as large as their labels were drawn at."""
    random = np.random.default_rng(seed)
    logits = random.normal(scale=2, size=(400, 4))
    labels = (softmax(logits).cumsum(axis=1) < random.random((400, 1))).sum(axis=1)
    wide = (4 * logits).astype(np.float32)[:, None, None]
    write_table(folder, wide, labels=labels.tolist(), **changed)


def test_a_temperature_of_validation_clips_calibrates_others(tmp_path: Path) -> None:
    write_overconfident(tmp_path / "val", seed=0, split="val")
    write_overconfident(tmp_path / "test", seed=1)
    judged = read_clip_scores(str(tmp_path / "test"))
    with pytest.raises(ConfigError, match=r"must have none of the evaluated clips, .* has 400 of the 400"):
        fitted_temperature(str(tmp_path / "val"), judged)
    judged.positions[:] += 400  # the helper's tables begin at 0
    fitted = fitted_temperature(str(tmp_path / "val"), judged)
    assert fitted.temperature == pytest.approx(4, rel=0.15)
    assert fitted.ece_after < 0.06 < 0.15 < fitted.ece_before
    assert fitted.sentence().startswith(
        f"temperature {fitted.temperature:.3g}, fitted on the 400 clips of split val: ECE"
    )
    assert fitted.to_dict()["fitted_on"] == "val"


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"model_sha256": "0f" * 32}, "is of another model: evaluate this model on a validation split first"),
        ({"manifest_hash": "0c" * 32}, "is of another manifest"),
        ({"protocol": {"name": "fast", "average": "logits"}}, "is of another protocol"),
        ({"split": "test"}, "calibrate_on must be of another split than the evaluated one, test"),
    ],
)
def test_an_evaluation_of_something_else_is_refused_before_anything_is_scored(
    tmp_path: Path, changed: dict[str, Any], message: str
) -> None:
    write_overconfident(tmp_path / "val", seed=0, **({"split": "val"} | changed))
    write_overconfident(tmp_path / "test", seed=1)
    about = read_clip_scores(str(tmp_path / "test")).about
    with pytest.raises(ConfigError, match=message):
        require_calibrates(str(tmp_path / "val"), about)


def test_the_evaluation_to_fit_on_is_not_written_over(tmp_path: Path) -> None:
    write_overconfident(tmp_path / "val", seed=0, split="val")
    write_overconfident(tmp_path / "test", seed=1)
    about = read_clip_scores(str(tmp_path / "test")).about
    require_calibrates(str(tmp_path / "val"), about, out=str(tmp_path / "test"))
    with pytest.raises(ConfigError, match="would be overwritten: choose another --out"):
        require_calibrates(str(tmp_path / "val"), about, out=str(tmp_path / "val"))
