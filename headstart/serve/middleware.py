"""ASGI middleware for every request: access control, body limits, metrics, error responses and a log line.

All headers are controlled by the client. A header that cannot be parsed leads to an error response, never to an
exception in the server.
"""

from __future__ import annotations

import asyncio
import time
import traceback
from collections import deque
from collections.abc import Callable, Coroutine
from contextlib import suppress
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any, Final, TypeVar, final

from starlette.datastructures import Headers
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from headstart.serve.access import PUBLIC_PATHS, AccessPolicy
from headstart.serve.errors import HttpError, error_document
from headstart.serve.limits import LINGER_SECONDS, MAX_DISCARDED_BODIES, ServerLimits
from headstart.serve.prometheus import Metrics
from headstart.serve.request_log import request_entry, timestamp, write_json_line

CLIENT_CLOSED_REQUEST: Final = 499
"""Logged status if the client has disconnected before the response; as nginx logs it."""

Result = TypeVar("Result")


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
            self._write_log({"time": timestamp(), "error": traceback.format_exc()})
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
        response = JSONResponse(error_document(error.status, error.reason), error.status, error.headers)
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
        counts = {name: scope["state"][name] for name in ("images", "unreadable") if name in scope["state"]}
        entry = request_entry(scope["method"], scope["path"], status, seconds) | counts
        self.metrics.requests.labels(entry["method"], path, str(status)).inc()
        self.metrics.seconds.labels(path).observe(seconds)
        self._write_log(entry)

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
