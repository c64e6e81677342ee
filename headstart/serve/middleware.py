"""The middleware that every request passes, whichever route it is for: key, bounds, metrics, one line of log.

Every header is under the control of the client. Whatever cannot be parsed here is refused, never a fault.
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
from typing import Any, TypeVar, final
from urllib.parse import urlsplit

from starlette.datastructures import Headers
from starlette.requests import Request
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from headstart.serve.errors import Refusal
from headstart.serve.limits import Limits
from headstart.serve.prometheus import Metrics

OPEN = frozenset({"/", "/watch", "/healthz", "/readyz"})
OPEN_UNDER = "/page/"
"""What needs no key: whether it lives, and the page's own files, which ask for it and tell nothing of the model."""

LOOPBACK = frozenset({"localhost", "127.0.0.1", "::1"})
READING = frozenset({"GET", "HEAD", "OPTIONS"})
METHODS = READING | {"POST", "PUT", "PATCH", "DELETE"}
SHOWN_PATH = 200
"""Characters of a path that are logged."""

LINGER = 2.0
"""Seconds without a byte until a refused client is taken to have said all. What it sends till then is thrown away: a
connection that is closed with bytes unread is reset, and whoever writes all before it reads would never learn why."""

LINGER_BODIES = 4
"""What is thrown away at most, as a multiple of the body that is taken (``Limits.body``); it is not held."""

GONE = 499
"""Logged where the client left before it had an answer."""

Result = TypeVar("Result")


def write_line(entry: dict[str, Any]) -> None:
    """One line of JSON to stderr, in ASCII: nothing that was sent can end it or colour it."""
    with suppress(OSError):  # nobody reads it any more: the answers matter more
        print(json.dumps(entry), file=sys.stderr, flush=True)


@dataclass
class Traffic:
    """What is under way in a server, and whether it is about to stop.

    Attributes:
        draining: whether it takes nothing new; what answers without end looks at it and ends.
        under_way: requests that have no whole answer yet.
        held: bytes of their bodies.
        connections: that are open.
        leaving: of clients that were refused a connection, and may still read why.
    """

    draining: bool = False
    under_way: int = 0
    held: int = 0
    connections: int = 0
    leaving: int = 0


@dataclass(frozen=True)
class Admission:
    """Who is let in.

    Attributes:
        key: that requests must bring as ``Authorization: Bearer KEY``; "" for none.
        local: whether the server is for this machine alone. Without a key it then answers only to its names for
            itself: a foreign page that had its own name point here (DNS rebinding) could read along.
    """

    key: str = field(default="", repr=False)
    local: bool = True

    def check(self, method: str, path: str, headers: Headers) -> None:
        """Lets a request in.

        Raises:
            Refusal: it lacks the key (401), or another site's page sends it (403).
        """
        host = headers.get("host", "")
        if self.local and not self.key and _name(host) not in LOOPBACK:
            raise Refusal(403, "This server is for its own machine: ask for it by localhost, or start it with a key.")
        origin = headers.get("origin")
        if method not in READING and origin is not None and not _is_of(origin, host):
            raise Refusal(403, "Sent by a page of another site.")
        if self.key and path not in OPEN and not path.startswith(OPEN_UNDER) and not self._fits(headers):
            raise Refusal(401, "Send the key of this server as Authorization: Bearer KEY.")

    def _fits(self, headers: Headers) -> bool:
        scheme, _, given = headers.get("authorization", "").partition(" ")
        fits = hmac.compare_digest(given.strip().encode(), self.key.encode())
        return fits and scheme.lower() == "bearer"


@final
class Guard:
    """An ASGI application around another.

    A body is read here, whole and within its bounds, before the application is asked: a slow client holds bytes, and
    nothing else.

    Args:
        app: what is guarded.
        limits: of bodies.
        admission: who is let in.
        traffic: is kept up to date.
        metrics: are counted up.
        name_path: the path of the route that a request's path belongs to, such as "/v1/corrections/{key}": its name in
            metrics, whether or not the request gets as far as the route.
        log: gets an entry for each request; None for no log.
    """

    def __init__(
        self,
        app: ASGIApp,
        *,
        limits: Limits,
        admission: Admission,
        traffic: Traffic,
        metrics: Metrics,
        name_path: Callable[[str], str] = lambda _path: "other",
        log: Callable[[dict[str, Any]], None] | None = write_line,
    ) -> None:
        self.app = app
        self.limits, self.admission, self.traffic, self.metrics, self.log = limits, admission, traffic, metrics, log
        self.name_path = name_path

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answers one request."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        scope.setdefault("state", {})
        is_head = scope["method"] == "HEAD"
        started, told = time.perf_counter(), _Told(send, self.traffic, without_body=is_head)
        self.traffic.under_way += 1
        body = _Body(receive, self.limits, self.traffic)
        try:
            self._check(scope)
            await body.read(Headers(scope=scope))
            inner = {**scope, "method": "GET"} if is_head else scope
            await self.app(inner, body.receive, told.send)
        except Refusal as refusal:
            await self._refuse(refusal, body, told)
        except Gone:
            told.status = GONE
        except _Answered:
            pass
        except Exception:  # a fault of ours: said once, here
            self._tell({"time": _now(), "error": traceback.format_exc()})
            if not told.started:
                fault = Refusal(500, "A fault of the server; its log says more.")
                await self._refuse(fault, body, told)
        finally:
            body.close()
            self._note(scope, told.status, time.perf_counter() - started)
            self.traffic.under_way -= 1

    def _check(self, scope: Scope) -> None:
        path = route_path(scope)
        self.admission.check(scope["method"], path, Headers(scope=scope))
        if self.traffic.draining and path not in OPEN:
            raise Refusal(503, "The server is about to stop. Send it again, to another or later.", retry_after=5)

    async def _refuse(self, refusal: Refusal, body: _Body, told: _Told) -> None:
        """Sends why; where the body is not read to its end, the connection cannot be used again."""
        response = refusal.response()
        if not body.whole:
            response.headers["connection"] = "close"
        await told.send({"type": "http.response.start", "status": refusal.status, "headers": response.raw_headers})
        with suppress(_Answered):
            await told.send({"type": "http.response.body", "body": bytes(response.body), "more_body": True})
        late = refusal.status == HTTPStatus.REQUEST_TIMEOUT
        await body.discard(LINGER if late else self.limits.body_seconds)
        await told.send({"type": "http.response.body", "body": b"", "more_body": False})

    def _note(self, scope: Scope, status: int, seconds: float) -> None:
        path = self.name_path(route_path(scope))
        method = scope["method"] if scope["method"] in METHODS else "other"
        self.metrics.requests.labels(method, path, str(status)).inc()
        self.metrics.seconds.labels(path).observe(seconds)
        own = {name: scope["state"][name] for name in ("pictures", "faults") if name in scope["state"]}
        entry = {"time": _now(), "method": method, "path": scope["path"][:SHOWN_PATH], "status": status}
        self._tell(entry | {"ms": round(1000 * seconds, 1)} | own)

    def _tell(self, entry: dict[str, Any]) -> None:
        if self.log is not None:
            self.log(entry)


class Gone(Exception):
    """The client has left; nobody waits for an answer."""


class _Answered(Exception):
    """A HEAD request has all of its answer, though the route goes on."""


async def unless_gone(request: Request, work: Coroutine[Any, Any, Result]) -> Result:
    """The result of work that is given up where nobody waits for it any more.

    Raises:
        Gone: the client has left.
    """
    task, gone = asyncio.ensure_future(work), asyncio.ensure_future(_left(request))
    try:
        await asyncio.wait({task, gone}, return_when=asyncio.FIRST_COMPLETED)
        if not task.done():
            raise Gone
        return task.result()
    finally:
        task.cancel()
        gone.cancel()


async def _left(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


def route_path(scope: Scope) -> str:
    """The path that routes are matched with: without what this application is mounted under."""
    path, mount = scope["path"], scope.get("root_path", "")
    if mount and (path == mount or path.startswith(f"{mount}/")):
        return str(path[len(mount) :])
    return str(path)


class _Told:
    """What was sent so far."""

    def __init__(self, send: Send, traffic: Traffic, *, without_body: bool) -> None:
        self._send, self._traffic, self._without_body = send, traffic, without_body
        self.started = self._ended = False
        self.status = GONE

    async def send(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.started, self.status = True, message["status"]
            message["headers"] = [*message.get("headers", []), (b"x-content-type-options", b"nosniff")]
            if self._traffic.draining:
                message["headers"].append((b"connection", b"close"))
        elif self._without_body:
            if not self._ended:
                self._ended = True
                await self._send({"type": "http.response.body", "body": b"", "more_body": False})
            if message.get("more_body", False):
                raise _Answered
            return
        await self._send(message)


class _Body:
    """A request's body, read within its bounds and then handed on."""

    def __init__(self, receive: Receive, limits: Limits, traffic: Traffic) -> None:
        self._receive, self._limits, self._traffic = receive, limits, traffic
        self._pieces: deque[bytes] = deque()
        self._size = 0
        self.whole = False

    async def read(self, headers: Headers) -> None:
        """Reads it.

        Raises:
            Refusal: too large (413), too slow (408), or others hold too much already (503).
            Gone: the client has left.
        """
        declared = headers.get("content-length", "")
        if declared.isdecimal() and int(declared[:20]) > self._limits.body:
            raise self._too_large()
        try:
            async with asyncio.timeout(self._limits.body_seconds):
                await self._read()
        except TimeoutError:
            raise Refusal(408, f"The body was not there within {self._limits.body_seconds:g} s.") from None

    async def _read(self) -> None:
        while not self.whole:
            message = await self._receive()
            if message["type"] == "http.disconnect":
                raise Gone
            piece = message.get("body", b"")
            self._size += len(piece)
            self._traffic.held += len(piece)
            if self._size > self._limits.body:
                raise self._too_large()
            if self._traffic.held > self._limits.held:
                raise Refusal(503, "Too much is being sent at once. Send it again later.", retry_after=1)
            self._pieces.append(piece)
            self.whole = not message.get("more_body", False)

    def _too_large(self) -> Refusal:
        return Refusal(413, f"The body is larger than {self._limits.body:,} bytes. Send fewer or smaller pictures.")

    async def receive(self) -> Message:
        """The body, then whatever comes: that the client has left."""
        if not self._pieces:
            return await self._receive()
        await asyncio.sleep(0)  # a parser that is kept busy by one body leaves the others their turn
        piece = self._pieces.popleft()
        return {"type": "http.request", "body": piece, "more_body": bool(self._pieces)}

    async def discard(self, seconds: float) -> None:
        """Throws away what is there and what still comes, for a while."""
        self.close()
        with suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                seen = 0
                while not self.whole and seen <= LINGER_BODIES * self._limits.body:
                    async with asyncio.timeout(LINGER):
                        message = await self._receive()
                    seen += len(message.get("body", b""))
                    self.whole = message["type"] == "http.disconnect" or not message.get("more_body", False)

    def close(self) -> None:
        """Gives its bytes back."""
        self._traffic.held -= self._size
        self._pieces.clear()
        self._size = 0


def _is_of(origin: str, host: str) -> bool:
    """Whether an Origin header names the site of a Host header; what is no address does not."""
    with suppress(ValueError):
        return urlsplit(origin).netloc.lower() == host.lower()
    return False


def _name(host: str) -> str:
    """The name in a Host header, without the port; "" for what is none."""
    with suppress(ValueError):
        return urlsplit(f"//{host}").hostname or ""
    return ""


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="milliseconds")
