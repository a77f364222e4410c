import numpy as np
import pytest

from twostream_ray.errors import ConfigError
from twostream_ray.heads import Head, choose_heads, class_scores, heads_of, softmax


def test_one_data_set_is_one_nameless_head() -> None:
    for sizes in ((), (3,)):
        assert heads_of(("a", "b/c", "b/d"), sizes) == (Head(name="", start=0, stop=3),)


def test_heads_are_named_as_the_data_sets_whose_names_their_classes_begin_with() -> None:
    first, second = heads_of(("u/run", "u/a/b", "h/run"), (2, 1))
    assert (first.name, second.name) == ("u", "h")
    assert first.classes_of(("u/run", "u/a/b", "h/run")) == ("u/run", "u/a/b")
    assert second.classes_of(("u/run", "u/a/b", "h/run")) == ("h/run",)


@pytest.mark.parametrize("classes", [("run", "walk", "sit"), ("u/run", "v/walk", "h/sit"), ("u/a", "u/b", "u/c")])
def test_heads_whose_classes_name_no_data_set_of_their_own_are_numbered(classes: tuple[str, ...]) -> None:
    assert [head.name for head in heads_of(classes, (2, 1))] == ["1", "2"]


def test_a_head_is_chosen_by_its_name_and_an_unknown_one_is_refused() -> None:
    heads = heads_of(("u/run", "u/walk", "h/run"), (2, 1))
    assert choose_heads(heads, None, of="it") == heads
    assert choose_heads(heads, "h", of="it") == heads[1:]
    with pytest.raises(ConfigError, match="head must name a data set of the model, got 'x': it has u, h; or leave"):
        choose_heads(heads, "x", of="the model")
    with pytest.raises(ConfigError, match="got 'x': it has one data set alone, without a name"):
        choose_heads(heads_of(("run", "walk"), ()), "x", of="the model")


def test_softmax_of_huge_logits_is_finite_and_adds_up_to_one() -> None:
    probabilities = softmax([[1000.0, 1000.0, -1000.0]])
    np.testing.assert_allclose(probabilities, [[0.5, 0.5, 0.0]])


def test_probabilities_are_the_softmax_of_the_logits_of_each_data_set_whatever_a_network_averages() -> None:
    heads = heads_of(("u/run", "u/walk", "u/sit", "h/run", "h/sit"), (3, 2))
    values = np.random.default_rng(0).normal(size=(4, 5))
    shares = np.concatenate([softmax(values[:, :3]), softmax(values[:, 3:])], axis=1)
    for averaged, are in ((values, "logits"), (shares, "probabilities")):
        found = class_scores(averaged, are=are, heads=heads)
        np.testing.assert_allclose(found.probabilities, shares)
        for head in heads:
            np.testing.assert_allclose(softmax(found.logits[:, head.columns]), shares[:, head.columns])
    certain = class_scores([[1.0, 0.0]], are="probabilities", heads=heads_of("ab", ()))
    assert np.isfinite(certain.logits).all()
