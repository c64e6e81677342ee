"""Static files of the page, and the security headers of every response."""

from __future__ import annotations

from functools import cache
from importlib.resources import files
from typing import Final, final

from fastapi import APIRouter
from fastapi.responses import Response
from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from headstart.serve.errors import HttpError

MEDIA_TYPES: Final = {
    ".html": "text/html; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".svg": "image/svg+xml",
}

CONTENT_SECURITY_POLICY: Final = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob: data:; connect-src 'self'; "
    "media-src 'self' blob:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)

SECURITY_HEADERS: Final = {
    "Content-Security-Policy": CONTENT_SECURITY_POLICY,
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Permissions-Policy": "camera=(self), microphone=(), geolocation=()",
}
"""Default headers of every response; a route may override them."""


@cache
def _files() -> dict[str, bytes]:
    folder = files("headstart.serve") / "static"
    return {file.name: file.read_bytes() for file in folder.iterdir() if file.name.endswith(tuple(MEDIA_TYPES))}


def asset(name: str) -> Response:
    """Response with one static file.

    Raises:
        HttpError: there is no such file (404).
    """
    data = _files().get(name)
    if data is None:
        raise HttpError(404, "No such file.")
    media_type = MEDIA_TYPES[f".{name.rpartition('.')[2]}"]
    return Response(data, media_type=media_type, headers={"Cache-Control": "no-cache"})


def asset_router() -> APIRouter:
    """Route ``/page/NAME``: style sheets, scripts and the icon."""
    router = APIRouter(include_in_schema=False)

    @router.get("/page/{name}")
    async def file(name: str) -> Response:
        return asset(name)

    return router


@final
class SecurityHeadersMiddleware:
    """ASGI middleware that adds ``SECURITY_HEADERS`` to every response."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handles one request."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return

        async def with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                present = Headers(raw=message.get("headers", []))
                headers = MutableHeaders(scope=message)
                for name, value in SECURITY_HEADERS.items():
                    if name not in present:
                        headers[name] = value
            await send(message)

        await self.app(scope, receive, with_headers)
