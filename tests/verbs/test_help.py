import re

import pytest

from twostream_ray.cli import main
from twostream_ray.verbs.commands import GROUPS, VERBS


def shown(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    assert main(arguments) == 0
    return capsys.readouterr().out


@pytest.mark.slow
@pytest.mark.parametrize("columns", [80, 120])
def test_help_fits_the_terminal(
    columns: int, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", str(columns))
    for words in ([], *map(str.split, GROUPS), *map(str.split, VERBS)):
        text = shown(["help", *words], capsys)
        assert max(map(len, text.splitlines())) <= columns, words
        assert text == shown([*words, "--help"], capsys) and "\n\n\n" not in text


@pytest.mark.slow
def test_short_help_has_examples_first_then_settings_then_the_way_to_all(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "120")
    for name, verb in VERBS.items():
        text = shown(["help", *name.split()], capsys)
        wanted = [f"  twostream {name}", *(f"--{one}" for one in verb.shown), *verb.more]
        assert [text.index(f"\n  {one}") if one[0] == "-" else text.index(one) for one in wanted] == sorted(
            text.index(f"\n  {one}") if one[0] == "-" else text.index(one) for one in wanted
        )
        assert (f"twostream {name} --help-all lists all" in text) == (verb.settings is not None)


@pytest.mark.slow
def test_an_option_and_its_value_stay_on_a_line_of_an_example(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    for name in VERBS:
        assert not re.search(r"--[\w.]+ \\\n +(?!-)", shown(["help", *name.split()], capsys))


def test_the_whole_help_has_every_setting(capsys: pytest.CaptureFixture[str]) -> None:
    whole = shown(["train", "--help-all"], capsys)
    assert all(f"--{name}" in whole for name in ("data.decode_at", "training.micro_batches", "workers.timeout_s"))
    assert "default: " in whole and "default: " not in shown(["train", "-h"], capsys)


def test_help_for_what_is_no_verb_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["help", "fly"]) == 2
    assert "unknown verb 'fly'" in capsys.readouterr().err
