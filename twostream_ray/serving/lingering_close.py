"""Lingering close: the rest of a refused body is read, so that the client sees the response, not a connection reset.

ASGI middleware, to be added as the outermost one.
"""

from __future__ import annotations

import asyncio

from starlette.types import ASGIApp, Message, Receive, Scope, Send

_SECONDS, _SILENCE_S = 10.0, 2.0
_MOST_BYTES = 1 << 30


class LingeringClose:
    """Sends an early response first, then reads and discards the rest of the request body within limits."""

    def __init__(self, app: ASGIApp) -> None:
        """Wrap an application."""
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle a request (ASGI)."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = dict(scope["headers"])
        has_body = headers.get(b"content-length", b"0") != b"0" or b"transfer-encoding" in headers
        asked_first = b"expect" in headers
        open_body, begun = has_body, False

        async def watched_receive() -> Message:
            nonlocal open_body, begun
            begun = True
            message = await receive()
            open_body = open_body and message["type"] == "http.request" and message.get("more_body", False)
            return message

        async def watched_send(message: Message) -> None:
            early = open_body and (begun or not asked_first)
            if message["type"] == "http.response.start" and open_body:
                message["headers"] = [*message.get("headers", []), (b"connection", b"close")]
            if message["type"] != "http.response.body" or message.get("more_body", False) or not early:
                await send(message)
                return
            await send({**message, "more_body": True})
            await _drain(receive)
            await send({"type": "http.response.body", "body": b"", "more_body": False})

        await self._app(scope, watched_receive, watched_send)


async def _drain(receive: Receive) -> None:
    ends, size = asyncio.get_running_loop().time() + _SECONDS, 0
    while size < _MOST_BYTES and (left := ends - asyncio.get_running_loop().time()) > 0:
        try:
            message = await asyncio.wait_for(receive(), min(_SILENCE_S, left))
        except TimeoutError:
            return
        size += len(message.get("body", b""))
        if message["type"] != "http.request" or not message.get("more_body", False):
            return
