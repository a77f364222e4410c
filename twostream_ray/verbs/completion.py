"""Shell completion for bash and zsh: verbs, options, choices and recipes, generated from the settings classes."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import is_dataclass
from typing import Any, Literal, get_args, get_origin, get_type_hints

from twostream_ray import recipes
from twostream_ray.errors import ConfigError
from twostream_ray.verbs.commands import GROUPS, VERBS, members, settings_class

_SCRIPT = """\
# Completion of the twostream command; made by `twostream completion`.
_twostream() {{
    local current="${{COMP_WORDS[COMP_CWORD]}}" previous="${{COMP_WORDS[COMP_CWORD-1]}}" words=""
    local verb="${{COMP_WORDS[1]}}" second="${{COMP_WORDS[2]:-}}"
    COMPREPLY=()
    if [[ $COMP_CWORD -eq 1 ]]; then
        words="{verbs}"
    else
        case "$verb" in
{groups}        esac
        case "$verb $previous" in
            *" --config") words="{recipes}" ;;
{choices}        esac
        if [[ -z $words && $current == -* ]]; then
            case "$verb" in
{options}            esac
        fi
    fi
    [[ -z $words ]] || COMPREPLY=($(compgen -W "$words" -- "$current"))
}}
complete -o default -F _twostream twostream
"""
_ZSH = """\
autoload -Uz compinit bashcompinit
(( $+functions[compdef] )) || compinit
bashcompinit
"""


def complete(arguments: list[str]) -> int:
    """Print the completion script of a shell."""
    shell = " ".join(arguments)
    if shell not in ("bash", "zsh"):
        raise ConfigError(f"completion wants bash or zsh, got {shell or 'nothing'}: `twostream help completion`")
    print((_ZSH if shell == "zsh" else "") + script(), end="")  # noqa: T201
    return 0


def script() -> str:
    """The script for bash; zsh runs it too, by its bashcompinit."""
    first = dict.fromkeys(name.partition(" ")[0] for name in VERBS)
    groups = "".join(
        f'            {group}) [[ $COMP_CWORD -ne 2 ]] || words="{" ".join(members(group))}"; verb="$verb $second" ;;\n'
        for group in GROUPS
    )
    options, choices = "", dict[str, str]()
    for name in VERBS:
        settings = dict(_settings(settings_class(name)))
        written = " ".join(
            [
                *(f"--{key}" for key in settings),
                *(one.split()[0] for one in VERBS[name].more),
                "--config",
                "--help",
                "--help-all",
            ]
        )
        options += f'                "{name}") words="{written}" ;;\n'
        for key, hint in settings.items():
            values = ("true", "false") if hint is bool else get_args(hint) if get_origin(hint) is Literal else ()
            if values:
                choices[f'"{name} --{key}"'] = " ".join(map(str, values))
    return _SCRIPT.format(
        verbs=" ".join([*first, "help"]),
        groups=groups,
        recipes=" ".join(recipes.names()),
        choices="".join(f'            {case}) words="{values}" ;;\n' for case, values in choices.items()),
        options=options,
    )


def _settings(kind: type | None, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Dotted names of all settings that are not blocks, with their types."""
    for name, hint in get_type_hints(kind).items() if kind is not None else ():
        if is_dataclass(hint):
            yield from _settings(hint, f"{prefix}{name}.")  # type: ignore[arg-type]
        else:
            yield f"{prefix}{name}", hint
