"""uvicorn HTTP/1.1 protocol with a connection limit and a timeout for request headers (against slow-loris clients)."""

from __future__ import annotations

import asyncio
import json
from typing import Any

from uvicorn.protocols.http.h11_impl import H11Protocol

from twostream_ray.serving.refusals import Refusal
from twostream_ray.serving.settings import LimitsConfig

_PHRASES = {400: "Bad Request", 408: "Request Timeout", 503: "Service Unavailable"}


class BoundedConnection(H11Protocol):
    """Closed if too many connections are open, or the next request's headers do not arrive in time."""

    limits: LimitsConfig
    """Set by a subclass, see `connections_within`."""
    _timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Start the header timeout; refuse the connection with 503 if too many are open."""
        super().connection_made(transport)
        if len(self.connections) > self.limits.connections:
            self._refuse(Refusal("stopping", "too many connections are open: try again"))
            return
        self._start_timer()

    def data_received(self, data: bytes) -> None:
        """Parse received bytes; stop the timeout when the headers are complete."""
        super().data_received(data)
        if self._awaits_headers():
            self._start_timer()
        else:
            self._cancel_timer()

    def connection_lost(self, exc: Exception | None) -> None:
        """Cancel the timeout."""
        self._cancel_timer()
        super().connection_lost(exc)

    def send_400_response(self, msg: str) -> None:
        """Answer bytes that are not HTTP with the service's own 400."""
        self._refuse(Refusal("bad_parameter", msg))

    def _awaits_headers(self) -> bool:
        return self.cycle is None or self.cycle.response_complete

    def _start_timer(self) -> None:
        """Start the timeout unless it runs already: more bytes do not extend it."""
        if self._timer is None:
            self._timer = self.loop.call_later(self.limits.silence_seconds, self._time_out)

    def _cancel_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _time_out(self) -> None:
        self._timer = None
        if self._awaits_headers() and not self.transport.is_closing():
            seconds = self.limits.silence_seconds
            self._refuse(
                Refusal("slow_sender", f"the headers of a request must arrive within {seconds:g} s, they did not")
            )

    def _refuse(self, refusal: Refusal) -> None:
        body = json.dumps(refusal.body()).encode()
        head = (
            f"HTTP/1.1 {refusal.status} {_PHRASES[refusal.status]}\r\nContent-Type: application/json\r\n"
            f"Content-Length: {len(body)}\r\nConnection: close\r\n\r\n"
        )
        self.transport.write(head.encode() + body)
        self.transport.close()


def connections_within(limits: LimitsConfig) -> type[BoundedConnection]:
    """The protocol class for uvicorn with these limits."""
    members: dict[str, Any] = {"limits": limits}
    return type("Connection", (BoundedConnection,), members)
