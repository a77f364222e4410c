import hashlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from html_pages import parsed, shown
from pytest import CaptureFixture
from score_tables import write_table
from whole_shards import write_shards

from twostream_ray.cli import main
from twostream_ray.data.sampling import SamplingConfig
from twostream_ray.data.shards.shards import ShardSet
from twostream_ray.data.sources.synthetic import SyntheticConfig, synthesize
from twostream_ray.data.transforms import TransformConfig
from twostream_ray.explanation import ExplainedSnippet, Explanation
from twostream_ray.model_package import ModelPackage, save_model
from twostream_ray.models.settings import FusionConfig, ModelConfig, TowerConfig
from twostream_ray.runs.score.clip_scores import read_clip_scores
from twostream_ray.runs.score.worst_mistakes import find_mistakes
from twostream_ray.runs.score.worst_page import most_important
from twostream_ray.stream_contributions import StreamContributions

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def evaluated(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, ShardSet]:
    """Shards, a model, and an evaluation in which of four clips two are taken for another class."""
    folder = tmp_path_factory.mktemp("evaluated")
    videos = SyntheticConfig(size_px=48, train_clips=4, val_clips=0, test_clips=4)
    synthesize(videos, folder / "videos", workers=1)
    shard_set = write_shards(folder / "videos", folder / "shards", short_side_px=48)
    tower = TowerConfig(backbone="vgg_small", width=4)
    package = ModelPackage(
        model=ModelConfig(
            spatial=tower, temporal=tower, fusion=FusionConfig(layers=("relu2",), temporal="pool2d"), num_classes=4
        ),
        classes=shard_set.classes,
        contract=shard_set.contract,
        sampling=SamplingConfig(num_snippets=2, test_times=1),
        transforms=TransformConfig(crop_px=48),
    )
    save_model(folder / "model", package.build(pretrained=False), package)
    table(folder, shard_set)
    return folder, shard_set


def table(folder: Path, shard_set: ShardSet, name: str = "evaluation", **changed: Any) -> None:
    labels = shard_set.labels[shard_set.split("test")].tolist()
    logits = np.zeros((4, 1, 1, 4), np.float32)
    for row, best in enumerate([labels[0], (labels[1] + 1) % 4, labels[2], (labels[3] + 1) % 4]):
        logits[row, 0, 0, best] = row
    logits[0] += 9 * np.eye(4)[labels[0]]
    weights = hashlib.sha256((folder / "model/model.safetensors").read_bytes()).hexdigest()
    ours = {"model_sha256": weights, "manifest_hash": shard_set.hash, "shards": shard_set.uri, "towers": ("fused",)}
    ids = [shard_set.index["clip_id"][int(position)].as_py() for position in shard_set.split("test")]
    write_table(folder / name, logits, labels=labels, clip_ids=ids, **(ours | {"classes": shard_set.classes} | changed))


def explain(evaluated: tuple[Path, ShardSet], out: Path, *more: str) -> int:
    folder, _ = evaluated
    given = ["--worst", "5", "--scores", str(folder / "evaluation"), "--model", str(folder / "model")]
    return main(["explain", *given, "--out", str(out), *more])


def test_mistakes_are_ranked_by_how_sure_the_model_is_of_another_class(evaluated: tuple[Path, ShardSet]) -> None:
    scores = read_clip_scores(str(evaluated[0] / "evaluation"))
    found = find_mistakes(scores)
    assert [mistake.clip_id for mistake in found] == [scores.clip_ids[3], scores.clip_ids[1]]
    assert all(mistake.predicted == (mistake.label + 1) % 4 for mistake in found)
    surest = np.exp(3) / (np.exp(3) + 3)
    assert found[0].probability == pytest.approx(surest) and found[0].label_probability == pytest.approx(
        (1 - surest) / 3
    )
    assert [mistake.margin for mistake in found] == sorted(mistake.margin for mistake in found)


def test_the_page_explains_label_and_answer_of_each_mistake(
    evaluated: tuple[Path, ShardSet], tmp_path: Path, capsys: CaptureFixture[str]
) -> None:
    page = tmp_path / "mistakes.html"
    assert explain(evaluated, page, "--split", "test") == 0
    assert "2 of 4 clips of split test are predicted as another class" in capsys.readouterr().out
    text = shown(page.read_bytes())
    scores = read_clip_scores(str(evaluated[0] / "evaluation"))
    for mistake in find_mistakes(scores):
        label, answer = (scores.about.classes[index] for index in (mistake.label, mistake.predicted))
        for said in (
            mistake.clip_id,
            f"Labelled {label}",
            f"predicted {answer}",
            f"Evidence for the label, {label}",
            f"Evidence for the prediction, {answer}",
        ):
            assert said in text
    assert scores.clip_ids[0] not in text
    # Of each clip its middle frame, and of each class spatial's frame, temporal's motion, fused's both.
    assert parsed(page.read_bytes()).tags.count("img") == 2 * (1 + 2 * 4)
    assert explain(evaluated, page, "--worst", "1", "--layers", "[fused]") == 0  # over its own page
    assert parsed(page.read_bytes()).tags.count("img") == 1 + 2 * 2


def test_a_videos_shares_are_counted_from_clips_of_the_shards_that_are_named(
    evaluated: tuple[Path, ShardSet], tmp_path: Path
) -> None:
    folder, page = evaluated[0], tmp_path / "page.html"
    video = next((folder / "videos/test").rglob("*.mp4"))
    given = [str(video), "--model", str(folder / "model"), "--out", str(page), "--moments", "1"]
    assert main(["explain", *given, "--shards", str(folder / "shards")]) == 0
    text = shown(page.read_bytes())
    assert "On other clips the class has, on average, a relative logit of" in text
    assert "Shapley values of the streams, with other clips as the baseline: these numbers add up exactly." in text


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (["--split", "val"], "mistakes of split val were wanted"),
        (["--label", "up"], "give --out NAME.html and no --label"),
        (["--out", "mistakes.mp4"], "the worst mistakes are written to a page"),
        (["--worst", "0"], "worst"),
        (["--video", "clip.mp4"], "one video, or --worst N"),
        (["--scores", "none"], "a score table was wanted at none"),
    ],
)
def test_what_is_no_evaluation_of_this_kind_is_refused_in_words(
    evaluated: tuple[Path, ShardSet], tmp_path: Path, capsys: CaptureFixture[str], more: list[str], said: str
) -> None:
    assert explain(evaluated, tmp_path / "page.html", *more) == 2
    assert said in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"model_sha256": "0b" * 32}, "the model with weights 0b0b0b0b0b0b was wanted"),
        ({"manifest_hash": "0c" * 32}, "shards of manifest 0c0c0c0c0c0c were wanted"),
    ],
)
def test_scores_of_another_model_or_other_shards_are_refused(
    evaluated: tuple[Path, ShardSet], tmp_path: Path, capsys: CaptureFixture[str], changed: dict[str, str], said: str
) -> None:
    table(*evaluated, name="other", **changed)
    assert explain(evaluated, tmp_path / "page.html", "--scores", str(evaluated[0] / "other")) == 2
    assert said in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_the_snippets_that_matter_most_are_shown_by_time() -> None:
    def snippet(seconds: float) -> ExplainedSnippet:
        return ExplainedSnippet(seconds=seconds, rgb=None, flow=None, activations={})

    streams = StreamContributions(logit=1, baseline=0, by_stream={"spatial": 1.0}, method="exact", gap=0)
    found = Explanation(
        class_index=0,
        streams=streams,
        seconds=(0.0, 1.0, 2.0),
        falls=(0.5, -1.0, 0.9),
        snippets=tuple(map(snippet, (0.0, 0.0, 1.0, 2.0))),
    )
    assert [one.seconds for one in most_important(found, 2)] == [0.0, 2.0]
    assert [one.seconds for one in most_important(found, 9)] == [0.0, 1.0, 2.0]
