"""Log sanitisation: redacts secrets (passwords, tokens, keys), escapes control characters, keeps messages on one line.

All external text (names, values, URIs, messages of libraries) passes through this module on its way into
a message, a log, a report or a picture.
"""

from __future__ import annotations

import itertools
import json
import os
import re
import unicodedata
from collections.abc import Iterator
from urllib.parse import quote, unquote

HIDDEN = "(hidden)"

_SECRET_WORDS = frozenset(
    {"auth", "authorization", "passphrase", "passwd", "password", "passwords", "pwd"}
) | frozenset({"credential", "credentials", "secret", "secrets", "token", "tokens"})
_SECRET_PAIRS = frozenset({"access key", "account key", "api key", "private key", "secret key", "signing key"})
_SECRET_JOINED = frozenset(pair.replace(" ", "") for pair in _SECRET_PAIRS)

_WORD = re.compile(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+|\d+")
_URI = re.compile(r"\b(?P<scheme>[A-Za-z][A-Za-z0-9+.-]*)://")
_END_OF_AUTHORITY = re.compile(r"[/?#\s]")
_PORT = re.compile(r":\d+\Z")
_OF_SERVERS = re.compile(r"(?:https?|postgres|mysql|mssql|mongodb|redis|amqp|ftp)")
_QUERY_SECRET = re.compile(
    r"(?P<name>[?&;#][^=&;\s]*(?:token|signature|\bsig|secret|password|passwd|pwd|credential|key)[^=&;\s]*=)[^&;\s]+",
    re.IGNORECASE,
)
_TOKEN = re.compile(
    r"\b(?:AKIA|ASIA)[0-9A-Z]{16}\b"  # AWS key ids
    r"|\bgh[pousr]_\w{20,}|\bgithub_pat_\w{20,}|\bglpat-[\w-]{20,}"  # forges
    r"|\bhf_\w{20,}|\bsk-[\w-]{20,}|\bdapi[0-9a-f]{32}|\bxox[abeprs]-[\w-]{10,}"  # hubs and services
    r"|\beyJ[\w-]{10,}\.[\w-]{10,}\.[\w-]*"  # JSON web tokens
    r"|-----BEGIN [A-Z ]*PRIVATE KEY-----[\s\S]*"
    r"|\b[Bb]earer\s+\S+"
    r"|(?<=uthorization: )Basic\s+\S+"
)
_SECRET_VARIABLE = re.compile(r"(?:PASSWORD|PASSWD|PASSPHRASE|TOKEN|SECRET|SECRET_KEY|ACCESS_KEY|API_KEY)\Z", re.I)
_SHORTEST_KNOWN = 6
"""Minimum length of a known secret to be redacted everywhere: a shorter one could be part of any word."""

_JOINERS = "\u200c\u200d"
"""Zero-width joiners, which some scripts need."""

_LONGEST_VALUE = 80


def printable(text: str, *, lines: bool = False) -> str:
    """Escape what a terminal, log or plot must not show; line breaks are kept only with `lines`.

    Control characters, which would move a cursor, change colours or the order of letters, become their escapes; so do
    the bytes of a file name that are no UTF-8, which Python keeps as lone surrogates.
    """
    if text.isprintable():
        return text
    kept = _JOINERS + ("\n\t" if lines else "")
    return "".join(
        character
        if character.isprintable() or character in kept or unicodedata.category(character) == "Zs"
        else _escaped(character)
        for character in text
    )


def _escaped(character: str) -> str:
    if 0xDC80 <= ord(character) <= 0xDCFF:
        return f"\\x{ord(character) - 0xDC00:02x}"
    return character.encode("unicode_escape").decode("ascii")


def shortened(text: str, *, longest: int) -> str:
    """Truncate a text at a blank, so that no name or path is cut."""
    if len(text) <= longest:
        return text
    end = text.rfind(" ", 0, longest + 1)
    end = end if end > 0 else text.find(" ", longest)
    return text if end < 0 else f"{text[:end]} ..."


def one_line(said: BaseException | str, *, longest: int = 160) -> str:
    """An error's message, its type if that is empty, or a text, as one line of at most `longest` characters."""
    # str() of a PyAV error appends the last line of FFmpeg's log, which may be about another file.
    text = said if isinstance(said, str) else getattr(said, "strerror", None) or str(said) or type(said).__name__
    return " ".join(text.split())[:longest]


def brief(value: object) -> str:
    """repr() of a value as one line, truncated to 80 characters and three dots."""
    try:
        text = " ".join(repr(value).split())
    except ValueError:
        return "an integer of thousands of digits"
    return text if len(text) <= _LONGEST_VALUE else f"{text[:_LONGEST_VALUE]}..."


def is_secret_name(name: str) -> bool:
    """True if a setting of this (dotted) name holds a secret: `s3.secret_key`, `apiToken`, `MLFLOW_PASSWORD`."""
    words = [word.lower() for word in _WORD.findall(name)]
    pairs = {f"{first} {second}" for first, second in itertools.pairwise(words)}
    return bool(_SECRET_WORDS.intersection(words) or _SECRET_PAIRS & pairs or _SECRET_JOINED.intersection(words))


def redact(text: str) -> str:
    """Replace secrets, and what looks like one, in a text.

    That is user:password@ of URIs, also where people did not quote it, signed queries, keys and tokens by their forms,
    and the secrets that this process has in its environment.
    """
    text = _TOKEN.sub(HIDDEN, text)
    text = _QUERY_SECRET.sub(rf"\g<name>{HIDDEN}", _without_credentials(text))
    for secret in sorted(set(_known_secrets()), key=len, reverse=True):
        text = text.replace(secret, HIDDEN)
    return text


def has_credentials(uri: str) -> bool:
    """Whether a URI contains a user name or password."""
    return _without_credentials(uri) != uri


def with_quoted_credentials(uri: str) -> str:
    """The URI with user and password percent-encoded by RFC 3986: `%2F` for a slash."""
    found = _URI.match(uri)
    end = None if found is None else _credentials_end(found["scheme"], uri[found.end() :], is_bare=True)
    if found is None or end is None or not re.search("[:@]", _END_OF_AUTHORITY.split(uri[found.end() :])[0]):
        return uri
    user, colon, password = uri[found.end() : found.end() + end].partition(":")
    quoted = f"{quote(unquote(user), safe='')}{colon}{quote(unquote(password), safe='')}"
    return f"{found[0]}{quoted}{uri[found.end() + end :]}"


def _without_credentials(text: str) -> str:
    starts = list(_URI.finditer(text))
    parts, done = [], 0
    for number, start in enumerate(starts):
        if start.start() < done:  # what looks like a scheme was part of a password
            continue
        last = number + 1 == len(starts)
        line = text[start.end() : None if last else starts[number + 1].start()].partition("\n")[0]
        end = _credentials_end(start["scheme"], line, is_bare=start.start() == 0)
        parts.append(text[done : start.end()])
        done = start.end()
        if end is not None:
            parts.append(HIDDEN)
            done += end
    return "".join([*parts, text[done:]])


def _credentials_end(scheme: str, rest: str, *, is_bare: bool) -> int | None:
    """Where user and password end (at an @) in what follows `scheme://`; None: there are none.

    By RFC 3986 they end before the first slash, but people write passwords as they are. What stands in doubt is taken
    for a secret, except where a path is likelier: with no colon before the slash, or a port behind it.
    """
    authority = _END_OF_AUTHORITY.split(rest, maxsplit=1)[0]
    if not authority:  # a path: file:///x, sqlite:////x
        return None
    word = rest if is_bare and _OF_SERVERS.match(scheme) else re.split(r"[\s\"'<>]", rest, maxsplit=1)[0]
    has_colon = ":" in authority
    if "@" not in authority and not _OF_SERVERS.match(scheme) and (not has_colon or _PORT.search(authority)):
        return None
    if "@" not in word and has_colon and not _PORT.search(authority):
        word = rest  # a password with blanks or quotes
    end = word.rfind("@")
    return None if end < 0 else end


def _known_secrets() -> Iterator[str]:
    """Secrets in the environment, literally and as encoded in URIs and JSON."""
    # Another thread, as MLflow's clients do, may take one away meanwhile.
    for name in list(os.environ):
        value = os.environ.get(name, "")
        found = [value] if _SECRET_VARIABLE.search(name) else []
        start = _URI.match(value) if "@" in value else None
        end = None if start is None else _credentials_end(start["scheme"], value[start.end() :], is_bare=True)
        if start is not None and end is not None:
            password = value[start.end() : start.end() + end].partition(":")[2]
            found += [password, unquote(password)]
        for secret in found:
            if len(secret) >= _SHORTEST_KNOWN:
                yield from {secret, quote(secret), quote(secret, safe=""), json.dumps(secret)[1:-1]}
