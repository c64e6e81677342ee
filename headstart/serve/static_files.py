"""The page's own files, and what a browser is allowed to do with them."""

from __future__ import annotations

from functools import cache
from importlib.resources import files
from typing import Final, final

from fastapi import APIRouter
from fastapi.responses import Response
from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from headstart.serve.errors import Refusal

KINDS: Final = {
    ".html": "text/html; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".svg": "image/svg+xml",
}

POLICY: Final = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob: data:; connect-src 'self'; "
    "media-src 'self' blob:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)

HEADERS: Final = {
    "Content-Security-Policy": POLICY,
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Permissions-Policy": "camera=(self), microphone=(), geolocation=()",
}
"""Of every response that does not say otherwise."""


@cache
def _files() -> dict[str, bytes]:
    folder = files("headstart.serve") / "static"
    return {own.name: own.read_bytes() for own in folder.iterdir() if own.name.endswith(tuple(KINDS))}


def asset(name: str) -> Response:
    """One of the page's files.

    Raises:
        Refusal: there is none of that name (404).
    """
    data = _files().get(name)
    if data is None:
        raise Refusal(404, "The page has no such file.")
    kind = KINDS[f".{name.rpartition('.')[2]}"]
    return Response(data, media_type=kind, headers={"Cache-Control": "no-cache"})


def asset_router() -> APIRouter:
    """``/page/NAME``: style sheets, scripts and the icon."""
    router = APIRouter(include_in_schema=False)

    @router.get("/page/{name}")
    async def file(name: str) -> Response:
        return asset(name)

    return router


@final
class PageHeaders:
    """Puts ``HEADERS`` on every response; an ASGI middleware."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answers a request."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return

        async def with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                own = Headers(raw=message.get("headers", []))
                more = MutableHeaders(scope=message)
                for name, value in HEADERS.items():
                    if name not in own:
                        more[name] = value
            await send(message)

        await self.app(scope, receive, with_headers)
