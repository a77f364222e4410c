import numpy as np
import pytest
from html_pages import parsed, shown

from twostream_ray.errors import ConfigError
from twostream_ray.explanation import ExplainedSnippet, Explanation
from twostream_ray.runs.score.explanation_page import Reasons, explanation_page, explanation_video
from twostream_ray.stream_contributions import StreamContributions


def snippet(seconds: float, *layers: str, **more: object) -> ExplainedSnippet:
    activation = np.zeros((6, 8), np.float32)
    activation[2:4, 3:6] = 1
    streams = {"rgb": np.full((6, 8, 3), 90, np.uint8), "flow": np.ones((6, 8, 2), np.float32)} | more
    return ExplainedSnippet(seconds=seconds, activations=dict.fromkeys(layers, activation), **streams)


def reasons(**more: object) -> Reasons:
    streams = StreamContributions(
        logit=2.0, baseline=0.0, by_stream={"spatial": 1.5, "temporal": 0.5}, method="exact", gap=0.0
    )
    explanation: dict[str, object] = {
        "class_index": 1,
        "streams": streams,
        "seconds": (0.2, 0.4),
        "falls": (1.0, -0.5),
        "snippets": (snippet(0.2, "spatial", "temporal"), snippet(0.4, "spatial", "temporal")),
        "missing": {"fused": "its streams meet only in their scores"},
    }
    answer = {"video": "a.mp4", "model": "m", "label": "jump", "best": "jump", "probability": 0.9}
    return Reasons(
        **{key: more.get(key, value) for key, value in answer.items()},
        duration_seconds=2.0,
        explanation=Explanation(**{key: more.get(key, value) for key, value in explanation.items()}),
    )


def test_a_page_says_shares_seconds_and_which_layer_there_is_not() -> None:
    page = explanation_page(reasons(), moments=8)
    text = shown(page)
    for said in (
        *("Why this is jump", "90.0%", "appearance 75%", "motion 25%", "+1.50", "These numbers are exact"),
        *("Most depends on 0.20 s.", "-0.500", "Not shown: its streams meet only in their scores."),
    ):
        assert said in text, said
    assert parsed(page).tags.count("img") == 2 * 2 * 2


def test_a_network_without_maps_is_explained_on_a_page_and_not_in_a_video() -> None:
    blind = reasons(snippets=(snippet(0.2),), missing={"spatial": "mvit_v2_s computes tokens, no maps"})
    assert "Not shown: mvit_v2_s computes tokens, no maps." in shown(explanation_page(blind, moments=8))
    with pytest.raises(
        ConfigError, match=r"there are none \(spatial: mvit_v2_s computes tokens, no maps\): name an \.html"
    ):
        explanation_video(blind, mark="mark")


def test_a_class_that_a_video_does_not_get_is_said() -> None:
    found = reasons(label="run", probability=0.1)
    assert "Evidence for run" in shown(explanation_page(found, moments=8))
    assert found.sentence() == "a.mp4: run 0.100 (predicted: jump), of 75% appearance and 25% motion"


def test_shares_that_do_not_add_up_are_called_rough() -> None:
    streams = StreamContributions(
        logit=2.0, baseline=0.0, by_stream={"spatial": 1.0}, method="integrated gradients", gap=0.5
    )
    assert "so the shares are rough" in shown(explanation_page(reasons(streams=streams), moments=8))


def test_one_stream_alone_is_shown_without_the_other() -> None:
    alone = (snippet(0.2, "temporal", rgb=None),)
    missing = {"spatial": "this network has no spatial stream", "fused": "its streams meet only in their scores"}
    page = explanation_page(reasons(snippets=alone, missing=missing), moments=8)
    assert parsed(page).tags.count("img") == 1


@pytest.mark.parametrize("name", ["<script>alert(1)</script>", "a & b"])
def test_no_name_becomes_markup(name: str) -> None:
    page = explanation_page(reasons(label=name, best=name, video=name), moments=8)
    assert parsed(page).tags == parsed(explanation_page(reasons(), moments=8)).tags
