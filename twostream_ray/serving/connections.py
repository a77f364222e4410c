"""HTTP/1.1 connections of uvicorn, with what it does not bound: how many there are, and how slowly a head may come."""

from __future__ import annotations

import asyncio
import json
from typing import Any

from uvicorn.protocols.http.h11_impl import H11Protocol

from twostream_ray.serving.refusals import Refusal
from twostream_ray.serving.settings import LimitsConfig

_PHRASES = {400: "Bad Request", 408: "Request Timeout", 503: "Service Unavailable"}


class BoundedConnection(H11Protocol):
    """Closed where there are too many, or its next request's head does not come in time."""

    limits: LimitsConfig
    """Of a subclass, see `connections_within`."""
    _timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """A client has come."""
        super().connection_made(transport)
        if len(self.connections) > self.limits.connections:
            self._refuse(Refusal("stopping", "too many connections are open: try again"))
            return
        self._await_head()

    def data_received(self, data: bytes) -> None:
        """The next bytes of it."""
        super().data_received(data)
        if self._awaits_head():
            self._await_head()
        else:
            self._forget_timer()

    def connection_lost(self, exc: Exception | None) -> None:
        """It is gone."""
        self._forget_timer()
        super().connection_lost(exc)

    def send_400_response(self, msg: str) -> None:
        """What came is no HTTP."""
        self._refuse(Refusal("bad_parameter", msg))

    def _awaits_head(self) -> bool:
        return self.cycle is None or self.cycle.response_complete

    def _await_head(self) -> None:
        """From the first byte on, or the beginning: later bytes give no more time."""
        if self._timer is None:
            self._timer = self.loop.call_later(self.limits.silence_seconds, self._give_up)

    def _forget_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _give_up(self) -> None:
        self._timer = None
        if self._awaits_head() and not self.transport.is_closing():
            seconds = self.limits.silence_seconds
            self._refuse(Refusal("slow_sender", f"the head of a request was wanted within {seconds:g} s"))

    def _refuse(self, refusal: Refusal) -> None:
        body = json.dumps(refusal.body()).encode()
        head = (
            f"HTTP/1.1 {refusal.status} {_PHRASES[refusal.status]}\r\nContent-Type: application/json\r\n"
            f"Content-Length: {len(body)}\r\nConnection: close\r\n\r\n"
        )
        self.transport.write(head.encode() + body)
        self.transport.close()


def connections_within(limits: LimitsConfig) -> type[BoundedConnection]:
    """The class of connections for uvicorn."""
    members: dict[str, Any] = {"limits": limits}
    return type("Connection", (BoundedConnection,), members)
