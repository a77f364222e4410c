import json
from pathlib import Path

import html_pages
import numpy as np
import pytest
from numpy.typing import NDArray

from twostream_ray.errors import ConfigError
from twostream_ray.evaluation.intervals import metric_intervals
from twostream_ray.evaluation.paired import compare_hits
from twostream_ray.runs.ablation.report import COLUMNS, FILES, cells, refuse_foreign, sentences, title, write
from twostream_ray.runs.ablation.settings import AblationConfig
from twostream_ray.runs.ablation.study import AblationRow
from twostream_ray.verbs.commands import parse

LABELS = np.arange(40) % 4
BEFORE = np.arange(40) < 20
AFTER = (np.arange(40) < 30) & (np.arange(40) != 5)


def row(network: str, hits: NDArray[np.bool_], *, first: bool = False) -> AblationRow:
    return AblationRow(
        network=network,
        run=f"mine-{network}",
        parameters=1_234_567,
        num_clips=40,
        num_expected=41,
        top1=float(hits.mean()),
        intervals=metric_intervals(hits, None, LABELS, num_classes=4),
        against_appearance=None if first else compare_hits(BEFORE, hits, LABELS, num_classes=4),
    )


FOUND = [row("appearance alone", BEFORE, first=True), row("fused: <conv>", AFTER)]


@pytest.fixture
def config(tmp_path: Path) -> AblationConfig:
    return parse("compare-streams", AblationConfig, ["--config", "own_videos_cpu", "--out", str(tmp_path)])


def test_a_row_says_how_much_better_a_network_is_and_how_surely(config: AblationConfig) -> None:
    assert title(config, FOUND) == "What motion adds: 40 of 41 clips of split test, 40 epochs"
    assert cells(FOUND[0])[-2:] == ["", ""]
    low, high = FOUND[1].intervals.top1
    assert cells(FOUND[1]) == [
        "fused: <conv>",
        "72.5%",
        f"[{100 * low:.1f}, {100 * high:.1f}]",
        "40 of 41 clips",
        "1,234,567",
        "+22.5 points",
        f"{2 * (1 + 11) / 2**11:.2g}",
    ]
    (said,) = sentences(FOUND)
    assert said.startswith("fused: <conv> - appearance alone: +22.50 points of top-1, 95% interval [")
    assert said.endswith("of 11 discordant clips")


def test_the_table_is_written_for_readers_and_for_programs(config: AblationConfig, tmp_path: Path) -> None:
    refuse_foreign(config)
    assert write(config, FOUND) == str(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == set(FILES)
    stored = json.loads((tmp_path / "streams.json").read_text())
    assert [one["network"] for one in stored["rows"]] == ["appearance alone", "fused: <conv>"]
    against = stored["rows"][1]["against_appearance"]
    assert (against["only_appearance"], against["only_this"]) == (1, 10)
    assert against["top1"] == pytest.approx(0.225)
    lines = (tmp_path / "streams.md").read_text().splitlines()
    assert lines[2] == f"| {' | '.join(COLUMNS)} |"
    assert [line.count("|") for line in lines[2:6]] == [len(COLUMNS) + 1] * 4
    page = html_pages.parsed((tmp_path / "streams.html").read_bytes())
    assert "fused: <conv>" in page.texts and len(page.sources) == 1
    refuse_foreign(config)
    write(config, FOUND)


def test_files_of_somebody_else_are_refused_before_anything_is_trained(config: AblationConfig, tmp_path: Path) -> None:
    (tmp_path / "streams.md").write_text("the user's")
    with pytest.raises(ConfigError, match=r"streams\.md"):
        refuse_foreign(config)
