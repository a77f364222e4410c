import contextlib
import json
import re
import shlex
import subprocess
import sys
import uuid
from collections.abc import Iterator

import pytest
from champion_model import NEW, OLD, Model, promote_just_before

from twostream_ray.cli import main
from twostream_ray.errors import RegistryError
from twostream_ray.runs.score.settings import EvaluateConfig
from twostream_ray.settings.parser import from_arguments
from twostream_ray.tracking import (
    TrackingConfig,
    find_version,
    promote,
    rollback,
)

pytestmark = pytest.mark.slow


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
    assert model.promote(1).reason == "version 1 is champion: it already was"
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
    promote_just_before(monkeypatch, "set_registered_model_alias", lambda: model.promote(other))
    verdict = model.promote(ours)
    best = other if top1_of_the_other > 0.8 else ours
    assert model.aliases()["champion"] == best == verdict.champion
    assert verdict.alias == ("champion" if best == ours else "challenger")


def test_two_first_versions_on_different_manifests_leave_the_older(
    model: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    older, ours = model.version(0.5, manifest=OLD), model.version(0.9, manifest=NEW)
    promote_just_before(monkeypatch, "set_registered_model_alias", lambda: model.promote(older, manifest=OLD))
    verdict = model.promote(ours, manifest=NEW)
    assert verdict.alias == "challenger"
    assert model.aliases() == {"champion": older, "challenger": ours}


def test_equals_that_race_leave_the_older(model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    model.promote(model.version(0.5))
    older, ours = model.version(0.8), model.version(0.8)
    promote_just_before(monkeypatch, "set_registered_model_alias", lambda: model.promote(older))
    model.promote(ours)
    assert model.aliases()["champion"] == older


def test_version_that_beats_a_champion_promoted_meanwhile_replaces_it(
    model: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    model.promote(model.version(0.5, manifest=OLD), manifest=OLD)
    both = model.version(0.6, manifest=OLD)
    model.measure(both, 0.7, manifest=NEW)
    ours = model.version(0.9, manifest=NEW)
    promote_just_before(monkeypatch, "set_model_version_tag", lambda: model.promote(both, manifest=OLD))
    verdict = model.promote(ours, manifest=NEW)
    assert model.aliases() == {"champion": ours}
    assert "beats the version that replaced version 1 meanwhile" in verdict.reason


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
    assert "it wants another flow; to make this one champion anyway:" in verdict.reason
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
