"""Connections within bounds: how many, how long until a request's head is there, how long nobody reads."""

from __future__ import annotations

import asyncio
import json
from typing import Any

from uvicorn.protocols.http.h11_impl import H11Protocol

from headstart.serve.limits import Limits
from headstart.serve.problem import problem_document


class BoundedConnection(H11Protocol):
    """uvicorn's HTTP/1.1, which by itself lets a silent connection stay for ever.

    Args:
        limits: of connections.
        **options: as uvicorn gives them.
    """

    def __init__(self, limits: Limits, **options: Any) -> None:
        super().__init__(**options)
        self._limits = limits
        self._timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Takes a connection, or says that there are too many."""
        if len(self.connections) >= self._limits.connections:
            self.transport = transport
            transport.write(_raw(503, "Too many connections. Try again later.", ["Retry-After: 1"]))
            transport.close()
            self.loop.call_later(1.0, transport.abort)
            return
        super().connection_made(transport)
        self._watch()

    def connection_lost(self, exc: Exception | None) -> None:
        """Forgets it."""
        self._stop()
        if self in self.connections:
            super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Takes bytes."""
        if self in self.connections:
            super().data_received(data)
            self._watch()

    def on_response_complete(self) -> None:
        """Waits for the next request, or for the client to read the last answer."""
        super().on_response_complete()
        if self.transport.is_closing():
            self._start(self._limits.idle_seconds)
        else:
            self._watch()

    def pause_writing(self) -> None:
        """The client does not read."""
        super().pause_writing()
        self._start(self._limits.request_seconds)

    def resume_writing(self) -> None:
        """The client reads again."""
        super().resume_writing()
        self._stop()

    def timeout_keep_alive_handler(self) -> None:
        """Nothing came for a while."""
        self.transport.abort()

    def send_400_response(self, msg: str) -> None:
        """What came is no HTTP."""
        self.transport.write(_raw(400, msg, []))
        self.transport.close()
        self._start(1.0)

    def _watch(self) -> None:
        """Whoever has begun a request must bring its head in time."""
        asked = self.cycle is not None and not self.cycle.response_complete
        if asked:
            self._stop()
        elif self._timer is None and self.timeout_keep_alive_task is None and not self.transport.is_closing():
            self._start(self._limits.head_seconds)

    def _start(self, seconds: float) -> None:
        self._stop()
        self._timer = self.loop.call_later(seconds, self.transport.abort)

    def _stop(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None


def _raw(status: int, reason: str, headers: list[str]) -> bytes:
    """A whole response, for whom there is no application yet."""
    body = json.dumps(problem_document(status, reason)).encode()
    lines = [f"HTTP/1.1 {status} Refused", "Content-Type: application/json", f"Content-Length: {len(body)}"]
    return "\r\n".join([*lines, *headers, "Connection: close", "", ""]).encode() + body
