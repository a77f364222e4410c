from pathlib import Path
from typing import Any

import numpy as np
import pytest
from score_tables import write_table

from twostream_ray.runs.score.significance import with_significance
from twostream_ray.tracking import Measurement, Verdict

MANIFEST = "0a" * 32


def measured(scores: Path | str, table: str) -> Measurement:
    values: dict[str, Any] = {"manifest_hash": MANIFEST, "split": "test", "num_evaluated": 40, "num_clips": 40}
    return Measurement(**values, metrics={"top1": 0.5}, scores=str(scores), score_table=table)


def verdict_of(folder: Path, **more: Any) -> Verdict:
    """Version 2 gets all of 40 clips right, version 1, its rival, all but eight."""
    right = 3 * np.eye(3, dtype=np.float32)[np.arange(40) % 3][:, None, None]
    worse = right.copy()
    worse[:8] = np.roll(worse[:8], 1, axis=-1)
    rival = write_table(folder / "first", worse)
    own = write_table(folder / "second", right, model_sha256="0f" * 32)
    values = {
        **{"version": 2, "alias": "champion", "champion": 2, "reason": "version 2 is champion: better", "rival": 1},
        "measured": measured(folder / "second", own.identity),
        "rival_measured": measured(folder / "first", rival.identity),
    }
    return Verdict(**(values | more))


def test_a_verdict_says_how_surely_the_two_differ_where_both_tables_are_at_hand(tmp_path: Path) -> None:
    verdict = verdict_of(tmp_path)
    found = with_significance(verdict)
    assert found.reason.startswith(
        "version 2 is champion: better; version 2 - version 1: +20.00 points of top-1, 95% interval [+"
    )
    assert found.reason.endswith("McNemar's exact p 0.0078, of 8 discordant clips")
    assert (found.alias, found.champion) == (verdict.alias, verdict.champion)


@pytest.mark.parametrize("missing", ["rival", "table", "another table", "no uri"])
def test_a_verdict_stays_as_it_is_where_a_table_is_not_at_hand(tmp_path: Path, missing: str) -> None:
    change: dict[str, Any] = {
        "rival": {"rival": None, "measured": None, "rival_measured": None},
        "table": {"rival_measured": measured(tmp_path / "none", "0b" * 32)},
        "another table": {"rival_measured": measured(tmp_path / "first", "0b" * 32)},
        "no uri": {"rival_measured": measured("", "")},
    }
    verdict = verdict_of(tmp_path, **change[missing])
    assert with_significance(verdict) == verdict
