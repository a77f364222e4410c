from collections.abc import AsyncIterator, Sequence
from typing import Any

import pytest

from twostream_ray.errors import ClusterError
from twostream_ray.runs.submit import job_logs
from twostream_ray.runs.submit.dashboard import Dashboard, Job, UnreachableError
from twostream_ray.runs.submit.job_logs import JobLog, exit_code


class Broken(Dashboard):
    """A dashboard whose connections bring a log's beginning, each as much as is said, and then break."""

    def __init__(self, log: str, lengths: Sequence[int], job: Job) -> None:
        self._log, self._lengths, self._job = log, list(lengths), job

    async def log(self, name: str) -> AsyncIterator[str]:
        """Every connection begins at the beginning, in pieces."""
        breaks = bool(self._lengths)
        length = self._lengths.pop(0) if breaks else len(self._log)
        for start in range(0, length, 7):
            yield self._log[start : min(start + 7, length)]
        if breaks:
            raise UnreachableError("no Ray cluster answers")

    def job(self, name: str) -> Job:
        """As it ended."""
        return self._job


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(job_logs, "_FIRST_PAUSE_S", 0.001)


def followed(log: str, lengths: Sequence[int] = (), **job: Any) -> tuple[list[str], list[str], JobLog]:
    lines: list[str] = []
    said: list[str] = []
    dashboard = Broken(log, lengths, {"status": "FAILED", **job})
    followed = JobLog(dashboard, "a", write=lines.append, notify=said.append)
    followed.follow()
    return lines, said, followed


def test_a_line_is_printed_once_however_often_the_connection_breaks() -> None:
    text = "".join(f"line {number}\n" for number in range(20))
    lines, said, _ = followed(text, [0, 30, 10, 31, 140])
    assert lines == text.splitlines()
    assert said and all("the job continues, reconnecting" in one for one in said)


def test_a_last_line_without_an_end_is_printed_too() -> None:
    assert followed("one\ntwo")[0] == ["one", "two"]


def test_colours_and_control_characters_are_no_part_of_a_line() -> None:
    assert followed("\x1b[36mblue\x1b[0m\x1b]0;title\x07\n")[0] == ["blue\\x1b]0;title\\x07"]


def test_secrets_of_this_shell_are_hidden_in_a_log(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", "hush-hush")
    assert followed("it is hush-hush\n")[0] == ["it is (hidden)"]


def test_the_last_words_are_the_package_s_own_error_or_the_last_line() -> None:
    own = "twostream train: error: no room\n2026 ray is going down\n"
    assert followed(own)[2].final_error == "no room"
    assert followed("Traceback\nModuleNotFoundError: ray\n\n")[2].final_error == "ModuleNotFoundError: ray"
    assert followed("")[2].final_error == ""


def test_a_cluster_that_stays_away_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(job_logs, "_GIVE_UP_S", 0.0)
    with pytest.raises(ClusterError, match="`twostream jobs logs a` follows the job a once it does"):
        followed("text", [0, 0, 0, 0])


@pytest.mark.parametrize(
    ("status", "code", "given"),
    [
        ("SUCCEEDED", 0, 0),
        ("FAILED", 2, 2),
        ("FAILED", 137, 137),
        ("FAILED", -9, 137),
        ("FAILED", None, 1),
        ("FAILED", 0, 1),
        ("STOPPED", None, 130),
    ],
)
def test_the_exit_code_is_the_job_s_own(status: str, code: int | None, given: int) -> None:
    assert exit_code({"status": status, "driver_exit_code": code}) == given
