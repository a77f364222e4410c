"""What must never reach a tracking server: passwords, tokens and keys, in setting names, values and URIs."""

import itertools
import re

HIDDEN = "(hidden)"

_SECRET_WORDS = frozenset(
    {"auth", "authorization", "passphrase", "passwd", "password", "passwords", "pwd"}
) | frozenset({"credential", "credentials", "secret", "secrets", "token", "tokens"})
_SECRET_PAIRS = frozenset({"access key", "account key", "api key", "private key", "secret key", "signing key"})
_SECRET_JOINED = frozenset(pair.replace(" ", "") for pair in _SECRET_PAIRS)

_WORD = re.compile(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+|\d+")
_USER_INFO = re.compile(r"(?P<scheme>\b[A-Za-z][A-Za-z0-9+.-]*://)[^/\s]*@")
_QUERY_SECRET = re.compile(
    r"(?P<name>[?&;][^=&;\s]*(?:token|signature|\bsig|secret|password|passwd|pwd|credential|key)[^=&;\s]*=)[^&;\s]+",
    re.IGNORECASE,
)
_TOKEN = re.compile(
    r"\b(?:AKIA|ASIA)[0-9A-Z]{16}\b"  # AWS key ids
    r"|\bgh[pousr]_\w{20,}|\bgithub_pat_\w{20,}|\bglpat-[\w-]{20,}"  # forges
    r"|\bhf_\w{20,}|\bsk-[\w-]{20,}|\bdapi[0-9a-f]{32}|\bxox[abeprs]-[\w-]{10,}"  # hubs and services
    r"|\beyJ[\w-]{10,}\.[\w-]{10,}\.[\w-]*"  # JSON web tokens
    r"|-----BEGIN [A-Z ]*PRIVATE KEY-----"
    r"|\b[Bb]earer\s+\S+"
)


def is_secret_name(name: str) -> bool:
    """True if a setting of this (dotted) name holds a secret: `s3.secret_key`, `apiToken`, `MLFLOW_PASSWORD`."""
    words = [word.lower() for word in _WORD.findall(name)]
    pairs = {f"{first} {second}" for first, second in itertools.pairwise(words)}
    return bool(_SECRET_WORDS.intersection(words) or _SECRET_PAIRS & pairs or _SECRET_JOINED.intersection(words))


def redact(value: str) -> str:
    """The text with what looks like a secret hidden: user:password@ and signed queries of URIs, keys, tokens."""
    if _TOKEN.search(value):
        return HIDDEN
    value = _USER_INFO.sub(rf"\g<scheme>{HIDDEN}@", value)
    return _QUERY_SECRET.sub(rf"\g<name>{HIDDEN}", value)
