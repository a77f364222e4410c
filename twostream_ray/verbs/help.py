"""Help texts, wrapped to the terminal: all verbs, a group, a verb in short (examples first) or in full."""

from __future__ import annotations

import re
import shutil
import textwrap
from collections.abc import Iterable, Iterator
from typing import Any, Literal, get_args, get_origin

from twostream_ray.errors import ConfigError
from twostream_ray.verbs.commands import GROUPS, VERBS, members, settings_class
from twostream_ray.verbs.verb import Verb

_NARROWEST = 60
_LEFT = 34
"""Width of the name column; a longer name gets its own line."""

_WORD = re.compile(r"""(?:--[\w.]+ (?!--))?(?:'[^']*'|"[^"]*"|\S)+""")
"""A word of a shell command with its quotes; an option and its value count as one."""
_SENTENCE = re.compile(r"(?<!\.)\. (?=[A-Z])")
"""The boundary between two sentences."""

_HEAD = """\
usage: twostream VERB [--config RECIPE] [--NAME VALUE]...

Fused appearance and motion networks for action recognition in video: from raw videos to a registered model.
"""
_FOOT = """\
twostream help VERB shows examples and what is set most often, twostream VERB --help-all every setting with its default.
-V prints the version; `twostream completion bash` prints what completes verbs and settings in a shell.

Exit codes: 0 done, 2 refused (one line says what and the way out), 130 interrupted, 141 the output's reader has gone.
"""


def overview() -> str:
    """Help of the command: all verbs, a line each."""
    names = dict.fromkeys(name.partition(" ")[0] if name.partition(" ")[0] in GROUPS else name for name in VERBS)
    rows = [(f"{name} {_usage_of(name)}".strip(), _summary_of(name)) for name in names]
    return f"{_filled(_HEAD)}\n{_columns(rows)}\n{_filled(_FOOT)}"


def of_group(group: str) -> str:
    """Help of a group: its verbs, a line each."""
    rows = [
        (f"{group} {one} {_usage_of(f'{group} {one}')}".strip(), VERBS[f"{group} {one}"].summary)
        for one in members(group)
    ]
    return (
        f"usage: twostream {group} {{{','.join(members(group))}}} ...\n\n{_filled(_capital(GROUPS[group]))}\n"
        f"{_columns(rows)}\n{_filled(f'twostream {group} {members(group)[0]} --help shows the settings of one.')}"
    )


def of_verb(name: str, *, whole: bool = False) -> str:
    """Help of a verb: examples and its most common settings, or all settings with units and defaults."""
    verb = VERBS[name]
    head = f"usage: {_usage(name, verb)}\n\n{_filled(_capital(verb.summary))}{_examples(name, verb)}"
    kind = settings_class(name)
    if kind is None:
        return head
    from twostream_ray.settings.parser import parser_for

    parser = parser_for(kind, prog=f"twostream {name}", usage=_usage(name, verb))
    if whole:
        options = parser.format_help().partition("\n\n")[2]
        return f"{head}\n{options.strip()}\n"
    rows = [(_name_of(verb, one, kind), _about(one, parser)) for one in (*verb.positionals, *verb.shown)]
    count = sum(action.metavar != "{...}" for action in parser._actions) - 3  # help, --config and --print_config
    recipe = "A recipe: settings in YAML, a file or a name of `twostream recipes`; options override it."
    rows += [*verb.more.items(), ("--config RECIPE", recipe)]
    foot = f"twostream {name} --help-all lists all {count} settings with units and defaults."
    return f"{head}\n{_columns(rows)}\n{_filled(foot)}"


def asked(words: list[str]) -> str:
    """The text of `twostream help WORDS`: of a verb, a group, or the command.

    Raises:
        ConfigError: no verb has that name.
    """
    name = " ".join(words[:2]) if words and words[0] in GROUPS else " ".join(words[:1])
    if name in VERBS:
        return of_verb(name)
    if words and words[0] in GROUPS:
        return of_group(words[0])
    if words:
        raise ConfigError(f"unknown verb {name!r}: `twostream --help` lists them")
    return overview()


def _usage_of(name: str) -> str:
    return "WHAT" if name in GROUPS else " ".join(VERBS[name].positionals.values())


def _summary_of(name: str) -> str:
    return GROUPS[name] if name in GROUPS else VERBS[name].summary


def _usage(name: str, verb: Verb) -> str:
    settings = "[--config RECIPE] [--NAME VALUE]..." if verb.settings else ""
    return " ".join(["twostream", name, *verb.positionals.values(), settings]).strip()


def _examples(name: str, verb: Verb) -> str:
    """Example commands, long ones wrapped with backslashes."""
    text = ""
    for example in verb.examples:
        line = f"  twostream {name}"
        for word in _WORD.findall(example):
            if len(line) + len(word) + 3 > _width():
                text, line = f"{text}\n{line} \\", " " * 5
            line += f" {word}"
        text += f"\n{line}"
    return text + "\n"


def _capital(text: str) -> str:
    return text[0].upper() + text[1:] + "."


def _width() -> int:
    return max(shutil.get_terminal_size().columns, _NARROWEST)


def _filled(text: str) -> str:
    """Paragraphs wrapped to the terminal; line breaks of the text are kept."""
    lines = (textwrap.fill(line, _width(), break_on_hyphens=False, break_long_words=False) for line in text.split("\n"))
    return "\n".join(lines).rstrip("\n") + "\n"


def _columns(rows: Iterable[tuple[str, str]]) -> str:
    """Two columns: names and their meanings."""
    rows = list(rows)
    left = min(max(len(name) for name, _ in rows), _LEFT) + 4

    def lines() -> Iterator[str]:
        for name, text in rows:
            first, *others = textwrap.wrap(text, _width() - left, break_on_hyphens=False) or [""]
            if len(name) + 4 > left:
                yield f"  {name}"
                yield " " * left + first
            else:
                yield f"  {name}".ljust(left) + first
            yield from (" " * left + other for other in others)

    return "\n".join(lines()) + "\n"


def _action(name: str, parser: Any) -> Any:
    return next(action for action in parser._actions if action.dest == name)


def _name_of(verb: Verb, name: str, kind: type) -> str:
    """An option with a placeholder for its value."""
    from twostream_ray.settings.checks import type_of

    if name in verb.positionals:
        return verb.positionals[name].strip("[]")
    hint = type_of(kind, name)
    choices = get_args(hint) if get_origin(hint) is Literal else ("true", "false") if hint is bool else ()
    written = "|".join(map(str, choices))
    number = {int: "N", float: "X"}.get(hint)
    word = written if choices and len(written) + len(name) < _LEFT - 3 else number or name.rpartition(".")[2].upper()
    return f"--{name} {word}"


def _about(name: str, parser: Any) -> str:
    """The first sentence of a setting's docstring, and its default."""
    action = _action(name, parser)
    sentence = _SENTENCE.split(" ".join((action.help or "").split()))[0].removesuffix(".") + "."
    if action.required:
        return f"{sentence} (wanted)"
    default = action.default
    if isinstance(default, list | tuple):
        default = ", ".join(map(str, default))
    elif isinstance(default, bool):
        default = str(default).lower()
    return sentence if default in (None, "", "==SUPPRESS==") else f"{sentence} ({default})"
