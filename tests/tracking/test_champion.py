import contextlib
import json
import re
import shlex
import subprocess
import sys
import uuid
from collections.abc import Iterator

import pytest

from twostream_ray.cli import main
from twostream_ray.errors import RegistryError
from twostream_ray.runs.score.settings import EvaluateConfig
from twostream_ray.settings.parser import from_arguments
from twostream_ray.tracking import (
    Measurement,
    TrackingConfig,
    Verdict,
    find_version,
    promote,
    record_measurement,
    rollback,
)
from twostream_ray.tracking.connection import client_for

pytestmark = pytest.mark.slow

OLD, NEW = "0a" * 32, "1b" * 32


class Model:
    """A registered model whose versions have scores but no files."""

    def __init__(self, config: TrackingConfig, name: str) -> None:
        self.config, self.name = config, name
        self.client = client_for(config.resolved_uri())
        self.client.create_registered_model(name)

    def version(self, top1: float | None, *, manifest: str = OLD, evaluated: int = 300) -> int:
        made = self.client.create_model_version(self.name, source="s3://nowhere/model", run_id=None)
        number = int(made.version)
        if top1 is not None:
            self.measure(number, top1, manifest=manifest, evaluated=evaluated)
        return number

    def measure(self, version: int, top1: float, *, manifest: str = OLD, evaluated: int = 300) -> None:
        measurement = Measurement(
            manifest_hash=manifest, split="test", num_evaluated=evaluated, num_clips=300, metrics={"top1": top1}
        )
        record_measurement(self.name, version, measurement, config=self.config)

    def promote(self, version: int, *, manifest: str = OLD) -> Verdict:
        return promote(self.name, version, config=self.config, manifest_hash=manifest, split="test")

    def aliases(self) -> dict[str, int]:
        return {alias: int(number) for alias, number in self.client.get_registered_model(self.name).aliases.items()}


@pytest.fixture
def model(tracking: TrackingConfig) -> Model:
    return Model(tracking, f"model {uuid.uuid4()}")


def test_first_measured_version_is_champion(model: Model) -> None:
    verdict = model.promote(model.version(0.25))
    assert (verdict.alias, verdict.champion) == ("champion", 1)
    assert verdict.reason == "version 1 is champion: the model had none"
    assert model.aliases() == {"champion": 1}


def test_champion_moves_to_a_version_that_beats_it_on_the_same_manifest(model: Model) -> None:
    model.promote(model.version(0.5))
    verdict = model.promote(model.version(0.75))
    assert verdict.reason == (
        "version 2 is champion: top1 0.7500 beats 0.5000 of version 1 on 300 of 300 clips, "
        "split test of manifest 0a0a0a0a0a0a"
    )
    assert model.aliases() == {"champion": 2}


@pytest.mark.parametrize("top1", [0.5, 0.25])
def test_version_that_does_not_beat_the_champion_is_challenger(model: Model, top1: float) -> None:
    model.promote(model.version(0.5))
    verdict = model.promote(model.version(top1))
    assert verdict.alias == "challenger"
    assert f"top1 {top1:.4f} does not beat 0.5000 of version 1" in verdict.reason
    assert model.aliases() == {"champion": 1, "challenger": 2}


def test_scores_on_another_manifest_never_move_the_champion(model: Model) -> None:
    model.promote(model.version(0.5, manifest=OLD))
    better = model.version(0.99, manifest=NEW)
    verdict = model.promote(better, manifest=NEW)
    assert model.aliases() == {"champion": 1, "challenger": better}
    assert "version 1, champion, was never measured on split test of manifest 1b1b1b1b1b1b" in verdict.reason

    model.measure(1, 0.6, manifest=NEW)  # the way out that the sentence names
    assert model.promote(better, manifest=NEW).alias == "champion"
    assert model.aliases() == {"champion": better}


def test_scores_on_fewer_clips_are_not_compared(model: Model) -> None:
    model.promote(model.version(0.5))
    verdict = model.promote(model.version(0.75, evaluated=10))
    assert verdict.alias == "challenger"
    assert "scored 10 of 300 clips" in verdict.reason
    assert "300 of 300" in verdict.reason


def test_promoting_again_changes_nothing(model: Model) -> None:
    model.promote(model.version(0.5))
    assert model.promote(1).reason == "version 1 is champion: it was so before"
    assert model.aliases() == {"champion": 1}


def test_champion_set_by_hand_is_the_one_to_beat(model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    model.promote(model.version(0.5))
    model.promote(model.version(0.9))
    model.client.set_registered_model_alias(model.name, "champion", "1")  # 0.9 turned out to be a mistake
    monkeypatch.setattr("twostream_ray.tracking.champion._CONCURRENT_SECONDS", 0.0)  # and was so a while ago
    verdict = model.promote(model.version(0.75))
    assert "beats 0.5000 of version 1" in verdict.reason
    assert model.aliases() == {"champion": 3}


def test_deleted_champion_is_no_champion(model: Model) -> None:
    model.promote(model.version(0.9))
    model.client.delete_model_version(model.name, "1")
    assert model.promote(model.version(0.5)).champion == 2


def test_promotion_without_a_measurement_says_what_to_do(model: Model) -> None:
    unmeasured = model.version(None)
    with pytest.raises(RegistryError, match=r"no top1 on split test of manifest 0a0a.*`twostream evaluate "):
        model.promote(unmeasured)
    with pytest.raises(RegistryError, match=r"has no version 7, only 1"):
        model.promote(7)
    assert model.aliases() == {}


def test_promotion_of_an_unknown_model_names_the_registry(tracking: TrackingConfig) -> None:
    with pytest.raises(
        RegistryError, match=r"promoting nobody version 1 failed at MLflow sqlite:///.*check tracking\.model_name"
    ):
        promote("nobody", 1, config=tracking, manifest_hash=OLD, split="test")


# What follows interleaves two promotions at the worst moment: the other's runs whole between this one's reading of the
# champion and its writing.


@pytest.mark.parametrize("top1_of_the_other", [0.9, 0.7])
def test_late_writer_does_not_displace_a_better_champion(
    model: Model, monkeypatch: pytest.MonkeyPatch, top1_of_the_other: float
) -> None:
    model.promote(model.version(0.5))
    other, ours = model.version(top1_of_the_other), model.version(0.8)
    _promote_just_before(monkeypatch, "set_registered_model_alias", lambda: model.promote(other))
    verdict = model.promote(ours)
    best = other if top1_of_the_other > 0.8 else ours
    assert model.aliases()["champion"] == best == verdict.champion
    assert verdict.alias == ("champion" if best == ours else "challenger")


def test_two_first_versions_on_different_manifests_leave_the_older(
    model: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    older, ours = model.version(0.5, manifest=OLD), model.version(0.9, manifest=NEW)
    _promote_just_before(monkeypatch, "set_registered_model_alias", lambda: model.promote(older, manifest=OLD))
    verdict = model.promote(ours, manifest=NEW)
    assert verdict.alias == "challenger"
    assert model.aliases() == {"champion": older, "challenger": ours}


def test_equals_that_race_leave_the_older(model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    model.promote(model.version(0.5))
    older, ours = model.version(0.8), model.version(0.8)
    _promote_just_before(monkeypatch, "set_registered_model_alias", lambda: model.promote(older))
    model.promote(ours)
    assert model.aliases()["champion"] == older


def test_version_that_beats_a_champion_promoted_meanwhile_replaces_it(
    model: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    model.promote(model.version(0.5, manifest=OLD), manifest=OLD)
    both = model.version(0.6, manifest=OLD)
    model.measure(both, 0.7, manifest=NEW)
    ours = model.version(0.9, manifest=NEW)
    _promote_just_before(monkeypatch, "set_model_version_tag", lambda: model.promote(both, manifest=OLD))
    verdict = model.promote(ours, manifest=NEW)
    assert model.aliases() == {"champion": ours}
    assert "beats the version that replaced version 1 meanwhile" in verdict.reason


def _promote_just_before(monkeypatch: pytest.MonkeyPatch, method: str, other: object) -> None:
    from mlflow import MlflowClient

    real = getattr(MlflowClient, method)

    def first_the_other(client: object, *arguments: object) -> object:
        monkeypatch.undo()
        other()  # type: ignore[operator]
        return real(client, *arguments)

    monkeypatch.setattr(MlflowClient, method, first_the_other)


PROMOTER = """
import json, sys
from twostream_ray.tracking import TrackingConfig, promote
from twostream_ray.tracking.connection import client_for
for line in sys.stdin:
    uri, name, version, manifest = json.loads(line)
    config = TrackingConfig(uri=uri)
    if version is None:
        client_for(uri).search_registered_models(max_results=1)
        print("ready", flush=True)
    else:
        print(promote(name, version, config=config, manifest_hash=manifest, split="test").champion, flush=True)
"""


@pytest.fixture(scope="module")
def promoters() -> Iterator[list[subprocess.Popen[str]]]:
    """Two processes that promote the version they read, in the registry they read."""
    command = [sys.executable, "-c", PROMOTER]
    with contextlib.ExitStack() as stack:
        yield [
            stack.enter_context(subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True))
            for _ in range(2)
        ]


def write_words(process: subprocess.Popen[str], *words: object) -> None:
    assert process.stdin is not None
    process.stdin.write(json.dumps(words) + "\n")
    process.stdin.flush()


def hear(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    return process.stdout.readline().strip()


@pytest.mark.parametrize(("store", "races"), [("tracking", 8), ("server", 4)])
def test_two_jobs_that_promote_at_once_keep_the_better(
    promoters: list[subprocess.Popen[str]], store: str, races: int, request: pytest.FixtureRequest
) -> None:
    config: TrackingConfig = request.getfixturevalue(store)
    uri = config.resolved_uri()
    for process in promoters:
        write_words(process, uri, "", None, "")
    assert [hear(process) for process in promoters] == ["ready", "ready"]
    for race in range(races):
        model = Model(config, f"race {uuid.uuid4()}")
        if race % 2:  # with and without a champion to beat
            model.promote(model.version(0.5))
        good, better = model.version(0.7), model.version(0.8)
        pair = [good, better] if race % 4 < 2 else [better, good]
        for process, version in zip(promoters, pair, strict=True):
            write_words(process, uri, model.name, version, OLD)
        answers = [hear(process) for process in promoters]
        assert model.aliases()["champion"] == better
        assert answers[pair.index(better)] == str(better)


# -- rollback


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
    with pytest.raises(RegistryError, match=r"on record as champion before 1: name one of 1, 2, 3, 4 with --to"):
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
    _promote_just_before(monkeypatch, "set_model_version_tag", lambda: rollback(model.name, config=model.config, to=1))
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


def test_the_commands_that_a_verdict_names_lead_out_as_they_are(
    model: Model, capsys: pytest.CaptureFixture[str]
) -> None:
    model.promote(model.version(0.5, manifest=OLD))
    better = model.version(0.99, manifest=NEW)
    model.measure(better, 0.4, manifest=OLD)
    verdict = promote(
        model.name, better, config=model.config, manifest_hash=NEW, split="test", shards="s3://bucket/our shards"
    )
    evaluate, promotion = (shlex.split(command)[1:] for command in re.findall(r"`(.*?)`", verdict.reason))
    measuring = from_arguments(EvaluateConfig, evaluate[1:])
    assert (measuring.shards, measuring.split) == ("s3://bucket/our shards", "test")
    assert measuring.is_recorded()
    assert find_version(measuring.model, config=measuring.tracking) == (model.name, 1)

    assert main(promotion) == 0
    assert "version 2 is challenger: version 1, champion, was never measured" in capsys.readouterr().out
    model.measure(1, 0.6, manifest=NEW)
    assert main(promotion) == 0
    assert "version 2 is champion: top1 0.9900 beats 0.6000 of version 1" in capsys.readouterr().out
    assert model.aliases() == {"champion": better}


def test_an_obstacle_is_in_the_verdict_with_the_command_that_decides_all_the_same(
    model: Model, capsys: pytest.CaptureFixture[str]
) -> None:
    model.promote(model.version(0.5, manifest=OLD))
    version = model.version(0.4, manifest=NEW)
    verdict = promote(
        model.name, version, config=model.config, manifest_hash=NEW, split="test", obstacle="it wants another flow"
    )
    assert "version 1, champion, cannot be measured on split test" in verdict.reason
    assert "it wants another flow; to make this one champion all the same:" in verdict.reason
    (command,) = re.findall(r"`(.*?)`", verdict.reason)
    assert main(shlex.split(command)[1:]) == 0
    assert model.aliases() == {"champion": version}


def test_promote_without_a_version_takes_the_newest(model: Model, capsys: pytest.CaptureFixture[str]) -> None:
    where = ["--tracking.uri", model.config.resolved_uri(), "--tracking.model_name", model.name]
    assert main(["promote", *where]) == 2
    assert f"{model.name} has no version: `twostream train` registers one" in capsys.readouterr().err
    model.promote(model.version(0.5))
    for top1 in (0.6, 0.9):
        model.version(top1)
    assert main(["promote", *where]) == 0
    assert "version 3 is champion: top1 0.9000 beats 0.5000 of version 1" in capsys.readouterr().out


JUNK = ["", "{", "[]", "null", "1", '{"declared": 1}', '{"declared": NaN, "terms": {}}', "[" * 3000, '"x"']


@pytest.mark.parametrize("junk", JUNK)
def test_tags_that_nobody_here_wrote_stop_no_promotion_and_no_rollback(
    junk: str, model: Model, caplog: pytest.LogCaptureFixture
) -> None:
    model.promote(model.version(0.5))
    stranger = model.version(None)
    for key in ("contends", f"measured.test.{OLD}", "champion_since"):
        model.client.set_model_version_tag(model.name, str(stranger), key, junk)
    better = model.version(0.75)
    assert model.promote(better).alias == "champion"
    assert model.aliases() == {"champion": better}
    if junk:
        assert f"tag contends of version {stranger}" in caplog.text
    back = rollback(model.name, config=model.config)
    assert (back.champion, back.taken_back) == (1, better)


def test_a_version_nobody_measured_that_claims_to_contend_for_ever_becomes_no_champion(model: Model) -> None:
    import time

    stranger = model.version(None)
    for declared in (time.time(), 9e10):
        claim = {"declared": declared, "terms": {"manifest_hash": OLD, "split": "test", "metric": "top1"}}
        model.client.set_model_version_tag(model.name, str(stranger), "contends", json.dumps(claim))
    measured = model.version(0.25)
    assert model.promote(measured).champion == measured
    far = model.version(0.99)
    model.client.set_model_version_tag(model.name, str(far), "contends", json.dumps(claim))
    assert model.promote(model.version(0.5)).champion != far


def test_the_reason_of_a_rollback_is_recorded_without_the_secrets_in_it(model: Model) -> None:
    model.promote(model.version(0.5))
    model.promote(model.version(0.75))
    rollback(model.name, config=model.config, because="wrong, see http://ann:hu/sh@host/x")
    mark = model.client.get_model_version(model.name, "2").tags["rolled_back"]
    assert mark.endswith("wrong, see http://(hidden)@host/x")
