"""The `twostream` command: finds the verb, turns errors into one line and an exit code."""

from __future__ import annotations

import contextlib
import errno
import io
import os
import select
import signal
import sys
import threading
from collections.abc import Sequence
from typing import TextIO

from twostream_ray import __version__
from twostream_ray.errors import TwoStreamError, own_error
from twostream_ray.storage.local_files import reason
from twostream_ray.verbs import complain

USAGE = """\
usage: twostream VERB [--config RECIPE] [--SETTING VALUE ...]

Fused appearance and motion networks for action recognition in video: from raw videos to a registered model.

  synthesize OUT      make a small labelled data set of moving shapes
  ingest              labelled raw videos -> shards with optical flow
  inspect SHARDS      what is in a shard set, with a picture; --verify true checks every byte
  train               shards -> a trained, evaluated and registered network
  tune                many trainings: a search over settings, the best registered
  evaluate            a trained model on a split of shards
  predict VIDEO ...   classes of raw videos
  pull OUT            download a registered model for use without MLflow
  weights fetch NAME  pretrained weights, checked, to where every node reads them
  track replay        deliver to MLflow what was logged while it was away
  promote VERSION     make a registered version champion if it beats the present one
  rollback            put the champion back to the version before, or to another
  tune-scores         the best late fusion of two streams' scores, without a network
  describe            parts, sizes and costs of a network; --json for programs
  recipes             the recipes that come with the package; with a NAME, that recipe
  demo                the whole journey on synthetic videos
  findings            the papers' findings on synthetic videos, over several seeds
  benchmark WHAT      speed on this machine: of the loader, of ingest, of a training step, or of a training run

twostream VERB --help lists the settings of a verb with units and defaults; --version prints the version.
Exit codes: 0 done, 2 something was refused (one line says what and the way out), 130 interrupted,
141 the reader of the output (head, less) has closed it.
"""


_BROKEN_PIPE = 141
"""What a shell gives for a program that ends by SIGPIPE."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one verb; gives the exit code."""
    verb, *rest = list(sys.argv[1:] if arguments is None else arguments) or ["--help"]
    # Off unless the user switched them on; before anything imports Ray or MLflow.
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    if threading.current_thread() is threading.main_thread():
        # A stopped job or a spot instance's notice: what was finished is kept, as after Ctrl-C.
        signal.signal(signal.SIGTERM, signal.default_int_handler)
    for stream in (sys.stdout, sys.stderr):
        # A terminal of another encoding shows escapes; names need not be of its letters.
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    try:
        try:
            code = _run(verb, rest)
        except SystemExit as end:  # --help of a verb
            code = end.code if isinstance(end.code, int) else 0
        # Otherwise the interpreter meets a full disk or a closed pipe, and reports it in its own way.
        if sys.stdout is not None:
            sys.stdout.flush()
        return code
    except OSError as error:
        if isinstance(error, BrokenPipeError) and any(map(_reader_is_gone, (sys.stdout, sys.stderr))):
            _write_no_more()
            return _BROKEN_PIPE
        own = own_error(error)
        if own is None and error.filename is None and error.errno not in (errno.EMFILE, errno.ENFILE):
            raise
        complain(str(own or f"cannot use {error.filename or 'a file'}: {reason(error)}"), verb=verb)
        _write_no_more()
        return 2
    except MemoryError:
        complain("memory is used up: raise `ulimit -v`, choose smaller settings or a larger machine", verb=verb)
        return 2


def _reader_is_gone(stream: TextIO | None) -> bool:
    """Whether the other end of a pipe is closed, as `head` leaves it."""
    try:
        poll = select.poll()
        poll.register(stream.fileno(), 0)  # type: ignore[union-attr]
        return any(event & (select.POLLERR | select.POLLHUP) for _, event in poll.poll(0))
    except (AttributeError, OSError, ValueError):  # no stream, or none of the operating system's
        return False


def _write_no_more() -> None:
    """Let what is still buffered go nowhere, so that the interpreter does not fail on it at its end."""
    with contextlib.suppress(OSError, ValueError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _run(verb: str, rest: list[str]) -> int:
    from twostream_ray.verbs import benchmarks, data, models, recipes, searches

    try:
        match verb:
            case "-h" | "--help" | "help":
                print(USAGE, end="")  # noqa: T201
                return 0
            case "--version":
                print(f"twostream_ray {__version__}")  # noqa: T201
                return 0
            case "synthesize":
                return data.synthesize(rest)
            case "ingest":
                return data.ingest(rest)
            case "inspect":
                return data.inspect(rest)
            case "train":
                return models.train(rest)
            case "tune":
                return searches.tune(rest)
            case "evaluate":
                return models.evaluate(rest)
            case "predict":
                return models.predict(rest)
            case "pull":
                return models.pull(rest)
            case "weights":
                return models.weights(rest)
            case "track":
                return models.track(rest)
            case "promote":
                return models.promote(rest)
            case "rollback":
                return models.rollback(rest)
            case "tune-scores":
                return searches.tune_scores(rest)
            case "describe":
                return models.describe(rest)
            case "recipes":
                return recipes.list_recipes(rest)
            case "demo":
                return searches.demo(rest)
            case "findings":
                return searches.findings(rest)
            case "benchmark":
                return benchmarks.benchmark(rest)
        complain(f"unknown verb {verb!r}: `twostream --help` lists them")
        return 2
    except TwoStreamError as error:
        complain(str(error), verb=verb)
        return 2
    except KeyboardInterrupt:
        complain("interrupted; what was finished is kept, run the same command again to resume", verb=verb)
        return 130


if __name__ == "__main__":
    sys.exit(main())
