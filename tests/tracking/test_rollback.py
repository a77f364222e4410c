import pytest
from champion_model import Model, promote_just_before

from twostream_ray.cli import main
from twostream_ray.errors import RegistryError
from twostream_ray.tracking import (
    TrackingConfig,
    rollback,
)

pytestmark = pytest.mark.slow


def tags(model: Model, version: int) -> dict[str, str]:
    return dict(model.client.get_model_version(model.name, str(version)).tags)


def test_rollback_gives_the_title_back_to_the_champion_before_and_says_so(model: Model) -> None:
    model.promote(model.version(0.5))
    model.promote(model.version(0.75))
    moved = rollback(model.name, config=model.config, because="its test labels were wrong")
    assert (moved.champion, moved.taken_back) == (1, 2)
    assert moved.reason == f"version 1 is champion of {model.name}, instead of version 2"
    assert model.aliases() == {"champion": 1}
    assert ", to version 1: its test labels were wrong" in tags(model, 2)["rolled_back"]
    assert "rolled_back" not in tags(model, 1)


def test_rolling_back_again_goes_further_back_and_ends_with_a_way_out(model: Model) -> None:
    for top1 in (0.5, 0.6, 0.4, 0.7):  # version 3 was never champion
        model.promote(model.version(top1))
    assert [rollback(model.name, config=model.config).champion for _ in range(2)] == [2, 1]
    assert model.aliases() == {"champion": 1, "challenger": 3}
    with pytest.raises(RegistryError, match=r"is recorded before 1: name one of 1, 2, 3, 4 with --to"):
        rollback(model.name, config=model.config)


def test_what_was_rolled_back_does_not_come_back_with_the_next_promotion(model: Model) -> None:
    model.promote(model.version(0.5))
    model.promote(model.version(0.9))  # a moment ago: it would still count as a contender
    rollback(model.name, config=model.config)
    verdict = model.promote(model.version(0.7))
    assert "beats 0.5000 of version 1" in verdict.reason
    assert model.aliases() == {"champion": 3}


def test_what_was_rolled_back_contends_again_once_it_is_promoted_itself(model: Model) -> None:
    model.promote(model.version(0.5))
    model.promote(model.version(0.9))
    rollback(model.name, config=model.config)
    assert model.promote(2).alias == "champion"
    assert model.aliases() == {"champion": 2}
    assert "rolled_back" not in tags(model, 2)


def test_any_version_can_be_named_also_one_that_never_was_champion(model: Model) -> None:
    model.promote(model.version(0.5))
    model.promote(model.version(0.4))
    assert model.aliases() == {"champion": 1, "challenger": 2}
    assert rollback(model.name, config=model.config, to=2).taken_back == 1
    assert model.aliases() == {"champion": 2}
    assert rollback(model.name, config=model.config, to=1).champion == 1  # and back: the mark is gone
    assert "rolled_back" not in tags(model, 1)
    again = rollback(model.name, config=model.config, to=1)
    assert (again.taken_back, again.reason) == (None, "version 1 is champion already")
    with pytest.raises(RegistryError, match="has no version 7 to roll back to, only 1, 2"):
        rollback(model.name, config=model.config, to=7)


def test_a_champion_set_by_hand_can_be_rolled_back_to(model: Model) -> None:
    model.version(0.5)
    model.client.set_registered_model_alias(model.name, "champion", "1")
    model.promote(model.version(0.75))
    assert rollback(model.name, config=model.config).champion == 1


def test_a_promotion_under_way_does_not_undo_a_rollback(model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    model.promote(model.version(0.5))
    model.promote(model.version(0.9))
    ours = model.version(0.7)
    promote_just_before(monkeypatch, "set_model_version_tag", lambda: rollback(model.name, config=model.config, to=1))
    verdict = model.promote(ours)  # it had read version 2 as the one to beat
    assert model.aliases()["champion"] == ours == verdict.champion


def test_rollback_of_an_unknown_model_names_the_registry(
    tracking: TrackingConfig, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["rollback", "--tracking.uri", str(tracking.uri), "--tracking.model_name", "nobody"]
    assert main(arguments) == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert "twostream rollback: error: rolling back nobody failed at MLflow sqlite:" in line
    assert "check tracking.model_name" in line


def test_the_command_says_what_moved(model: Model, capsys: pytest.CaptureFixture[str]) -> None:
    model.promote(model.version(0.5))
    model.promote(model.version(0.75))
    where = ["--tracking.uri", model.config.resolved_uri(), "--tracking.model_name", model.name]
    assert main(["rollback", *where, "--because", "too slow"]) == 0
    assert f"version 1 is champion of {model.name}, instead of version 2" in capsys.readouterr().out
    assert "too slow" in tags(model, 2)["rolled_back"]


def test_the_reason_of_a_rollback_is_recorded_without_the_secrets_in_it(model: Model) -> None:
    model.promote(model.version(0.5))
    model.promote(model.version(0.75))
    rollback(model.name, config=model.config, because="wrong, see http://ann:hu/sh@host/x")
    mark = model.client.get_model_version(model.name, "2").tags["rolled_back"]
    assert mark.endswith("wrong, see http://(hidden)@host/x")
