"""Journals that were cut, mixed up or made by somebody else."""

import json
import os
import random
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from twostream_ray.cli import main
from twostream_ray.errors import OutboxError
from twostream_ray.tracking import (
    TrackingConfig,
    delivery,
    find_run,
    finish_run,
    log_artifacts,
    log_metrics,
    replay,
    start_run,
    tag_run,
)
from twostream_ray.tracking.connection import client_for

pytestmark = pytest.mark.slow

NOBODY = "http://127.0.0.1:9"


@pytest.fixture
def here(tracking: TrackingConfig, tmp_path: Path) -> TrackingConfig:
    return replace(tracking, experiment=f"of {tmp_path.name}")


@pytest.fixture
def waiting(here: TrackingConfig, tmp_path: Path) -> Path:
    """A run that was recorded while MLflow was away: 4 events of metrics, one of each other kind."""
    root = tmp_path / "run"
    root.mkdir()
    handle = start_run(replace(here, uri=NOBODY), run_name="run", run_uri=str(root), parameters={"lr": 0.1}, tags={})
    for step in range(4):
        log_metrics(handle, {"loss": float(step), "odd": [1e308, float("nan"), float("-inf"), 0.0][step]}, step=step)
    (root / "note.txt").write_text("kept")
    log_artifacts(handle, [root / "note.txt"], folder="kept")
    tag_run(handle, {"colour": "blue"})
    finish_run(handle)
    return root


def events(root: Path) -> list[Path]:
    return sorted((root / "tracking-journal" / "events").iterdir())


def of_kind(root: Path, kind: str) -> Path:
    return next(event for event in events(root) if json.loads(event.read_text())["kind"] == kind)


def losses(config: TrackingConfig, run_id: str) -> list[int]:
    return sorted(row.step for row in client_for(config.resolved_uri()).get_metric_history(run_id, "loss"))


def test_values_that_json_does_not_have_survive_the_journal(here: TrackingConfig, waiting: Path) -> None:
    for event in events(waiting):
        json.loads(event.read_text(), parse_constant=lambda name: pytest.fail(f"{name} is no JSON"))
    run_id = replay(str(waiting), config=here).run_id
    rows = client_for(here.resolved_uri()).get_metric_history(run_id, "odd")
    assert [str(row.value) for row in sorted(rows, key=lambda row: row.step)][1:] == [
        "nan",
        "-1.7976931348623157e+308",
        "0.0",
    ]


DAMAGE: dict[str, Callable[[str], str | bytes]] = {
    "cut": lambda text: text[: len(text) // 2],
    "empty": lambda text: "",
    "no object": lambda text: "[]",
    "another kind": lambda text: text.replace("metrics", "surprise"),
    "no kind": lambda text: text.replace('"kind"', '"sort"'),
    "rows of another shape": lambda text: json.dumps(json.loads(text) | {"values": {"rows": [["loss", 0]]}}),
    "a step that is none": lambda text: json.dumps(json.loads(text) | {"values": {"rows": [["loss", "0", 1.0]]}}),
    "a value that is none": lambda text: json.dumps(json.loads(text) | {"values": {"rows": [["loss", 0, {}]]}}),
    "values of a file": lambda text: json.dumps(json.loads(text) | {"values": {"folder": "x"}}),
    "a number without end": lambda text: text.replace("1.0", "9" * 5000),
    "deep": lambda text: "[" * 100_000,
    "not UTF-8": lambda text: b"\xff\xfe" + text.encode(),
    "not of the time": lambda text: json.dumps(json.loads(text) | {"time_ms": -5}),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_event_is_kept_aside_in_one_line_and_the_others_arrive(
    damage: str, here: TrackingConfig, waiting: Path, caplog: pytest.LogCaptureFixture
) -> None:
    event = events(waiting)[1]
    spoilt = DAMAGE[damage](event.read_text())
    event.write_bytes(spoilt if isinstance(spoilt, bytes) else spoilt.encode())
    before = event.read_bytes()
    delivered = replay(str(waiting), config=here)
    assert (delivered.refused, delivered.files, delivered.statuses) == (1, 1, 1)
    assert losses(here, delivered.run_id) == [0, 2, 3]
    messages = [record.getMessage() for record in caplog.records if str(event) in record.getMessage()]
    assert len(messages) == 1 and "\n" not in messages[0] and "it is kept in" in messages[0]
    kept = waiting / "tracking-journal" / "refused" / event.name
    assert kept.read_bytes() == before
    assert not events(waiting)
    assert replay(str(waiting), config=here).refused == 0


@pytest.mark.parametrize("folder", ["../../outside", "/etc", "a/../../b", "..", "a/./b", "back\\slash", "x" * 900])
def test_files_never_go_to_a_folder_above_their_run(folder: str, here: TrackingConfig, waiting: Path) -> None:
    event = of_kind(waiting, "files")
    event.write_text(json.dumps(json.loads(event.read_text()) | {"values": {"folder": folder}}))
    delivered = replay(str(waiting), config=here)
    assert (delivered.refused, delivered.files, delivered.metrics) == (1, 0, 8)
    assert (waiting / "tracking-journal" / "files" / event.stem / "note.txt").read_text() == "kept"


@pytest.mark.parametrize("link", ["a file", "a folder", "its own folder"])
def test_links_out_of_the_journal_are_neither_sent_nor_deleted(
    link: str, here: TrackingConfig, waiting: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    private = tmp_path / "private"
    private.mkdir()
    (private / "diary.txt").write_text("dear diary")
    event = of_kind(waiting, "files")
    files = waiting / "tracking-journal" / "files" / event.stem
    match link:
        case "a file":
            (files / "diary.txt").symlink_to(private / "diary.txt")
        case "a folder":
            (files / "more").symlink_to(private)
        case _:
            shutil.rmtree(files)
            files.symlink_to(private)
    delivered = replay(str(waiting), config=here)
    assert (private / "diary.txt").read_text() == "dear diary"
    assert (delivered.refused, delivered.files, delivered.metrics) == (1, 0, 8)
    client = client_for(here.resolved_uri())
    assert not client.list_artifacts(delivered.run_id, "kept")
    assert "leads outside" in caplog.text


def test_what_is_no_event_of_ours_is_left_alone(here: TrackingConfig, waiting: Path, tmp_path: Path) -> None:
    folder = waiting / "tracking-journal" / "events"
    (folder / "notes.txt").write_text("mine")
    (folder / "mine.json").write_text("{}")
    (folder / "below").mkdir()
    (folder / "below" / events(waiting)[0].name).write_text("{}")
    os.mkfifo(folder / f"{1:020d}-00000000-1.json")
    delivered = replay(str(waiting), config=here)
    assert (delivered.metrics, delivered.files, delivered.statuses) == (8, 1, 1)
    assert sorted(path.name for path in folder.rglob("*") if path.is_file())[-2:] == ["mine.json", "notes.txt"]


RUN_DAMAGE: dict[str, Callable[[dict[str, Any]], Any]] = {
    "a key that asks for more": lambda run: run | {"key": "x' OR attributes.status = 'FINISHED"},
    "no key": lambda run: {name: value for name, value in run.items() if name != "key"},
    "more": lambda run: run | {"else": 1},
    "parameters that are none": lambda run: run | {"parameters": {"lr": 0.1}},
    "a list": lambda run: [run],
}


@pytest.mark.parametrize("damage", RUN_DAMAGE)
def test_a_run_that_does_not_say_who_it_is_is_named_and_all_others_are_delivered(
    damage: str,
    here: TrackingConfig,
    waiting: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    stored = waiting / "tracking-journal" / "run.json"
    bad = tmp_path / "bad"
    shutil.copytree(waiting, bad)
    (bad / "tracking-journal" / "run.json").write_text(json.dumps(RUN_DAMAGE[damage](json.loads(stored.read_text()))))
    monkeypatch.chdir(tmp_path)
    uri = here.resolved_uri()
    assert main(["track", "replay", "--storage", ".", "--tracking.uri", uri]) == 2
    shown = capsys.readouterr()
    (line,) = shown.err.splitlines()
    assert str(bad / "tracking-journal" / "run.json") in line and "move run.json away" in line
    assert f"{waiting}: metric values 8" in shown.out
    with pytest.raises(OutboxError, match=r"run\.json"):
        start_run(here, run_name="run", run_uri=str(bad), parameters={}, tags={})
    assert find_run(here, run_uri=str(bad)) is None
    assert len(events(bad)) == 7, "nothing is lost"
    (bad / "tracking-journal" / "run.json").rename(tmp_path / "away")  # the way out
    assert start_run(here, run_name="run", run_uri=str(bad), parameters={}, tags={}).run_id
    assert not [event for event in events(bad) if "status" not in event.read_text()]


def test_damaged_ids_are_put_aside_and_the_run_is_found_again(here: TrackingConfig, waiting: Path) -> None:
    first = replay(str(waiting), config=here)
    ids = waiting / "tracking-journal" / "mlflow.json"
    for junk in ("{", '{"experiment_id": "1", "run_id": "../../x"}', "[]"):
        ids.write_text(junk)
        assert replay(str(waiting), config=here).run_id == first.run_id
        assert json.loads(ids.read_text())["run_id"] == first.run_id
    kept = [path for path in (waiting / "tracking-journal" / "refused").iterdir() if path.name.endswith("mlflow.json")]
    assert len(kept) == 3


def test_mutated_journals_are_delivered_or_named_and_never_lead_outside(
    here: TrackingConfig, waiting: Path, tmp_path: Path
) -> None:
    draw = random.Random(22)
    original = tmp_path / "original"
    waiting.rename(original)
    for number in range(25):
        shutil.copytree(original, waiting)
        paths = sorted(path for path in (waiting / "tracking-journal").rglob("*.json") if path.is_file())
        path = draw.choice(paths)
        content = bytearray(path.read_bytes())
        for _ in range(draw.randint(1, 4)):
            at = draw.randrange(len(content))
            match draw.randrange(4):
                case 0:
                    content[at] = draw.randrange(256)
                case 1:
                    del content[at : at + draw.randint(1, 30)]
                case 2:
                    content[at:at] = draw.choice([b"../", b'"', b"null", b"1e999", b"{", b"-", b"NaN", b"\x00"])
                case _:
                    content = content[: at + 1]
            content = content or bytearray(b" ")
        path.write_bytes(content)
        try:
            delivered = replay(str(waiting), config=here)
            assert delivered.metrics + 2 * delivered.refused >= 0
            assert not events(waiting), number
        except OutboxError as error:
            assert path.name == "run.json" and str(path) in str(error) and "\n" not in str(error)
            assert len(events(waiting)) == 7
        shutil.rmtree(waiting)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["original"]
    delivery._outages.clear()
