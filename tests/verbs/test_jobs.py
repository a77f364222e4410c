import pytest

from twostream_ray.cli import main
from twostream_ray.errors import ConfigError
from twostream_ray.runs.submit.settings import JobsConfig, SubmitConfig
from twostream_ray.settings.checks import names_of
from twostream_ray.verbs.commands import VERBS, settings_class
from twostream_ray.verbs.jobs import STAY_HERE, split_arguments


def refused(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    assert main(arguments) == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    return line


def test_settings_of_submit_stand_anywhere_and_all_others_are_the_verbs() -> None:
    words = ["--address", "http://h:1", "train", "shards", "--name", "first", "--follow", "--gpus=2"]
    words += ["--secrets", "A", "--storage", "s3://b/r"]
    own, verb, rest = split_arguments(words)
    assert own == ["--address", "http://h:1", "--follow", "--gpus=2", "--secrets", "A"]
    assert (verb, rest) == ("train", ["shards", "--name", "first", "--storage", "s3://b/r"])
    assert split_arguments(["benchmark", "step", "--follow", "false"])[1:] == ("benchmark step", [])


def test_no_setting_of_submit_is_one_of_a_verb_that_may_be_submitted() -> None:
    own = set(names_of(SubmitConfig))
    for verb in VERBS.keys() - STAY_HERE:
        kind = settings_class(verb)
        assert kind is None or not own & set(names_of(kind)), verb


def test_a_verb_that_is_no_work_for_a_cluster_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert "submit wants a verb that works on a cluster (" in refused(["submit", "completion", "bash"], capsys)
    assert "got nothing" in refused(["submit"], capsys)


def test_settings_of_the_verb_are_checked_before_a_cluster_is_asked(capsys: pytest.CaptureFixture[str]) -> None:
    nobody = ["--address", "http://127.0.0.1:1"]
    train = ["submit", "train", "shards", "--name", "a"]
    assert "unknown setting 'fly'" in refused([*train, "--fly", "1", *nobody], capsys)
    assert "storage is runs, which would be in the copy of the job's working directory" in refused(
        [*train, *nobody], capsys
    )
    assert "no Ray cluster answers at http://127.0.0.1:1" in refused([*train, "--storage", "/r", *nobody], capsys)


def test_names_that_are_no_variables_and_a_list_of_one_job_are_refused() -> None:
    with pytest.raises(ConfigError, match="secrets wants names of environment variables, got 'A B'"):
        SubmitConfig(verb="train", secrets=["A B=secret"])
    with pytest.raises(ConfigError, match="list wants no job"):
        JobsConfig(job="a")
