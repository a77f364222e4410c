import random
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from matplotlib.figure import Figure
from matplotlib.image import imread
from matplotlib.text import Text
from pixels import num_pixels

from twostream_ray.visualize import importance_picture, parallel_coordinates_picture, pareto_picture
from twostream_ray.visualize.trials import pareto_front, setting_importance, short_names

FRONT = "#d55e00"
PICTURES = [parallel_coordinates_picture, importance_picture, pareto_picture]
Draw = Callable[[Sequence[dict[str, Any]], Path], None]


def search(num_trials: int, *, failed: int = 0) -> list[dict[str, Any]]:
    """Trials in which fusion over time decides nearly all, and most settings nothing; late networks have no fusion."""
    draw = random.Random(0)
    trials = []
    for number in range(num_trials):
        trial: dict[str, Any] = {"model.architecture": draw.choice(["late", "fused", "fused"])}
        if trial["model.architecture"] == "fused":
            trial["model.fusion.temporal"] = draw.choice(["pool2d", "conv3d"])
            trial["model.fusion.layers"] = draw.choice([["relu2"], ["relu2", "relu4"]])
        trial["training.learning_rate"] = 10 ** draw.uniform(-4, -1)
        trial["model.spatial.dropout"], trial["model.temporal.dropout"] = draw.random(), draw.choice([0.5, 0.9])
        trial["training.momentum"] = 0.9
        trial["score"] = 0.5 + 0.4 * (trial.get("model.fusion.temporal") == "conv3d") + 0.05 * draw.random()
        trial["parameters"] = 50_000 + 1000 * number
        trial["status"] = "stopped early" if number % 3 == 2 else "finished"
        if number < failed:
            trial |= {"score": None, "parameters": None, "status": "failed"}
        trials.append(trial)
    return trials


def texts(figure: Figure) -> list[str]:
    return [artist.get_text() for artist in figure.findobj(Text) if isinstance(artist, Text) and artist.get_text()]


def lines_of_trials(figure: Figure) -> list[Any]:
    return [line for line in figure.axes[0].lines if len(line.get_xdata()) > 2]


# -- any picture of a search


@pytest.mark.slow
@pytest.mark.parametrize("picture", PICTURES)
@pytest.mark.parametrize("num_trials", [0, 1, 200])
def test_a_search_of_any_size_can_be_drawn_and_nothing_is_cut_off(
    picture: Draw, num_trials: int, tmp_path: Path
) -> None:
    picture(search(num_trials, failed=num_trials // 10), tmp_path / "p.png")
    edges = imread(tmp_path / "p.png")[..., :3]
    assert (edges[[0, -1]] == 1).all() and (edges[:, [0, -1]] == 1).all()
    assert max(edges.shape) < 3000


@pytest.mark.slow
@pytest.mark.parametrize("picture", PICTURES)
def test_long_names_and_values_are_shortened_and_no_formula_is_read_into_them(picture: Draw, tmp_path: Path) -> None:
    trials = search(12)
    for number, trial in enumerate(trials):
        trial["model.a_group_without_end." + "an_endless_name_" * 5] = f"$x_{number % 2}$ and words " * 9
        trial["status"] = "finished" if number else "stopped by a hand that had $reasons^"
    picture(trials, tmp_path / "p.png")
    edges = imread(tmp_path / "p.png")[..., :3]
    assert (edges[[0, -1]] == 1).all() and (edges[:, [0, -1]] == 1).all()
    assert max(edges.shape) < 2000


@pytest.mark.slow
@pytest.mark.parametrize("picture", PICTURES)
def test_every_picture_says_what_became_of_the_trials(picture: Draw, figures: list[Figure], tmp_path: Path) -> None:
    picture(search(14, failed=2), tmp_path / "p.png")
    said = "14 trials: 8 finished, 4 stopped early, 2 failed (2 without a score)"
    assert any(text.startswith(said) for text in [*texts(figures[0]), figures[0].get_suptitle()])


def test_settings_are_named_as_far_as_it_takes_to_tell_them_apart() -> None:
    assert short_names(["seed", "model.fusion.method", "a.spatial.tower.width", "a.temporal.tower.width"]) == [
        "seed",
        "fusion.method",
        "spatial.tower.width",
        "temporal.tower.width",
    ]


# -- parallel coordinates


@pytest.mark.slow
def test_each_trial_is_a_line_and_only_settings_that_vary_have_an_axis(figures: list[Figure], tmp_path: Path) -> None:
    parallel_coordinates_picture(search(14), tmp_path / "p.png")
    assert len(lines_of_trials(figures[0])) == 14
    shown = {text.replace("\n", "") for text in texts(figures[0])}
    assert {"fusion.temporal", "fusion.layers", "training.learning_rate", "spatial.dropout", "top-1"} <= shown
    assert {"conv3d", "pool2d", "relu2 + relu4", "late"} <= shown
    assert "training.momentum" not in shown


def test_the_best_trial_is_the_darkest_line_and_lies_on_top(figures: list[Figure], tmp_path: Path) -> None:
    trials = search(14)
    parallel_coordinates_picture(trials, tmp_path / "p.png")
    lines = lines_of_trials(figures[0])
    ends = [line.get_ydata()[-1] for line in lines]
    assert ends == sorted(ends) and ends[-1] == pytest.approx(1) and ends[0] == pytest.approx(0)
    brightness = [sum(line.get_color()[:3]) for line in lines]
    assert brightness == sorted(brightness, reverse=True)


def test_a_trial_without_a_setting_passes_below_its_axis(figures: list[Figure], tmp_path: Path) -> None:
    trials = search(14)
    parallel_coordinates_picture(trials, tmp_path / "p.png")
    late = sum(trial["model.architecture"] == "late" for trial in trials)
    # The axes: architecture, temporal, layers, two dropouts, learning rate, parameters, top-1; 24 points a step.
    below = [sum(line.get_ydata()[24 * axis] < -0.05 for line in lines_of_trials(figures[0])) for axis in range(8)]
    assert below == [0, late, late, 0, 0, 0, 0, 0]
    assert texts(figures[0]).count("not set") == 2


def test_unfinished_trials_are_dashed_and_those_without_a_score_dotted(figures: list[Figure], tmp_path: Path) -> None:
    parallel_coordinates_picture(search(14, failed=2), tmp_path / "p.png")
    styles = [line.get_linestyle() for line in lines_of_trials(figures[0])]
    dashes = [line._unscaled_dash_pattern for line in lines_of_trials(figures[0])]
    assert styles.count("-") == 8
    assert dashes.count((0, (4, 2))) == 4 and dashes.count((0, (1, 2))) == 2
    assert {"no score", "finished", "did not finish: its last score", "without a score"} <= set(texts(figures[0]))


def test_a_setting_over_decades_has_a_logarithmic_axis(figures: list[Figure], tmp_path: Path) -> None:
    rates = [1e-4, 1e-3, 1e-2, 1e-1]
    trials = [{"rate": rate, "score": 0.5, "status": "finished"} for rate in rates]
    parallel_coordinates_picture(trials, tmp_path / "p.png")
    heights = sorted(line.get_ydata()[0] for line in lines_of_trials(figures[0]))
    assert heights == pytest.approx([0, 1 / 3, 2 / 3, 1])
    assert {"0.0001", "0.001", "0.01", "0.1"} <= set(texts(figures[0]))


def test_a_range_is_drawn_on_the_scale_that_it_was_searched_on(figures: list[Figure], tmp_path: Path) -> None:
    trials = [{"rate": 0.01 * 2**n, "share": 10.0**-n, "score": 0.1 * n, "status": "finished"} for n in range(4)]
    parallel_coordinates_picture(trials, tmp_path / "p.png", logarithmic={"rate": True, "share": False})
    rate, share = (sorted(line.get_ydata()[24 * axis] for line in lines_of_trials(figures[0])) for axis in (0, 1))
    assert rate == pytest.approx([0, 1 / 3, 2 / 3, 1]), "though less than one decade"
    assert share == pytest.approx([0, 0.009, 0.099, 1], abs=0.01), "though three decades"


# -- importance


@pytest.mark.slow
def test_the_setting_that_decides_is_the_most_important() -> None:
    found = setting_importance(search(60))
    assert found is not None
    first, second = list(found.settings)[:2]
    assert first == "model.fusion.temporal"
    assert found.settings[first][0] > 3 * found.settings[second][0]
    assert found.settings[first][0] > 0.1  # of the 0.2 that conv3d makes on the average
    assert found.error < 0.3 * found.error_of_mean
    assert "training.momentum" not in found.settings


@pytest.mark.slow
def test_importance_is_the_same_every_time() -> None:
    trials = [{"a": number % 3, "score": 0.1 * (number % 4), "status": "finished"} for number in range(10)]
    assert setting_importance(trials) == setting_importance(trials)


@pytest.mark.slow
def test_importance_on_noise_says_that_nothing_is_known(figures: list[Figure], tmp_path: Path) -> None:
    draw = random.Random(1)
    trials = [trial | {"score": draw.random()} for trial in search(20)]
    importance_picture(trials, tmp_path / "p.png")
    assert "these trials do not show which settings matter" in figures[0].get_suptitle()
    assert "20 scores: on held-out trials a forest is off by" in figures[0].get_suptitle()
    assert num_pixels(tmp_path / "p.png", "#9ecae1") == 0  # bars that mean something are blue
    importance_picture(search(60), tmp_path / "q.png")
    assert "do not show" not in figures[1].get_suptitle()
    assert num_pixels(tmp_path / "q.png", "#9ecae1") > 1000


def test_too_few_scores_are_said_not_drawn(figures: list[Figure], tmp_path: Path) -> None:
    importance_picture(search(9, failed=2), tmp_path / "p.png")
    assert "too few to say: 7 of 9 trials have a score, at least 8 are needed" in texts(figures[0])
    importance_picture([{"a": 1, "score": 0.1 * n, "status": "finished"} for n in range(9)], tmp_path / "p.png")
    assert "nothing to compare: all trials with a score have the same settings" in texts(figures[1])


# -- Pareto


def trial(parameters: int | None, score: float | None, status: str = "finished") -> dict[str, Any]:
    return {"parameters": parameters, "score": score, "status": status}


def test_the_front_holds_what_no_smaller_network_beats() -> None:
    trials = [
        trial(300, 0.9),
        trial(100, 0.5),
        trial(200, 0.5),  # larger and not better
        trial(200, 0.7),
        trial(100, 0.4),
        trial(200, 0.7),  # an equal of an earlier one
        trial(50, 0.95, "stopped early"),  # not measured to the end
        trial(400, None, "failed"),
        trial(None, 0.99),
        trial(10, float("nan")),
    ]
    assert pareto_front(trials) == [1, 3, 0]


def test_the_front_is_drawn_numbered_and_listed_with_its_settings(figures: list[Figure], tmp_path: Path) -> None:
    trials = [
        trial(52_408, 0.75) | {"model.fusion.method": "conv", "training.momentum": 0.9},
        trial(50_328, 0.5) | {"model.fusion.method": "sum", "training.momentum": 0.9},
        trial(90_000, 0.6) | {"model.fusion.method": "max", "training.momentum": 0.9},
    ]
    pareto_picture(trials, tmp_path / "p.png")
    (listed,) = [text for text in texts(figures[0]) if "50.3k" in text]
    first, second = listed.splitlines()
    assert first.split() == ["1", "50.0%", "50.3k", "fusion.method", "sum"]
    assert second.split() == ["2", "75.0%", "52.4k", "fusion.method", "conv"]
    (step,) = [line for line in figures[0].axes[0].lines if line.get_color() == FRONT]
    assert list(step.get_xydata()[:, 0]) == [50_328, 52_408, 90_000]
    assert num_pixels(tmp_path / "p.png", FRONT) > 500


def test_a_front_of_one_trial_and_one_in_which_a_setting_is_the_same_have_their_settings_too(
    figures: list[Figure], tmp_path: Path
) -> None:
    best = trial(50, 0.9) | {"model.fusion.method": "conv", "training.learning_rate": 0.01}
    pareto_picture([best], tmp_path / "p.png")
    pareto_picture([best, trial(60, 0.5) | {"model.fusion.method": "sum"}], tmp_path / "p.png")
    for figure in figures:
        (listed,) = [text for text in texts(figure) if "90.0%" in text and "fusion" in text]
        assert "fusion.method conv" in listed and "training.learning_rate 0.01" in listed


def test_unfinished_trials_are_hollow_and_make_no_front(figures: list[Figure], tmp_path: Path) -> None:
    pareto_picture([trial(100, 0.5, "stopped early"), trial(200, 0.6, "stopped early")], tmp_path / "p.png")
    assert num_pixels(tmp_path / "p.png", FRONT) == 0
    (dots,) = figures[0].axes[0].collections
    assert len(dots.get_facecolor()) == 0 and len(np.asarray(dots.get_offsets())) == 2
    assert "did not finish: last score" in texts(figures[0])


def test_a_search_without_a_score_says_so(figures: list[Figure], tmp_path: Path) -> None:
    pareto_picture([trial(100, None, "failed")], tmp_path / "p.png")
    assert "no trial has a score yet" in texts(figures[0])
