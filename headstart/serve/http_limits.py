"""Connections within bounds: how many, how long until a request's head is there, how long nobody reads."""

from __future__ import annotations

import asyncio
import json
import logging
import signal
import socket
import threading
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any, cast, final

import uvicorn
from starlette.types import ASGIApp
from uvicorn.protocols.http.h11_impl import H11Protocol

from headstart.errors import ServerError
from headstart.serve.errors import problem_document
from headstart.serve.limits import Limits
from headstart.serve.middleware import LINGER, LINGER_BODIES, LOOPBACK, Traffic

SIGNALS = (signal.SIGINT, signal.SIGTERM)

LAST_WORDS = 5
"""Seconds that connections get to take their last answer."""


def listen(host: str, port: int) -> socket.socket:
    """A socket that listens.

    Args:
        host: a name or an address of this machine.
        port: 0 for any that is free.

    Raises:
        ServerError: it cannot be had.
    """
    try:
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
        return socket.create_server((host, port), family=family, backlog=1024)
    except (OSError, OverflowError) as error:
        why = getattr(error, "strerror", None) or error
        raise ServerError(f"{host}:{port}: cannot listen there: {why}. Name another with --host or --port.") from error


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach it there."""
    return host in LOOPBACK or host.startswith("127.")


def address(listener: socket.socket) -> str:
    """For a browser."""
    host, port = listener.getsockname()[:2]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


class BoundedServer(uvicorn.Server):
    """uvicorn's server that leaves signals to its caller, so that it can run in any thread and in a running loop."""

    @contextmanager
    def capture_signals(self) -> Generator[None, None, None]:
        """Takes no signal handler."""
        yield


def bounded_server(app: ASGIApp, limits: Limits, traffic: Traffic) -> BoundedServer:
    """A uvicorn within bounds. Requests are logged by ``Guard``; see ``quiet_uvicorn`` for uvicorn's own log."""
    config = uvicorn.Config(
        app,
        http=cast(Any, partial(BoundedConnection, limits, traffic)),
        ws="none",
        loop="asyncio",
        log_config=None,
        access_log=False,
        server_header=False,
        timeout_keep_alive=cast(Any, limits.idle_seconds),
        timeout_graceful_shutdown=LAST_WORDS,
    )
    return BoundedServer(config)


@contextmanager
def stop_signals() -> Iterator[list[int]]:
    """A block in which SIGTERM and SIGINT are collected in a list; in another thread than the main one none can be."""
    came: list[int] = []
    if threading.current_thread() is not threading.main_thread():
        yield came
        return
    before = {own: signal.signal(own, lambda number, _frame: came.append(number)) for own in SIGNALS}
    try:
        yield came
    finally:
        for own, handler in before.items():
            signal.signal(own, handler)


@contextmanager
def quiet_uvicorn() -> Iterator[None]:
    """A block in which uvicorn logs nothing."""
    logger = logging.getLogger("uvicorn")
    before = logger.level
    logger.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        logger.setLevel(before)


class BoundedConnection(H11Protocol):
    """uvicorn's HTTP/1.1, which by itself lets a silent connection stay for ever.

    Args:
        limits: of connections.
        traffic: is told how many there are.
        **options: as uvicorn gives them.
    """

    def __init__(self, limits: Limits, traffic: Traffic, **options: Any) -> None:
        super().__init__(**options)
        self._limits, self._traffic = limits, traffic
        self._taken = self._leaving = False
        self._thrown = 0
        self._asking, self._reading = _Patience(self), _Patience(self)

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Takes a connection, or says that there are too many."""
        if self._traffic.connections >= self._limits.connections:
            self.transport = transport
            self._leave(_raw(503, "Too many connections. Try again later.", ["Retry-After: 1"]))
            return
        self._taken = True
        self._traffic.connections += 1
        super().connection_made(transport)
        self._watch()

    def connection_lost(self, exc: Exception | None) -> None:
        """Forgets it."""
        self._asking.end()
        self._reading.end()
        self._traffic.leaving -= self._leaving
        if self._taken:
            self._traffic.connections -= 1
            super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Takes bytes, or throws them away."""
        if self._leaving:
            self._thrown += len(data)
            if self._thrown > LINGER_BODIES * self._limits.body:
                self.transport.abort()
            self._reading.begin(LINGER)
        elif self._taken:
            super().data_received(data)
            self._watch()

    def on_response_complete(self) -> None:
        """Waits for the next request, or for the client to read the last answer."""
        super().on_response_complete()
        if self.transport.is_closing():
            self._reading.begin(self._limits.idle_seconds)
        self._watch()

    def pause_writing(self) -> None:
        """The client does not read."""
        super().pause_writing()
        self._reading.begin(self._limits.request_seconds)

    def resume_writing(self) -> None:
        """The client reads again."""
        super().resume_writing()
        self._reading.end()

    def timeout_keep_alive_handler(self) -> None:
        """Nothing came for a while."""
        self.transport.abort()

    def send_400_response(self, msg: str) -> None:
        """What came is no HTTP."""
        begun = self.cycle is not None and not self.cycle.response_complete
        answered = begun and self.cycle.response_started
        if begun:
            self.cycle.disconnected = True
            self.cycle.message_event.set()
        self._leave(b"" if answered else _raw(400, msg, []))

    def shutdown(self) -> None:
        """The server stops."""
        if self._leaving:
            self.transport.abort()
        else:
            super().shutdown()

    def _leave(self, words: bytes) -> None:
        """Says a last thing, and throws away what comes until the client has said all; see ``LINGER``.

        So many may linger as may be connected; others are closed at once.
        """
        self.transport.write(words)
        if self._traffic.leaving >= self._limits.connections:
            self.transport.close()
            self._reading.begin(1.0)
            return
        self._leaving = True
        self._traffic.leaving += 1
        self.transport.write_eof()
        self.transport.resume_reading()
        self._reading.begin(LINGER)
        self._asking.begin(self._limits.body_seconds)

    def _watch(self) -> None:
        """Whoever has begun a request must bring its head in time."""
        if self._leaving:
            return
        if self.cycle is not None and not self.cycle.response_complete:
            self._asking.end()
        elif not self._asking and self.timeout_keep_alive_task is None and not self.transport.is_closing():
            self._asking.begin(self._limits.head_seconds)


@final
class _Patience:
    """A time after which a connection is cut off."""

    def __init__(self, connection: H11Protocol) -> None:
        self._connection = connection
        self._handle: asyncio.TimerHandle | None = None

    def __bool__(self) -> bool:
        return self._handle is not None

    def begin(self, seconds: float) -> None:
        self.end()
        self._handle = self._connection.loop.call_later(seconds, self._connection.transport.abort)

    def end(self) -> None:
        if self._handle is not None:
            self._handle.cancel()
            self._handle = None


def _raw(status: int, reason: str, headers: list[str]) -> bytes:
    """A whole response, for whom there is no application yet."""
    body = json.dumps(problem_document(status, reason)).encode()
    lines = [f"HTTP/1.1 {status} Refused", "Content-Type: application/json", f"Content-Length: {len(body)}"]
    return "\r\n".join([*lines, *headers, "Connection: close", "", ""]).encode() + body
