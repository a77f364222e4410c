"""HTTP error responses: a status, a machine-readable kind and a message.

They disclose nothing of the server: no path, no environment, no traceback.
"""

from __future__ import annotations

import logging
import uuid
from collections.abc import Mapping
from typing import Any

from twostream_ray.errors import EmptyClipError, TooLongError, TwoStreamError, VideoError
from twostream_ray.redaction import printable

_log = logging.getLogger(__name__)
_LONGEST = 500

KINDS = {
    "bad_parameter": 400,
    "not_found": 404,
    "wrong_method": 405,
    "slow_sender": 408,
    "too_large": 413,
    "wrong_media": 415,
    "undecodable": 422,
    "too_short": 422,
    "too_long": 422,
    "uri_unreadable": 422,
    "busy": 429,
    "client_gone": 499,
    "internal": 500,
    "no_model": 503,
    "stopping": 503,
    "took_too_long": 504,
}
"""Kind of an error -> its HTTP status."""


class Refusal(Exception):  # noqa: N818  it is a response
    """An HTTP error response."""

    def __init__(self, kind: str, message: str, *, headers: Mapping[str, str] | None = None) -> None:
        super().__init__(message)
        self.kind, self.status = kind, KINDS[kind]
        self.message = printable(" ".join(message.split()))[:_LONGEST]
        self.headers = dict(headers or {})

    def body(self) -> dict[str, Any]:
        """The JSON body."""
        return {"error": {"kind": self.kind, "message": self.message}}


def refusal_of(error: Exception) -> Refusal:
    """The response for an error; server errors are logged, and the client gets only the number of the log entry."""
    if isinstance(error, Refusal):
        return error
    if isinstance(error, TooLongError):
        wanted = str(error).partition(": cut it into clips")[0]
        return Refusal("too_long", f"{wanted}: send a shorter one, or its parts one after the other")
    if isinstance(error, EmptyClipError):
        return Refusal("too_short", str(error))
    if isinstance(error, VideoError):
        return Refusal("undecodable", str(error))
    number = uuid.uuid4().hex[:12]
    if isinstance(error, TwoStreamError):
        _log.error("request %s failed: %s", number, error)
    else:
        _log.error("request %s failed", number, exc_info=error)
    return Refusal("internal", f"the service failed, not because of the request: its log has the reason under {number}")
