import json
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from matplotlib.image import imread
from pixels import num_pixels
from score_tables import PROTOCOL, write_table
from two_score_files import refused, write_scores

from twostream_ray.cli import main
from twostream_ray.data.shards.shards import ShardSet
from twostream_ray.errors import ConfigError, StorageError
from twostream_ray.evaluation.late_fusion import late_fusion
from twostream_ray.evaluation.metrics import top_k_hits
from twostream_ray.heads import softmax
from twostream_ray.runs.score.score_files import read_scores
from twostream_ray.runs.score.settings import StreamScoresConfig, TuneScoresConfig
from twostream_ray.runs.score.tune_scores import TunedScores, tune_scores

UCF101 = "scores/ucf101_split1_two_stream_minli.npz"


def right(tuned: TunedScores) -> dict[str, tuple[str, int]]:
    return {one.name: (str(one.setting), one.num_right) for one in tuned.tried}


# -- the real scores of UCF101


@pytest.mark.real
def test_real_scores_of_ucf101_give_the_known_best_weight_in_well_under_two_seconds_for_1000_settings(
    real: Path, tmp_path: Path
) -> None:
    config = TuneScoresConfig(choose=StreamScoresConfig(both=str(real / UCF101)), out=str(tmp_path))
    started = time.process_time()
    tuned = tune_scores(config)
    seconds = time.process_time() - started
    found = right(tuned)
    assert found["spatial alone"][1] == 3074
    assert found["temporal alone"][1] == 3014
    assert found["equal weights of logits"][1] == 3332
    assert found["equal weights of softmax"][1] == 3247
    assert found["best average of logits"] == ("logits, temporal weight 0.24", 3421)
    assert tuned.chosen.setting.temporal_weight == 0.24
    assert (tuned.num_settings, tuned.chosen_on.num_clips) == (201 + 16 * 201, 3783)
    assert seconds * 1000 / tuned.num_settings < 2
    assert num_pixels(tmp_path / "fusion.png", "#0072b2") > 500


@pytest.mark.real
def test_choosing_and_quoting_on_the_same_real_clips_is_said_to_be_no_accuracy_to_quote(
    real: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["--choose.both", str(real / UCF101), "--out", str(tmp_path), "--of", "[logits]"]
    assert main(["tune-scores", *arguments]) == 0
    printed = capsys.readouterr().out
    assert "201 settings tried in" in printed and "chosen: logits, temporal weight 0.24" in printed
    assert "not an accuracy to quote: the setting was chosen on the same 3783 clips" in printed
    assert "choosing on the test split overestimates accuracy" in printed
    stored = json.loads((tmp_path / "fusion.json").read_text())
    assert stored["chosen"]["num_right"] == 3421
    assert stored["chosen"]["setting"]["temporal_weight"] == 0.24
    assert stored["quoted_on"] is None and stored["verdict"].startswith("not an accuracy to quote")


@pytest.mark.real
def test_the_figure_that_an_svm_is_chosen_by_does_not_flatter_it(real: Path, tmp_path: Path) -> None:
    """Ten hard classes of UCF101, odd groups to choose on, even ones to quote on; in mixed folds it would be 96.8 %."""
    hard = [19, 22, 23, 31, 34, 53, 57, 77, 78, 98]
    with np.load(real / UCF101) as arrays:
        scores = dict(arrays)
    groups = np.array([int(name[-6:-4]) for name in scores["names"]])
    files, num_clips = {}, {}
    for part, remainder in (("choose", 1), ("quote", 0)):
        at = np.flatnonzero(np.isin(scores["label"], hard) & (groups % 2 == remainder))
        labels, ids = np.searchsorted(hard, scores["label"][at]), list(scores["names"][at])
        stored = {
            stream: write_scores(tmp_path / f"{part}_{stream}.npz", scores[stream][at][:, hard], labels, ids)
            for stream in ("spatial", "temporal")
        }
        files[part], num_clips[part] = StreamScoresConfig(**stored), len(at)
    tuned = tune_scores(TuneScoresConfig(**files, svm_penalties=[1.0], of=["logits"], out=str(tmp_path)))
    (svm,) = [one for one in tuned.tried if one.setting.method == "svm"]
    assert svm.num_right / num_clips["choose"] < (svm.num_right_quoted or 0) / num_clips["quote"]
    assert tuned.chosen.setting.method == "average"
    share = (tuned.chosen.num_right_quoted or 0) / num_clips["quote"]
    assert tuned.verdict().startswith(f"to quote: top-1 {share:.2%}")


# -- files


def test_two_files_are_matched_clip_by_clip_whatever_their_order(streams: dict[str, Any], tmp_path: Path) -> None:
    tuned = tune_scores(
        TuneScoresConfig(
            choose=StreamScoresConfig(**streams["files"]), weight_step=0.1, temperatures=[2.0], out=str(tmp_path)
        )
    )
    labels, spatial, temporal = (streams[name] for name in ("labels", "spatial", "temporal"))
    for of, key in (("logits", "equal weights of logits"), ("softmax", "equal weights of softmax")):
        fused = late_fusion(spatial, temporal, of=of)
        assert right(tuned)[key][1] == top_k_hits(fused, labels, k=1).sum()
    fused = late_fusion(spatial / 2, temporal / 2, temporal_weight=0.3)
    (best,) = [one for one in tuned.tried if one.name == "best average of softmax"]
    assert best.num_right >= top_k_hits(fused, labels, k=1).sum()
    assert str(tuned.chosen_on) == "60 clips of split val (61 with those in quarantine)"
    assert tuned.num_settings == 22


def test_the_chosen_setting_is_quoted_on_other_clips(
    streams: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    ids = [f"test/{clip}" for clip in streams["ids"]]
    quote = {
        name: write_scores(
            tmp_path / f"q{name}.npz", streams[name][::-1], streams["labels"], ids, split=np.asarray("test")
        )
        for name in ("spatial", "temporal")
    }
    arguments = [f"--choose.{name}={file}" for name, file in streams["files"].items()]
    arguments += [f"--quote.{name}={file}" for name, file in quote.items()]
    assert main(["tune-scores", *arguments, "--out", str(tmp_path / "o"), "--svm_penalties", "[1.0]"]) == 0
    stored = json.loads((tmp_path / "o/fusion.json").read_text())
    hits = stored["chosen"]["num_right_quoted"]
    said = f"to quote: top-1 {hits / 60:.2%}, {hits} of 60 clips of split test; the setting was chosen on 60 clips"
    assert stored["verdict"].startswith(said)
    printed = " ".join(capsys.readouterr().out.split())
    assert said in printed and "best SVM of logits" in printed
    assert imread(tmp_path / "o/fusion.png").shape[:2] == (506, 935)


def test_probabilities_are_taken_for_what_they_are(streams: dict[str, Any], tmp_path: Path) -> None:
    """`evaluate` writes the softmax of a single stream: averaging it is averaging softmax, not a softmax of softmax."""
    files = {
        name: write_scores(
            tmp_path / f"p{name}.npz", softmax(4 * streams[name]).astype(np.float32), streams["labels"], streams["ids"]
        )
        for name in ("spatial", "temporal")
    }
    config = TuneScoresConfig(choose=StreamScoresConfig(**files), temperatures=[1.0], out=str(tmp_path))
    tuned = tune_scores(config)
    fused = late_fusion(4 * streams["spatial"], 4 * streams["temporal"], of="softmax")
    assert right(tuned)["equal weights of softmax"][1] == top_k_hits(fused, streams["labels"], k=1).sum()
    fused = late_fusion(streams["spatial"], streams["temporal"], of="logits")
    assert right(tuned)["equal weights of logits"][1] == top_k_hits(fused, streams["labels"], k=1).sum()
    assert "choose: the spatial scores are probabilities; their logarithms are used as logits" in tuned.notes


def test_each_data_set_of_a_network_for_several_is_judged_by_its_own_classes(tmp_path: Path) -> None:
    scores = np.array([[1.0, 2.0, 9.0], [9.0, 0.0, 3.0]])  # two classes of one data set, one of another
    labels, ids = np.array([1, 2]), ["a", "b"]
    files = {
        name: write_scores(tmp_path / f"{name}.npz", scores, labels, ids, head_classes=np.array([2, 1]))
        for name in ("spatial", "temporal")
    }
    tuned = tune_scores(TuneScoresConfig(choose=StreamScoresConfig(**files), out=str(tmp_path)))
    assert right(tuned)["spatial alone"][1] == 2


def two_data_sets(tmp_path: Path, part: str, *, seed: int) -> StreamScoresConfig:
    """Logits of 40 clips of 2 classes and 60 of 3; the other data set's are higher than all of a clip's own."""
    rng = np.random.default_rng(seed)
    labels = np.repeat(np.arange(5), 20)
    ids = [f"{part}/v_{number // 2:02d}_c{number % 2}.avi" for number in range(100)]
    files = {}
    for stream in ("spatial", "temporal"):
        logits = rng.normal(size=(100, 5)) + 1.2 * np.eye(5)[labels]
        logits[labels < 2, 2:] += 20
        logits[labels >= 2, :2] += 20
        files[stream] = str(tmp_path / f"{part} {stream}.npz")
        names = np.array(["u/a", "u/b", "h/a", "h/b", "h/c"])
        more = {"classes": names, "head_classes": np.array([2, 3]), "num_expected_by_head": np.array([41, 60])}
        np.savez(files[stream], logits=logits, labels=labels, clip_ids=np.asarray(ids), num_expected=101, **more)
    return StreamScoresConfig(**files)


@pytest.mark.slow
def test_a_setting_is_chosen_over_all_data_sets_and_told_on_each_or_chosen_for_one(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    choose, quote = (two_data_sets(tmp_path, part, seed=seed) for seed, part in enumerate(("choose", "quote")))
    settings = {"choose": choose, "quote": quote, "svm_penalties": [1.0], "temperatures": [1.0, 64.0]}
    both = tune_scores(TuneScoresConfig(**settings, out=str(tmp_path / "both")))
    assert [(head.name, head.num_clips, head.num_clips_quoted) for head in both.heads] == [("u", 40, 40), ("h", 60, 60)]
    assert sum(head.num_right for head in both.heads) == both.chosen.num_right
    assert sum(head.num_right_quoted or 0 for head in both.heads) == both.chosen.num_right_quoted
    alone = {}
    for name, clips in (("u", "40 clips (41 with those in quarantine)"), ("h", "60 clips")):
        alone[name] = tune_scores(TuneScoresConfig(**settings, head=name, out=str(tmp_path / name)))
        assert str(alone[name].chosen_on) == clips and alone[name].heads == ()
    for key in ("spatial alone", "temporal alone", "equal weights of logits", "equal weights of softmax"):
        assert right(both)[key][1] == right(alone["u"])[key][1] + right(alone["h"])[key][1]
    arguments = [f"--choose.spatial={choose.spatial}", f"--choose.temporal={choose.temporal}"]
    assert main(["tune-scores", *arguments, "--out", str(tmp_path / "cli")]) == 0
    printed = capsys.readouterr().out
    assert "\nu: " in printed and "\nh: " in printed and "of 60 clips right" in printed
    assert main(["tune-scores", *arguments, "--head", "x", "--out", str(tmp_path / "cli")]) == 2
    assert "head must name a data set of choose, got 'x': it has u, h" in capsys.readouterr().err


def test_files_of_other_data_sets_are_refused(tmp_path: Path) -> None:
    logits, labels, ids = np.zeros((2, 3)), np.array([0, 2]), ["a", "b"]
    files = {
        name: write_scores(tmp_path / f"{name}.npz", logits, labels, ids, head_classes=np.array(sizes))
        for name, sizes in (("spatial", [2, 1]), ("temporal", [1, 2]))
    }
    assert "3 classes of the same data sets, got head_classes [1, 2] in" in refused(ConfigError, **files)


def test_scores_of_evaluate_are_what_is_wanted(shard_set: ShardSet, tmp_path: Path) -> None:
    from twostream_ray.data.sampling import SamplingConfig
    from twostream_ray.data.transforms import TransformConfig
    from twostream_ray.model_package import ModelPackage, save_model
    from twostream_ray.models.settings import ModelConfig, TowerConfig
    from twostream_ray.runs.score.evaluate import evaluate
    from twostream_ray.runs.score.settings import EvaluateConfig
    from twostream_ray.runs.workers import WorkersConfig

    files, hits = {}, {}
    one_worker = WorkersConfig(num_workers=1)
    tower = TowerConfig(backbone="vgg_small", width=4)
    for stream in ("spatial", "temporal"):
        package = ModelPackage(
            model=ModelConfig(architecture="late", streams=stream, spatial=tower, temporal=tower),
            classes=shard_set.classes,
            contract=shard_set.contract,
            sampling=SamplingConfig(num_snippets=1, test_times=1),
            transforms=TransformConfig(crop_px=48),
        )
        (tmp_path / stream).mkdir()
        save_model(tmp_path / stream, package.build(pretrained=False), package)
        out = tmp_path / f"{stream} out"
        evaluation = evaluate(
            EvaluateConfig(model=str(tmp_path / stream), shards=shard_set.uri, out=str(out), workers=one_worker)
        )
        files[stream], hits[stream] = str(out), round(evaluation.report.top1 * 20)
    tuned = tune_scores(TuneScoresConfig(choose=StreamScoresConfig(**files), out=str(tmp_path / "tuned")))
    assert right(tuned)["spatial alone"][1] == hits["spatial"]
    assert right(tuned)["temporal alone"][1] == hits["temporal"]
    assert str(tuned.chosen_on) == "20 clips of split test"
    assert tuned.notes == ()


@pytest.mark.slow
@pytest.mark.real
def test_a_table_of_two_towers_gives_what_the_same_scores_in_an_npz_give(real: Path, tmp_path: Path) -> None:
    with np.load(real / UCF101) as arrays:
        stored = dict(arrays)
    both = np.stack([stored["spatial"], stored["temporal"]], axis=1)[:, None]
    write_table(tmp_path / "both", both, labels=stored["label"], clip_ids=stored["names"], num_expected=3784)
    given = {name: str(tmp_path / "both") for name in ("spatial", "temporal")}
    for choose in (StreamScoresConfig(both=str(tmp_path / "both")), StreamScoresConfig(**given)):
        tuned = tune_scores(TuneScoresConfig(choose=choose, of=["logits"], out=str(tmp_path / "out")))
        assert right(tuned)["best average of logits"] == ("logits, temporal weight 0.24", 3421)
        assert right(tuned)["spatial alone"][1] == 3074
        assert str(tuned.chosen_on) == "3783 clips of split test (3784 with those in quarantine)"


def test_a_stream_of_a_network_without_its_tower_is_the_whole_network(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    logits = rng.normal(size=(20, 3, 2, 4)).astype(np.float32)
    softmax_averaged = PROTOCOL | {"average": "softmax"}
    write_table(tmp_path / "fused", logits, towers=("fused", "temporal"), protocol=softmax_averaged)
    write_table(tmp_path / "late", logits[:, :, ::-1])
    files = StreamScoresConfig(spatial=str(tmp_path / "fused"), temporal=str(tmp_path / "late"))
    read = read_scores(files, name="choose")
    of_views = softmax(logits.reshape(-1, 4)).reshape(logits.shape).mean(axis=(1, 2))
    np.testing.assert_allclose(softmax(read.spatial), of_views, atol=1e-6)
    np.testing.assert_allclose(read.temporal, logits[:, :, 0].mean(axis=1), atol=1e-6)
    with pytest.raises(ConfigError, match="must have scores of a spatial and a temporal tower, it lacks spatial"):
        read_scores(StreamScoresConfig(both=str(tmp_path / "fused")), name="choose")


def test_a_table_that_is_not_whole_is_no_table_to_choose_by(tmp_path: Path) -> None:
    write_table(tmp_path / "part", np.zeros((20, 1, 2, 4), np.float32), blocks=[0])
    with pytest.raises(StorageError, match="lacks 4 of 20 clips"):
        read_scores(StreamScoresConfig(both=str(tmp_path / "part")), name="choose")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([], "choose.spatial and choose.temporal"),
        (["--choose.spatial", "a.npz"], "scores are wanted as spatial and temporal, or as both, got spatial a.npz"),
        (["--choose.both", "a.npz", "--weight_step", "0"], "weight_step must be in [0.0001, 1], got 0.0"),
        (["--choose.both", "a.npz", "--temperatures", "[0]"], "temperatures must be more than 0, got [0.0]"),
        (["--choose.both", "a.npz", "--svm_penalties", "[1]"], "svm_penalties need quote.spatial and quote.temporal"),
        (["--choose.both", "a.npz", "--of", "[]"], "of must name logits, softmax or both"),
    ],
)
def test_settings_that_make_no_sense_are_refused_in_one_line(
    arguments: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["tune-scores", *arguments]) == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert line.startswith("twostream tune-scores: error: ") and said in line
