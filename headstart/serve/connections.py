"""Limits of TCP connections: how many are open, how long clients may not send or read, and fair use of the event loop.

``BoundedConnection`` is an asyncio protocol around the HTTP protocol of the server (uvicorn). It uses the documented
callbacks of ``asyncio.Protocol`` only, and learns from an ASGI middleware when a request begins and ends.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Callable, Sequence
from http import HTTPStatus
from typing import Any, Final, TypeAlias, cast, final

from h11 import LocalProtocolError
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from headstart.serve.errors import error_document
from headstart.serve.limits import LINGER_SECONDS, MAX_DISCARDED_BODIES, ServerLimits
from headstart.serve.middleware import ServerState

Address: TypeAlias = tuple[Any, ...]
"""Host and port of the server, host and port of the client: ``server`` and ``client`` of the ASGI scope."""


SLICE_BYTES: Final = 8192
"""Bytes parsed per slice. A body in chunks of one byte takes 20 us per chunk, 27 ms per slice."""

PARSE_SECONDS: Final = 0.005
"""Seconds per iteration of the event loop in which bytes are parsed; at least one slice."""


@final
class ConnectionRegistry:
    """Open connections by their two addresses, and the limits and counters that they share."""

    def __init__(self, limits: ServerLimits, state: ServerState) -> None:
        self.limits, self.state = limits, state
        self.by_address: dict[Address, BoundedConnection] = {}
        self.parse_queue = ParseQueue()

    def in_use(self, seconds: float) -> bool:
        """Whether a connection was used within the last ``seconds``: opened, sent to, or answered."""
        return any(connection.in_use(seconds) for connection in self.by_address.values())

    def close_lingering(self) -> None:
        """Closes the connections that wait for refused clients to read their response."""
        for connection in list(self.by_address.values()):
            connection.abort_if_lingering()


@final
class ParseQueue:
    """Fair queue of received bytes: parsing yields to the event loop; the least parse time so far goes first.

    One read returns up to 256 KB. In chunks of one byte that is most of a second of parsing, so that a few such clients
    would delay all others by many seconds.
    """

    def __init__(self) -> None:
        self._waiting: set[BoundedConnection] = set()
        self._is_scheduled = False
        self._spent = 0.0

    def add(self, connection: BoundedConnection) -> None:
        """Parses the bytes of a connection, now or in one of the next iterations of the event loop."""
        self._waiting.add(connection)
        if not self._is_scheduled:
            self._start_iteration()
        self._parse()

    def discard(self, connection: BoundedConnection) -> None:
        """Removes a connection that is lost."""
        self._waiting.discard(connection)

    def _start_iteration(self) -> None:
        self._is_scheduled, self._spent = True, 0.0
        asyncio.get_running_loop().call_soon(self._next_iteration)

    def _next_iteration(self) -> None:
        self._is_scheduled = False
        if self._waiting:
            self._start_iteration()
            self._parse()

    def _parse(self) -> None:
        while self._waiting and self._spent < PARSE_SECONDS:
            connection = min(self._waiting, key=lambda waiting: waiting.parse_seconds)
            started = time.perf_counter()
            if not connection.parse_slice():
                self._waiting.discard(connection)
            seconds = time.perf_counter() - started
            connection.parse_seconds += seconds
            self._spent += seconds


@final
class ConnectionMiddleware:
    """ASGI middleware that reports requests and responses to the connection that they belong to."""

    def __init__(self, app: ASGIApp, registry: ConnectionRegistry) -> None:
        self.app, self.registry = app, registry

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handles one request; other ASGI events (lifespan) are passed on."""
        address = (*(scope.get("server") or ()), *(scope.get("client") or ()))
        connection = self.registry.by_address.get(address)
        if scope["type"] != "http" or connection is None:
            await self.app(scope, receive, send)
            return

        async def reporting_send(message: Message) -> None:
            if message["type"] == "http.response.start":
                connection.response_expected = True
            await send(message)

        connection.request_started()
        try:
            await self.app(scope, receive, reporting_send)
        finally:
            connection.request_ended()


@final
class BoundedConnection(asyncio.Protocol):
    """Enforces the limits of one connection, and passes its bytes to a protocol that parses HTTP.

    Args:
        registry: the connections of this server.
        create_http: creates the protocol that parses HTTP and calls the application.

    Attributes:
        response_expected: whether the application has begun a response whose status line is not sent yet.
        is_lingering: whether the connection only waits for a refused client; see ``LINGER_SECONDS``.
        parse_seconds: time spent on parsing bytes of this connection.
    """

    def __init__(self, registry: ConnectionRegistry, create_http: Callable[[], asyncio.Protocol]) -> None:
        self._registry, self._limits, self._state = registry, registry.limits, registry.state
        self._create_http = create_http
        self._http: asyncio.Protocol | None = None
        self._is_open = False
        self._num_active = self._discarded_bytes = 0
        self._received = bytearray()
        self._http_reads = True
        self.response_expected = self.is_lingering = False
        self.parse_seconds = 0.0
        self._last_use = time.monotonic()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Accepts the connection, or refuses it with 503."""
        self._transport = cast(asyncio.Transport, transport)
        self._address = (*transport.get_extra_info("sockname")[:2], *transport.get_extra_info("peername")[:2])
        self._registry.by_address[self._address] = self
        self._send_deadline, self._read_deadline = _Deadline(self._transport), _Deadline(self._transport)
        if self._state.open_connections >= self._limits.max_connections:
            self.refuse(503, "Too many connections. Try again later.", "Retry-After: 1")
            return
        self._is_open = True
        self._state.open_connections += 1
        self._http = self._create_http()
        self._http.connection_made(cast(asyncio.Transport, _WatchedTransport(self._transport, self)))
        self._send_deadline.start(self._limits.header_timeout)

    def connection_lost(self, exc: Exception | None) -> None:
        """Removes the connection from the counters."""
        self._end_http(exc)
        self._send_deadline.cancel()
        self._read_deadline.cancel()
        self._registry.by_address.pop(self._address, None)
        self._registry.parse_queue.discard(self)
        self._state.lingering_connections -= self.is_lingering
        self._state.open_connections -= self._is_open

    def data_received(self, data: bytes) -> None:
        """Passes bytes on, or discards them while the connection lingers."""
        self._last_use = time.monotonic()
        if self.is_lingering:
            self._discarded_bytes += len(data)
            if self._discarded_bytes > MAX_DISCARDED_BODIES * self._limits.max_body_bytes:
                self._transport.abort()
            self._read_deadline.start(LINGER_SECONDS)
        elif self._http is not None:
            if not self._num_active and not self._send_deadline.is_running:
                self._send_deadline.start(self._limits.header_timeout)
            self._received += data
            self._registry.parse_queue.add(self)
            if self._received:
                self._transport.pause_reading()

    def parse_slice(self) -> bool:
        """Passes the next bytes to the HTTP protocol; False if there are no more."""
        data = bytes(self._received[:SLICE_BYTES])
        del self._received[:SLICE_BYTES]
        if self._http is not None:
            try:
                self._http.data_received(data)
            except LocalProtocolError:  # invalid HTTP in a request body whose response has begun
                self._linger()
        if self.is_lingering:
            self._received.clear()
        if not self._received:
            self._apply_reading()
        return bool(self._received)

    def set_http_reading(self, reads: bool) -> None:
        """Flow control of the HTTP protocol; reading also pauses while received bytes wait to be parsed."""
        self._http_reads = reads
        self._apply_reading()

    def _apply_reading(self) -> None:
        if self._transport.is_closing():
            return
        if self.is_lingering or (self._http_reads and not self._received):
            self._transport.resume_reading()
        else:
            self._transport.pause_reading()

    def eof_received(self) -> None:
        """The client has closed its sending side: the transport closes."""
        if self._http is not None:
            self._http.eof_received()

    def pause_writing(self) -> None:
        """The client does not read its response: it must begin to within ``response_timeout``."""
        self._read_deadline.start(self._limits.response_timeout)
        if self._http is not None:
            self._http.pause_writing()

    def resume_writing(self) -> None:
        """The client reads again."""
        if not self._transport.is_closing():
            self._read_deadline.cancel()
        if self._http is not None:
            self._http.resume_writing()

    def request_started(self) -> None:
        """The headers of a request have arrived."""
        self._num_active += 1
        if not self.is_lingering:
            self._send_deadline.cancel()

    def request_ended(self) -> None:
        """The application has returned."""
        self._num_active -= 1
        self._last_use = time.monotonic()

    def in_use(self, seconds: float) -> bool:
        """Whether it is open, and bytes wait to be parsed, or it was opened, sent to or answered that recently."""
        if self._transport.is_closing():
            return False
        return bool(self._received) or time.monotonic() - self._last_use < seconds

    def refuse(self, status: int, reason: str, *headers: str) -> None:
        """Sends an error response without the application, then lingers."""
        self._transport.write(_error_response(status, reason, headers))
        self._linger()

    def close(self) -> None:
        """Closes the connection as soon as its response is sent; drops the rest after ``keep_alive_timeout``."""
        if not self.is_lingering and not self._transport.is_closing():
            self._send_deadline.cancel()
            self._read_deadline.start(self._limits.keep_alive_timeout)
            self._transport.close()

    def abort_if_lingering(self) -> None:
        """Closes the connection at once if it only waits for a refused client."""
        if self.is_lingering:
            self._transport.abort()

    def _linger(self) -> None:
        """Discards what arrives until the client has sent everything. At most ``max_connections`` may do so."""
        asyncio.get_running_loop().call_soon(self._end_http, None)  # it may be on the call stack
        if self._state.lingering_connections >= self._limits.max_connections:
            self._transport.close()
            self._read_deadline.start(1.0)
            return
        self.is_lingering = True
        self._state.lingering_connections += 1
        self._transport.write_eof()
        self._apply_reading()
        self._read_deadline.start(LINGER_SECONDS)
        self._send_deadline.start(self._limits.body_timeout)

    def _end_http(self, exc: Exception | None) -> None:
        """Notifies the HTTP protocol, and thereby the application, that the connection is lost."""
        http, self._http = self._http, None
        if http is not None:
            http.connection_lost(exc)


@final
class _WatchedTransport:
    """The transport that the HTTP protocol sees: its error responses and ``close`` go through the connection."""

    def __init__(self, transport: asyncio.Transport, connection: BoundedConnection) -> None:
        self._transport, self._connection = transport, connection

    def __getattr__(self, name: str) -> Any:
        return getattr(self._transport, name)

    def write(self, data: bytes) -> None:
        """Sends bytes. A status line that the application has not asked for is an error of the HTTP protocol."""
        connection = self._connection
        if connection.is_lingering or self._transport.is_closing():
            return
        if data.startswith(b"HTTP/1.1 ") and not data.startswith(b"HTTP/1.1 1"):  # 100 Continue is no response
            if not connection.response_expected:
                connection.refuse(int(data[9:12]), "Invalid HTTP request.")
                return
            connection.response_expected = False
        self._transport.write(data)

    def pause_reading(self) -> None:
        self._connection.set_http_reading(False)

    def resume_reading(self) -> None:
        self._connection.set_http_reading(True)

    def close(self) -> None:
        self._connection.close()


@final
class _Deadline:
    """Timer that aborts a connection."""

    def __init__(self, transport: asyncio.Transport) -> None:
        self._transport = transport
        self._handle: asyncio.TimerHandle | None = None

    @property
    def is_running(self) -> bool:
        return self._handle is not None

    def start(self, seconds: float) -> None:
        """Starts the timer, or starts it again."""
        self.cancel()
        self._handle = asyncio.get_running_loop().call_later(seconds, self._transport.abort)

    def cancel(self) -> None:
        if self._handle is not None:
            self._handle.cancel()
            self._handle = None


def _error_response(status: int, reason: str, headers: Sequence[str]) -> bytes:
    """A complete HTTP response, for requests that do not reach the application."""
    body = json.dumps(error_document(status, reason)).encode()
    lines = [f"HTTP/1.1 {status} {HTTPStatus(status).phrase}", "Content-Type: application/json"]
    lines += [f"Content-Length: {len(body)}", *headers, "Connection: close", "", ""]
    return "\r\n".join(lines).encode() + body
