"""Static files of the web page and their HTTP headers (Content Security Policy, level 3)."""

from __future__ import annotations

import hashlib
from collections.abc import Awaitable, Callable
from importlib import resources

from fastapi import APIRouter, Request, Response

POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; media-src 'self' blob:; "
    "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
"""Allows only the service's own files, images in responses (data:) and the chosen video (blob:)."""

HEADERS = {
    "Content-Security-Policy": POLICY,
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cache-Control": "no-cache",
}
_MEDIA_TYPES = {
    "html": "text/html; charset=utf-8",
    "css": "text/css; charset=utf-8",
    "js": "text/javascript; charset=utf-8",
    "svg": "image/svg+xml",
}


def page_files() -> dict[str, bytes]:
    """Name -> content of the page's files."""
    return {
        file.name: file.read_bytes()
        for file in resources.files(__name__).iterdir()
        if file.name.rpartition(".")[2] in _MEDIA_TYPES
    }


def page_routes() -> APIRouter:
    """Routes of the page, `/`, and its files, `/page/NAME`; all links are relative, so a proxy may add a prefix."""
    routes = APIRouter()
    for name, content in page_files().items():
        path = "/" if name == "index.html" else f"/page/{name}"
        routes.add_api_route(path, _sender(name, content), methods=["GET", "HEAD"], include_in_schema=False)
    return routes


def _sender(name: str, content: bytes) -> Callable[[Request], Awaitable[Response]]:
    tag = f'"{hashlib.sha256(content).hexdigest()[:16]}"'
    headers = {**HEADERS, "ETag": tag}

    async def send(request: Request) -> Response:
        if request.headers.get("if-none-match") == tag:
            return Response(status_code=304, headers=headers)
        return Response(content, media_type=_MEDIA_TYPES[name.rpartition(".")[2]], headers=headers)

    return send
