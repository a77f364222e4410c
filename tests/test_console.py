import io
import os
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace

import pytest
from rich.console import Console

from twostream_ray import console as module
from twostream_ray.console import Bar, SearchDisplay, TrainingDisplay, clock, console, speed, table
from twostream_ray.runs.cluster.session import polled
from twostream_ray.runs.train.events import DeviceSettingsChosen, EpochEnded, WorkersLost, WorkersStarting

TWOSTREAM = str(Path(sys.executable).with_name("twostream"))
NAMES = [
    "walk [slow]",
    "[/old]",
    "[red]stop[/red]",
    "a:smile:b",
    "[link=http://x]y",
    "100% [1/2]",
    "$x_1$",
    "走る",
    "[bold",
]
HIDDEN = {
    "\x1b[31mred": r"\x1b[31mred",
    "\x1b]0;title\x07": r"\x1b]0;title\x07",
    "a\rb": r"a\rb",
    "a\x08b": r"a\x08b",
    "\u202egnp.exe": r"\u202egnp.exe",
    "\x9b2J": r"\x9b2J",
    "\udcff": r"\xff",
    "\x00": r"\x00",
}


@pytest.fixture
def screen(monkeypatch: pytest.MonkeyPatch) -> io.StringIO:
    """A terminal of 200 columns, what it is sent."""
    sent = io.StringIO()
    monkeypatch.setattr(console, "_file", sent)
    monkeypatch.setattr(console, "_force_terminal", True)
    monkeypatch.setattr(console, "_color_system", None)
    monkeypatch.setattr(console, "_width", 200)
    return sent


def seen(sent: io.StringIO) -> str:
    return sent.getvalue()


def test_a_terminal_shows_every_name_as_it_is(screen: io.StringIO) -> None:
    assert isinstance(console, Console)
    for name in NAMES:
        console.print(name)
        table(name, [name, "clips"], [[name, "3"]])
        assert seen(screen).count(name) == 4, seen(screen)
        screen.truncate(0)


@dataclass
class Record:
    """What a search reports of a trial."""

    name: str = "trial_0"
    settings_text: str = "training.epochs=1"
    status: str = "running"
    reason: str = ""
    number: int = 0
    parameters: int = 10
    seconds: float = 1.0
    score: float | None = 0.5
    history: list[float] = field(default_factory=list)


@pytest.mark.parametrize("name", [*NAMES, *HIDDEN])
def test_bars_and_searches_show_names_as_data(name: str, screen: io.StringIO) -> None:
    with Bar(name, unit="clips") as bar:
        bar.show(1, 2, note=name)
        bar.line(f"line of {name}")
    SearchDisplay(name, trials=1).summary([Record(settings_text=name)])
    display = TrainingDisplay(name)
    display.event(WorkersLost(reason=name))
    shown = HIDDEN.get(name, name)
    assert seen(screen).count(shown) >= 4
    if name in HIDDEN:
        assert name not in seen(screen)


def test_a_search_shows_how_long_it_has_run_and_will_and_the_times_go_on_between_its_epochs(
    screen: io.StringIO, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = [100.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    spent = SimpleNamespace(trials=2, epochs=3, hours=21 / 3600)
    display = SearchDisplay("a", trials=4)
    display.show([Record()], spent, None)
    assert str(display._table().title).endswith("3 epochs, 0:21 elapsed")
    display.show([Record(history=[0.5])], spent, 3700.0)
    title = display._table().title
    assert title == "a: 2 of 4 trials, 3 epochs, 0:21 elapsed, about 1:01:40 left"
    now[0] += 40
    assert "1:01 elapsed, about 1:01:00 left" in str(display._table().title)
    now[0] += 9999
    assert str(display._table().title).endswith("about 0:00 left")


def test_how_a_run_computes_is_said_once_and_again_when_its_device_changes(screen: io.StringIO) -> None:
    display = TrainingDisplay("a")
    chosen = DeviceSettingsChosen(device="H100", precision="bfloat16", channels_last=True, compile=True)
    plain = DeviceSettingsChosen(device="CPU", precision="float32", channels_last=False, compile=False, notes=("b",))
    for event in (chosen, chosen, plain):
        display.event(event)
    assert seen(screen).splitlines() == [
        "training on H100: bfloat16, channels last, compiled",
        "training on CPU: float32",
        "note: b",
    ]


def test_an_epochs_line_has_samples_and_operations_a_second_and_what_would_end_waiting_is_said_once(
    screen: io.StringIO,
) -> None:
    metrics = {
        "train_loss": 1.0,
        "train_loss_fused": 1.0,
        "train_top1": 0.5,
        "val_top1": 0.75,
        "val_clips": 16,
        "val_clips_expected": 17,
        "samples_per_second": 880.0,
        "data_wait": 0.2,
        "device_tflops_per_second": 449.0,
        "device_matrix_rate_share": 0.56,
    }
    display = TrainingDisplay("a")
    for epoch in (1, 2):
        display.event(EpochEnded(epoch=epoch, num_epochs=3, metrics=metrics, remedy="workers waited"))
    first, note, second = seen(screen).splitlines()
    assert "top-1 50.0% of samples, val top-1 75.0% (16 of 17 clips), " in first
    assert "880 samples/s (449 TFLOP/s a worker, 56% of its device's matrix rate), data wait 20%" in first
    assert note == "note: workers waited" and second.startswith("epoch 3/3")


@pytest.mark.parametrize(("name", "shown"), HIDDEN.items())
def test_control_characters_are_shown_as_their_escapes(name: str, shown: str, screen: io.StringIO) -> None:
    console.print(f"a {name}\nsecond line")
    table(name, ["class"], [[name], [f"two\n{name}"]])
    assert seen(screen).splitlines()[:2] == [f"a {shown}", "second line"]
    assert name not in seen(screen) and rf"two\n{shown}" in seen(screen)


def test_without_a_terminal_there_are_lines(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(module, "_SECONDS_BETWEEN_LINES", 0.0)
    with Bar("walk [slow]", unit="clips") as bar:
        bar.show(1, 4)
        bar.show(3, 4, note="[/bad]")
    first, second = capsys.readouterr().out.splitlines()
    assert first.startswith("walk [slow]: 1 of 4 clips") and second.endswith("[/bad]")


def run(script: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """A shell's run of the installed command, as $T."""
    variables = {**os.environ, "T": TWOSTREAM, **environment}
    return subprocess.run(["bash", "-c", script], capture_output=True, text=True, env=variables, errors="replace")


def run_unread(arguments: str, *, errors_too: bool = False) -> tuple[int, str]:
    """The exit code, and what is said of errors, of a command whose reader has gone before it begins."""
    reader, writer = os.pipe()
    os.close(reader)
    errors = writer if errors_too else subprocess.PIPE
    done = subprocess.run([TWOSTREAM, *arguments.split()], stdout=writer, stderr=errors, text=True)
    os.close(writer)
    return done.returncode, done.stderr or ""


def test_a_reader_that_goes_away_ends_a_verb_quietly() -> None:
    for verb in ("--help", "recipes"):
        assert run_unread(verb) == (141, ""), verb
    assert run_unread("fly", errors_too=True) == (141, "")


def test_a_reader_that_goes_away_ends_polling_without_a_traceback_and_the_block_says_so(
    capsys: pytest.CaptureFixture[str],
) -> None:
    calls = []

    def look() -> None:
        calls.append(1)
        raise BrokenPipeError

    with pytest.raises(BrokenPipeError), polled(look, every_seconds=0.01):
        time.sleep(0.2)
    assert len(calls) == 1 and capsys.readouterr().err == ""


def test_an_error_of_what_is_polled_is_raised_behind_the_block_and_not_lost_in_its_thread() -> None:
    calls = []

    def fail() -> None:
        calls.append(1)
        raise KeyError("a bug")

    with pytest.raises(KeyError, match="a bug"), polled(fail, every_seconds=0.01):
        time.sleep(0.2)
    assert len(calls) == 1


def test_a_closed_output_is_refused_and_not_taken_for_an_answer() -> None:
    for verb in ("predict video.mp4", "--help", "train"):
        done = run(f"$T {verb} >&-; echo $?")
        assert done.stdout == "2\n" and len(done.stderr.splitlines()) == 1, verb
        assert "standard output is closed" in done.stderr
    assert run("$T --version >&- 2>&-; echo $?").stdout == "2\n"


def test_a_full_disk_behind_standard_output_is_one_line() -> None:
    done = run("$T --version > /dev/full; echo $?")
    assert done.stdout == "2\n" and len(done.stderr.splitlines()) == 1 and "a disk is full" in done.stderr


def test_terminals_of_another_encoding_show_escapes() -> None:
    for environment in ({"PYTHONIOENCODING": "ascii"}, {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}):
        done = run("$T 走る", **environment)
        assert len(done.stderr.splitlines()) == 1 and "unknown verb" in done.stderr
    python = f"{sys.executable} -c"
    script = "from twostream_ray.cli import main; from twostream_ray.console import *; main(['--version']); "
    done = run(f"""{python} "{script} table('é', ['é'], [['走る']])" """, PYTHONIOENCODING="ascii")
    assert done.stderr == "" and r"\u8d70\u308b" in done.stdout


def test_times_are_named_and_slow_rates_are_seconds_a_step(screen: io.StringIO) -> None:
    assert [clock(seconds) for seconds in (0.4, 4, 65, 3600 + 65)] == ["0:00", "0:04", "1:05", "1:01:05"]
    assert speed(2.5, unit="steps") == "2.5 steps/s" and speed(0.25, unit="steps") == "4.0 s/step"
    with Bar("a", unit="steps") as bar:
        bar.show(1, 4)
        bar.show(2, 4)
        console.print(bar._bar.get_renderable())
    assert "0:00 elapsed" in seen(screen)
    TrainingDisplay("a").event(WorkersStarting(num_workers=2))
    assert "starting 2 workers" in seen(screen)


def test_lines_of_a_log_have_both_times(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(module, "_SECONDS_BETWEEN_LINES", 0.0)
    now = iter([0.0, 0.0, 4.0])
    monkeypatch.setattr(time, "monotonic", lambda: next(now, 4.0))
    bar = Bar("a", unit="steps")
    bar.show(1, 3)
    bar.show(2, 3)
    assert capsys.readouterr().out.splitlines()[-1] == "a: 2 of 3 steps, 4.0 s/step, 0:04 elapsed, 0:04 left"


def test_steps_that_are_told_of_together_have_no_rate(monkeypatch: pytest.MonkeyPatch) -> None:
    times = iter([0.0, 30.0, 30.0001, 40.0, 45.0])
    monkeypatch.setattr("twostream_ray.console.time.monotonic", lambda: next(times))
    printed: list[str] = []
    monkeypatch.setattr(console, "print", lambda text: printed.append(text))
    bar = Bar("train", unit="steps")
    for done in (1, 2, 11, 11):
        bar.show(done, 20)
    assert printed == [
        "train: 1 of 20 steps, 0:30 elapsed",
        "train: 11 of 20 steps, 1.5 s/step, 0:45 elapsed, 0:14 left",
    ]


def test_a_sentence_breaks_between_words_of_a_terminal_and_nowhere_in_a_file() -> None:
    text = "memory   about 92.8 MiB per worker: 1.3 MiB of weights and /a/path/that/is/much/longer/than/thirty/columns"
    for is_terminal, wanted in ((False, 1), (True, 4)):
        out = io.StringIO()
        shown = module._PlainConsole(file=out, force_terminal=is_terminal, width=30, soft_wrap=True, highlight=False)
        shown.sentence(text, indent=9)
        lines = out.getvalue().splitlines()
        assert len(lines) == wanted and " ".join(" ".join(lines).split()) == " ".join(text.split())
        assert all(line.startswith(" " * 9) for line in lines[1:])
