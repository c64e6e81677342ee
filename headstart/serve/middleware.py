"""ASGI middleware for every request: access control, body limits, metrics, error responses and a log line.

All headers are controlled by the client. A header that cannot be parsed leads to an error response, never to an
exception in the server.
"""

from __future__ import annotations

import asyncio
import hmac
import json
import sys
import time
import traceback
from collections import deque
from collections.abc import Callable, Coroutine
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from http import HTTPStatus
from typing import Any, Final, TypeVar, final
from urllib.parse import urlsplit

from starlette.datastructures import Headers
from starlette.requests import Request
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from headstart.serve.errors import HttpError
from headstart.serve.limits import ServerLimits
from headstart.serve.prometheus import Metrics

PUBLIC_PATHS: Final = frozenset({"/", "/watch", "/healthz", "/readyz"})
PUBLIC_PREFIX: Final = "/page/"
"""Paths without API key: health checks, and static files of the page, which reveal nothing about the model."""

LOOPBACK_HOSTS: Final = frozenset({"localhost", "127.0.0.1", "::1"})
SAFE_METHODS: Final = frozenset({"GET", "HEAD", "OPTIONS"})
LOGGED_METHODS: Final = SAFE_METHODS | {"POST", "PUT", "PATCH", "DELETE"}
MAX_LOGGED_PATH: Final = 200
"""Maximum length of a path in the log, in characters."""

LINGER_SECONDS: Final = 2.0
"""Lingering close: after an early error response, the rest of the request is read and discarded until nothing has
arrived for this long. A connection that is closed with unread bytes is reset, and a client that sends its whole request
before it reads would never see the response."""

MAX_DISCARDED_BODIES: Final = 4
"""Maximum number of discarded bytes, as a multiple of ``ServerLimits.max_body_bytes``; they are not stored."""

CLIENT_CLOSED_REQUEST: Final = 499
"""Logged status if the client has disconnected before the response; as nginx logs it."""

Result = TypeVar("Result")


def write_json_line(entry: dict[str, Any]) -> None:
    """Writes a log entry to stderr as one line of ASCII JSON, so that no client can inject line breaks or escapes."""
    with suppress(OSError):  # stderr is closed: answering requests matters more than the log
        print(json.dumps(entry), file=sys.stderr, flush=True)


@dataclass
class ServerState:
    """Counters of a running server, and whether it is shutting down.

    Attributes:
        draining: whether the server accepts no new requests; endless responses (server-sent events) then end.
        active_requests: requests whose response is not complete.
        buffered_bytes: bytes of their bodies in memory.
        open_connections: accepted connections.
        lingering_connections: refused connections that may still read their error response.
    """

    draining: bool = False
    active_requests: int = 0
    buffered_bytes: int = 0
    open_connections: int = 0
    lingering_connections: int = 0


@dataclass(frozen=True)
class AccessPolicy:
    """Which requests are accepted.

    Attributes:
        key: API key that clients must send as ``Authorization: Bearer KEY``; "" for none.
        local: whether the server is meant for this machine only. Without a key it then requires a loopback name in the
            Host header: otherwise a foreign page whose host name resolves to 127.0.0.1 could read responses (DNS
            rebinding).
    """

    key: str = field(default="", repr=False)
    local: bool = True

    def check(self, method: str, path: str, headers: Headers) -> None:
        """Accepts a request or raises.

        Raises:
            HttpError: the API key is missing or wrong (401), or the request comes from a page of another site (403).
        """
        host = headers.get("host", "")
        if self.local and not self.key and _host_name(host) not in LOOPBACK_HOSTS:
            raise HttpError(
                403,
                "This server answers only to requests for localhost. Use that address, or start it with an API key.",
            )
        origin = headers.get("origin")
        if method not in SAFE_METHODS and origin is not None and not _is_same_origin(origin, host):
            raise HttpError(403, "Requests from pages of another site are refused.")
        if self.key and path not in PUBLIC_PATHS and not path.startswith(PUBLIC_PREFIX) and not self._has_key(headers):
            raise HttpError(401, "Send the API key of this server in the header Authorization: Bearer KEY.")

    def _has_key(self, headers: Headers) -> bool:
        scheme, _, given = headers.get("authorization", "").partition(" ")
        is_equal = hmac.compare_digest(given.strip().encode(), self.key.encode())
        return is_equal and scheme.lower() == "bearer"


@final
class RequestMiddleware:
    """ASGI middleware that checks, reads, counts and logs requests.

    The body is read completely and within its limits before the application is called, so that a slow client occupies
    memory but no application code.

    Args:
        app: the wrapped application.
        limits: limits of request bodies.
        admission: which requests are accepted.
        state: counters to update.
        metrics: metrics to update.
        name_path: maps the path of a request to the path of its route, such as "/v1/corrections/{key}": the label in
            metrics, also of requests that are refused before routing.
        log: called with one entry per request; None for no log.
    """

    def __init__(
        self,
        app: ASGIApp,
        *,
        limits: ServerLimits,
        admission: AccessPolicy,
        state: ServerState,
        metrics: Metrics,
        name_path: Callable[[str], str] = lambda _path: "other",
        log: Callable[[dict[str, Any]], None] | None = write_json_line,
    ) -> None:
        self.app = app
        self.limits, self.admission, self.state, self.metrics, self.log = limits, admission, state, metrics, log
        self.name_path = name_path

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handles one request; other ASGI events (lifespan) are passed on."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        scope.setdefault("state", {})
        started = time.perf_counter()
        response = _ResponseSender(send, self.state, without_body=scope["method"] == "HEAD")
        body = _RequestBody(receive, self.limits, self.state)
        self.state.active_requests += 1
        try:
            await self._respond(scope, body, response)
        finally:
            body.release()
            self._record(scope, response.status, time.perf_counter() - started)
            self.state.active_requests -= 1

    async def _respond(self, scope: Scope, body: _RequestBody, response: _ResponseSender) -> None:
        try:
            self._check(scope)
            await body.read(Headers(scope=scope))
            inner = {**scope, "method": "GET"} if scope["method"] == "HEAD" else scope
            await self.app(inner, body.receive, response.send)
        except HttpError as error:
            await self._send_error(error, body, response)
        except ClientDisconnected:
            response.status = CLIENT_CLOSED_REQUEST
        except _HeadResponseSent:
            pass
        except Exception:  # a bug: logged here, once, and never shown to the client
            self._write_log({"time": _timestamp(), "error": traceback.format_exc()})
            if not response.started:
                fault = HttpError(500, "Internal error of the server. Its log has the details.")
                await self._send_error(fault, body, response)

    def _check(self, scope: Scope) -> None:
        path = route_path(scope)
        self.admission.check(scope["method"], path, Headers(scope=scope))
        if self.state.draining and path not in PUBLIC_PATHS:
            raise HttpError(503, "The server is about to stop. Try again later, or on another server.", retry_after=5)

    async def _send_error(self, error: HttpError, body: _RequestBody, sender: _ResponseSender) -> None:
        """Sends an error response. If the body was not read to its end, the connection cannot be used again."""
        response = error.response()
        if not body.is_complete:
            response.headers["connection"] = "close"
        await sender.send({"type": "http.response.start", "status": error.status, "headers": response.raw_headers})
        with suppress(_HeadResponseSent):
            await sender.send({"type": "http.response.body", "body": bytes(response.body), "more_body": True})
        timed_out = error.status == HTTPStatus.REQUEST_TIMEOUT
        await body.discard(LINGER_SECONDS if timed_out else self.limits.body_timeout)
        await sender.send({"type": "http.response.body", "body": b"", "more_body": False})

    def _record(self, scope: Scope, status: int, seconds: float) -> None:
        """Counts the request and writes its log entry: no query, no file name and no key."""
        path = self.name_path(route_path(scope))
        method = scope["method"] if scope["method"] in LOGGED_METHODS else "other"
        self.metrics.requests.labels(method, path, str(status)).inc()
        self.metrics.seconds.labels(path).observe(seconds)
        counts = {name: scope["state"][name] for name in ("images", "unreadable") if name in scope["state"]}
        entry = {"time": _timestamp(), "method": method, "path": scope["path"][:MAX_LOGGED_PATH], "status": status}
        self._write_log(entry | {"ms": round(1000 * seconds, 1)} | counts)

    def _write_log(self, entry: dict[str, Any]) -> None:
        if self.log is not None:
            self.log(entry)


class ClientDisconnected(Exception):
    """The client has closed its connection; nobody waits for the response."""


class _HeadResponseSent(Exception):
    """The response to a HEAD request is complete, although the route would continue to send."""


async def cancel_on_disconnect(request: Request, work: Coroutine[Any, Any, Result]) -> Result:
    """Awaits ``work``, and cancels it as soon as the client disconnects.

    Raises:
        ClientDisconnected: the client has disconnected.
    """
    task, disconnect = asyncio.ensure_future(work), asyncio.ensure_future(_wait_for_disconnect(request))
    try:
        await asyncio.wait({task, disconnect}, return_when=asyncio.FIRST_COMPLETED)
        if not task.done():
            raise ClientDisconnected
        return task.result()
    finally:
        task.cancel()
        disconnect.cancel()


async def _wait_for_disconnect(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


def route_path(scope: Scope) -> str:
    """Path of a request relative to the prefix under which this application is mounted."""
    path, mount = scope["path"], scope.get("root_path", "")
    if mount and (path == mount or path.startswith(f"{mount}/")):
        return str(path[len(mount) :])
    return str(path)


class _ResponseSender:
    """Wraps ``send``: records the status, adds headers and drops the body of responses to HEAD."""

    def __init__(self, send: Send, state: ServerState, *, without_body: bool) -> None:
        self._send, self._state, self._without_body = send, state, without_body
        self.started = self._ended = False
        self.status = CLIENT_CLOSED_REQUEST

    async def send(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.started, self.status = True, message["status"]
            message["headers"] = [*message.get("headers", []), (b"x-content-type-options", b"nosniff")]
            if self._state.draining:
                message["headers"].append((b"connection", b"close"))
        elif self._without_body:
            if not self._ended:
                self._ended = True
                await self._send({"type": "http.response.body", "body": b"", "more_body": False})
            if message.get("more_body", False):
                raise _HeadResponseSent
            return
        await self._send(message)


class _RequestBody:
    """Body of a request, read into memory within the limits and then passed to the application."""

    def __init__(self, receive: Receive, limits: ServerLimits, state: ServerState) -> None:
        self._receive, self._limits, self._state = receive, limits, state
        self._pieces: deque[bytes] = deque()
        self._size = 0
        self.is_complete = False

    async def read(self, headers: Headers) -> None:
        """Reads the body.

        Raises:
            HttpError: too large (413), too slow (408), or all bodies together are too large (503).
            ClientDisconnected: the client has disconnected.
        """
        declared = headers.get("content-length", "")
        if declared.isdecimal() and int(declared[:20]) > self._limits.max_body_bytes:
            raise self._too_large()
        try:
            async with asyncio.timeout(self._limits.body_timeout):
                await self._read()
        except TimeoutError:
            raise HttpError(408, f"The request body did not arrive within {self._limits.body_timeout:g} s.") from None

    async def _read(self) -> None:
        while not self.is_complete:
            message = await self._receive()
            if message["type"] == "http.disconnect":
                raise ClientDisconnected
            piece = message.get("body", b"")
            self._size += len(piece)
            self._state.buffered_bytes += len(piece)
            if self._size > self._limits.max_body_bytes:
                raise self._too_large()
            if self._state.buffered_bytes > self._limits.max_buffered_bytes:
                raise HttpError(503, "Too many large requests at a time. Try again later.", retry_after=1)
            self._pieces.append(piece)
            self.is_complete = not message.get("more_body", False)

    def _too_large(self) -> HttpError:
        return HttpError(
            413,
            f"The request body is larger than {self._limits.max_body_bytes:,} bytes. "
            "Send fewer or smaller images per request.",
        )

    async def receive(self) -> Message:
        """ASGI receive: the pieces of the body, then whatever the server reports (a disconnect)."""
        if not self._pieces:
            return await self._receive()
        await asyncio.sleep(0)  # lets other requests run while a parser reads one large body
        piece = self._pieces.popleft()
        return {"type": "http.request", "body": piece, "more_body": bool(self._pieces)}

    async def discard(self, seconds: float) -> None:
        """Discards the rest of the body, see ``LINGER_SECONDS``, for at most ``seconds``."""
        self.release()
        with suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                discarded = 0
                while not self.is_complete and discarded <= MAX_DISCARDED_BODIES * self._limits.max_body_bytes:
                    async with asyncio.timeout(LINGER_SECONDS):
                        message = await self._receive()
                    discarded += len(message.get("body", b""))
                    self.is_complete = message["type"] == "http.disconnect" or not message.get("more_body", False)

    def release(self) -> None:
        """Frees the memory of the body."""
        self._state.buffered_bytes -= self._size
        self._pieces.clear()
        self._size = 0


def _is_same_origin(origin: str, host: str) -> bool:
    """Whether an Origin header names the site of a Host header; False for an invalid one."""
    with suppress(ValueError):
        return urlsplit(origin).netloc.lower() == host.lower()
    return False


def _host_name(host: str) -> str:
    """Host name of a Host header, without the port; "" for an invalid one."""
    with suppress(ValueError):
        return urlsplit(f"//{host}").hostname or ""
    return ""


def _timestamp() -> str:
    return datetime.now(UTC).isoformat(timespec="milliseconds")
