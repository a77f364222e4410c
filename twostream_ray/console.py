"""Terminal output (rich): progress bars with rate and time left, tables; plain lines if the output is no terminal."""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from textwrap import wrap
from types import TracebackType
from typing import Any, Self

from rich.console import Console
from rich.live import Live
from rich.progress import BarColumn, MofNCompleteColumn, Progress, ProgressColumn, Task, TextColumn
from rich.table import Table
from rich.text import Text

from twostream_ray.redaction import printable, redact
from twostream_ray.runs.train.events import (
    DecodingChosen,
    DeviceSettingsChosen,
    EpochEnded,
    ProgressEvent,
    StepEnded,
    WorkersLost,
    WorkersStarted,
    WorkersStarting,
)

_SECONDS_BETWEEN_LINES = 15.0
_LEAST_SECONDS_OF_A_RATE = 1.0
_WIDTH_OF_FILES = 140
"""Line width if the output is not a terminal."""


class _PlainConsole(Console):
    """A console that prints text literally: no markup, emoji codes or control characters, and no secrets."""

    def print(self, *objects: Any, **options: Any) -> None:
        """Print texts literally, and rich renderables."""
        shown = (redact(printable(one, lines=True)) if isinstance(one, str) else one for one in objects)
        super().print(*shown, **options)

    def sentence(self, text: str, *, indent: int = 0) -> None:
        """Print prose, which is word-wrapped on a terminal with a hanging indent, unlike commands to be copied."""
        if self.is_terminal:
            # Redacted before wrapping: a secret split over two lines would not be recognised.
            text = redact(printable(text))
            lines = wrap(
                text, self.width, subsequent_indent=" " * indent, break_long_words=False, break_on_hyphens=False
            )
            text = "\n".join(lines)
        self.print(text)

    def on_broken_pipe(self) -> None:
        """Re-raise, so that the command line exits with the code of a broken pipe."""
        raise


console = _PlainConsole(
    markup=False,
    emoji=False,
    highlight=False,
    soft_wrap=True,
    width=None if sys.stdout is not None and sys.stdout.isatty() else _WIDTH_OF_FILES,
)


class _TimeColumn(ProgressColumn):
    """As in "0:21 elapsed, 0:04 left"."""

    def render(self, task: Task) -> Text:
        """Rich's hook."""
        left = "" if task.finished or task.time_remaining is None else f", {clock(task.time_remaining)} left"
        return Text(f"{clock(task.finished_time or task.elapsed or 0.0)} elapsed{left}")


def clock(seconds: float) -> str:
    """A duration as minutes and seconds, 4:05, or with hours, 1:04:05."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"


def speed(rate: float, *, unit: str) -> str:
    """A rate per second of what is counted, in the plural: 2.5 steps/s, and below one a second 4.0 s/step."""
    return f"{rate:.1f} {unit}/s" if rate >= 1 else f"{1 / rate:.1f} s/{unit.removesuffix('s')}"


class Bar:
    """A progress bar that becomes a line every 15 s where the output is a file or a job's log."""

    def __init__(self, label: str, *, unit: str) -> None:
        """`unit` is what is counted, in the plural: clips, steps."""
        self._label, self._unit = printable(label), unit
        self._opened = self._started = self._last_line = time.monotonic()
        self._first: int | None = None
        self._bar = Progress(
            TextColumn("{task.description}", markup=False),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[rate]}"),
            _TimeColumn(),
            TextColumn("{task.fields[note]}", markup=False),
            console=console,
            transient=True,
        )
        self._task = self._bar.add_task(self._label, total=None, rate="", note="")

    def __enter__(self) -> Self:
        if console.is_terminal:
            self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if console.is_terminal:
            self._bar.stop()

    def show(self, done: int, total: int, *, note: str = "") -> None:
        """Update the bar to `done` of `total`."""
        now = time.monotonic()
        if self._first is None:
            self._started = now
            self._first = done or None
        seconds = now - self._started
        # Events may arrive in bursts, which would distort the rate.
        rate = (done - (self._first or 0)) / seconds if seconds >= _LEAST_SECONDS_OF_A_RATE else 0.0
        paced = speed(rate, unit=self._unit) if rate else ""
        self._bar.update(self._task, completed=done, total=total, rate=paced, note=printable(note))
        if not console.is_terminal and now - self._last_line >= _SECONDS_BETWEEN_LINES:
            self._last_line = now
            left = f", {clock((total - done) / rate)} left" if rate else ""
            times = f"{clock(now - self._opened)} elapsed{left}"
            console.print(
                f"{self._label}: {done} of {total} {self._unit}{', ' + paced if paced else ''}, {times} {note}".rstrip()
            )

    def line(self, text: str) -> None:
        """Print a line above the bar."""
        console.sentence(text, indent=2)


class TrainingDisplay(Bar):
    """A progress bar over all steps of a run, and a line per epoch."""

    def __init__(self, name: str) -> None:
        super().__init__(name, unit="steps")
        self._warned = False
        self._decoding: DecodingChosen | None = None
        self._device_settings: DeviceSettingsChosen | None = None

    def event(self, event: ProgressEvent) -> None:
        """Show what a training run reports."""
        match event:
            case StepEnded():
                done = event.epoch * event.num_steps + event.step
                self.show(done, event.num_epochs * event.num_steps, note=f"loss {event.loss:.3f}")
            case WorkersStarting():
                self.line(f"starting {event.num_workers} worker{'s' * (event.num_workers > 1)}")
            case WorkersStarted() if event.epoch or event.step:
                workers = "1 worker resumes" if event.num_workers == 1 else f"{event.num_workers} workers resume"
                self.line(f"{workers} at epoch {event.epoch + 1}, step {event.step + 1}")
            case DecodingChosen() if event != self._decoding:
                self._decoding = event
                self.line(f"samples are decoded by the {event.at}: {event.reason}")
            case DeviceSettingsChosen() if event != self._device_settings:
                self._device_settings = event
                ways = [event.precision, *["channels last"] * event.channels_last, *["compiled"] * event.compile]
                self.line(f"training on {event.device}: {', '.join(ways)}")
                for note in event.notes:
                    self.line(f"note: {note}")
            case WorkersLost():
                self.line(f"{event.reason}: starting again from the last checkpoint")
            case EpochEnded():
                self._epoch(event)

    def _epoch(self, event: EpochEnded) -> None:
        metrics = event.metrics
        towers = ", ".join(
            f"{name.removeprefix('train_loss_')} {value:.3f}"
            for name, value in metrics.items()
            if name.startswith("train_loss_")
        )
        computed = (
            f" ({metrics['device_tflops_per_second']:.3g} TFLOP/s a worker, "
            f"{metrics['device_matrix_rate_share']:.0%} of its device's matrix rate)"
            if "device_tflops_per_second" in metrics
            else ""
        )
        validation = f", val top-1 {metrics['val_top1']:.1%}" if "val_top1" in metrics else ""
        if "val_clips" in metrics:
            validation += f" ({metrics['val_clips']:.0f} of {metrics['val_clips_expected']:.0f} clips)"
        self.line(
            f"epoch {event.epoch + 1}/{event.num_epochs}: loss {metrics['train_loss']:.3f} ({towers}), "
            f"top-1 {metrics['train_top1']:.1%} of samples{validation}, "
            f"{metrics['samples_per_second']:.0f} samples/s{computed}, data wait {metrics['data_wait']:.0%}"
            + (f", skipped {metrics['skipped_steps']} steps" if metrics.get("skipped_steps") else "")
        )
        if event.remedy is not None and not self._warned:
            self._warned = True
            self.line(f"note: {event.remedy}")


class SearchDisplay:
    """A live table of a search's trials; a line per change if the output is not a terminal."""

    _ROWS = 30
    """Trials that are shown while the search runs: the best and the unfinished ones."""

    def __init__(self, name: str, *, trials: int) -> None:
        self._name, self._trials = name, trials
        self._printed: dict[int, tuple[int, str]] = {}
        self._shown: tuple[Sequence[Any], Any, float | None, float] | None = None
        self._live = Live(get_renderable=self._table, console=console, refresh_per_second=2, transient=True)

    def __enter__(self) -> Self:
        if console.is_terminal:
            self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if console.is_terminal:
            self._live.stop()

    def show(self, records: Sequence[Any], spent: Any, seconds_left: float | None = None) -> None:
        """Update the table with the trials' records."""
        self._shown = (records, spent, seconds_left, time.monotonic())
        left = "" if seconds_left is None else f"; {self._times(spent, seconds_left, 0)}"
        for record in records:
            now = (len(record.history), record.status)
            before = self._printed.get(record.number)
            self._printed[record.number] = now
            if before != now and not console.is_terminal:
                console.print(self._line(record) + left)

    def _table(self) -> Table | str:
        """The table of trials, under a title with running times."""
        if self._shown is None:
            return ""
        records, spent, left, since = self._shown
        title = f"{self._name}: {spent.trials} of {self._trials} trials, {spent.epochs} epochs, "
        title += self._times(spent, left, time.monotonic() - since)
        first = sorted(records, key=lambda one: (one.status != "running", -(one.score or 0.0)))
        return _trials_table(title, first[: self._ROWS])

    @staticmethod
    def _times(spent: Any, left: float | None, since: float) -> str:
        """Time that the search has run, and will by an estimate, `since` seconds after it was made."""
        elapsed = f"{clock(spent.hours * 3600 + since)} elapsed"
        return elapsed if left is None else f"{elapsed}, about {clock(max(left - since, 0))} left"

    def summary(self, records: Sequence[Any]) -> None:
        """All trials, the best first."""
        console.print(_trials_table(self._name, sorted(records, key=lambda one: -(one.score or 0.0))))

    @staticmethod
    def _line(record: Any) -> str:
        score = "" if record.score is None else f", best val top-1 {record.score:.1%}"
        reason = f" ({record.reason})" if record.reason else ""
        begun = f": {record.settings_text}, {record.parameters:,} parameters" if not record.history else ""
        return f"{record.name} {record.status}{reason}, {len(record.history)} epochs{score}{begun}"


def _trials_table(title: str, records: Sequence[Any]) -> Table:
    grid = Table(title=printable(title), title_justify="left")
    for column in ("trial", "settings", "status"):
        grid.add_column(column, overflow="fold")
    for column in ("epochs", "val top-1", "parameters", "s"):
        grid.add_column(column, justify="right")
    for record in records:
        score = "" if record.score is None else f"{record.score:.1%}"
        grid.add_row(
            printable(record.name),
            printable(record.settings_text),
            record.status,
            str(len(record.history)),
            score,
            f"{record.parameters:,}",
            f"{record.seconds:.0f}",
        )
    return grid


def table(title: str, columns: list[str], rows: list[list[str]]) -> None:
    """Print a table; the first column is text, the others are numbers."""
    grid = Table(title=printable(title), title_justify="left")
    for number, column in enumerate(columns):
        grid.add_column(printable(column), justify="right" if number else "left")
    for row in rows:
        grid.add_row(*map(printable, row))
    console.print(grid)
