"""Entry point of the `twostream` command: dispatches to the verb, turns errors into one line and an exit code."""

from __future__ import annotations

import contextlib
import difflib
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
from twostream_ray.errors import ConfigError, TwoStreamError, own_error
from twostream_ray.storage.local_files import reason
from twostream_ray.verbs import complain

_HELP = frozenset({"-h", "--help", "--help-all"})

_BROKEN_PIPE = 141
"""Exit code of a program ended by SIGPIPE, as a shell reports it."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one verb and return the exit code."""
    verb, *rest = list(sys.argv[1:] if arguments is None else arguments) or ["--help"]
    # Telemetry is off unless the user enabled it; set before Ray or MLflow are imported.
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    if threading.current_thread() is threading.main_thread():
        # SIGTERM (a stopped job, a spot instance's notice) is handled like Ctrl-C: finished work is kept.
        signal.signal(signal.SIGTERM, signal.default_int_handler)
    if sys.stdout is None:
        # Output would be lost, and a file opened later could get descriptor 1 and be written to.
        if sys.stderr is not None:
            complain("standard output is closed: leave it open, or send it to a file or /dev/null", verb=verb)
        return 2
    for stream in (sys.stdout, sys.stderr):
        # Characters outside the terminal's encoding are shown as escapes.
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    try:
        try:
            code = _run(verb, rest)
        except SystemExit as end:  # --help of a verb
            code = end.code if isinstance(end.code, int) else 0
        # Otherwise the interpreter would report a full disk or closed pipe at exit in its own way.
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
        complain("out of memory: raise `ulimit -v`, choose smaller settings or a larger machine", verb=verb)
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
    """Discard buffered output, so that the interpreter does not fail on it at exit."""
    with contextlib.suppress(OSError, ValueError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _run(verb: str, rest: list[str]) -> int:
    from twostream_ray.verbs import commands, help

    try:
        name = f"{verb} {rest[0]}" if verb in commands.GROUPS and rest else verb
        behind = rest[name.count(" ") :]
        if verb in ("-V", "--version"):
            print(f"twostream_ray {__version__}")  # noqa: T201
        elif verb in ("-h", "--help", "--help-all", "help"):
            print(help.asked(rest if verb == "help" else []), end="")  # noqa: T201
        elif verb in commands.GROUPS and _HELP & set(rest[:1]):
            print(help.of_group(verb), end="")  # noqa: T201
        elif verb in commands.GROUPS and name not in commands.VERBS:
            wanted = ", ".join(commands.members(verb))
            raise ConfigError(
                f"{verb} wants {wanted}, got {' '.join(rest[:1]) or 'nothing'}: `twostream {verb} --help`"
            )
        elif name not in commands.VERBS:
            near = difflib.get_close_matches(verb, commands.VERBS, n=1)
            meant = f"did you mean {near[0]}? " if near else ""
            complain(f"unknown verb {verb!r}: {meant}`twostream --help` lists them")
            return 2
        elif _HELP & set(behind[: behind.index("--")] if "--" in behind else behind):
            print(help.of_verb(name, whole="--help-all" in behind), end="")  # noqa: T201
        else:
            return commands.load(commands.VERBS[name].function, package="twostream_ray.verbs")(behind)
        return 0
    except TwoStreamError as error:
        complain(str(error), verb=verb)
        return 2
    except KeyboardInterrupt:
        complain("interrupted; what was finished is kept, run the same command again to resume", verb=verb)
        return 130


if __name__ == "__main__":
    sys.exit(main())
