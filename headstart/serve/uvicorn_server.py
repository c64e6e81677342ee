"""Everything about uvicorn: the listening socket, the server with its connection limits, signals and its log.

Of uvicorn's undocumented names this module uses ``Server.capture_signals``, ``Server.servers`` and
``protocols.http.h11_impl.H11Protocol``. tests/serve/test_uvicorn_server.py checks them, and pyproject.toml caps the
version.
"""

from __future__ import annotations

import asyncio
import logging
import signal
import socket
import threading
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any, Final, cast, final

import uvicorn
from starlette.types import ASGIApp
from uvicorn.protocols.http.h11_impl import H11Protocol

from headstart.errors import ServerError
from headstart.serve.connections import BoundedConnection, ConnectionMiddleware, ConnectionRegistry
from headstart.serve.limits import ServerLimits
from headstart.serve.middleware import LOOPBACK_HOSTS, ServerState

SIGNALS: Final = (signal.SIGINT, signal.SIGTERM)

FINAL_READ_TIMEOUT: Final = 5
"""Seconds for clients to read their last response when the server stops."""


def listen(host: str, port: int) -> socket.socket:
    """Opens a listening TCP socket.

    Args:
        host: name or address of this machine.
        port: 0 for any free port.

    Raises:
        ServerError: the address is in use, not of this machine or not permitted.
    """
    try:
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
        return socket.create_server((host, port), family=family, backlog=1024)
    except (OSError, OverflowError) as error:
        reason = getattr(error, "strerror", None) or error
        raise ServerError(f"{host}:{port}: cannot listen there ({reason}). Choose another --host or --port.") from error


def is_loopback(host: str) -> bool:
    """Whether a host name or address can be reached from this machine only."""
    return host in LOOPBACK_HOSTS or host.startswith("127.")


def address(listener: socket.socket) -> str:
    """URL of a listening socket."""
    host, port = listener.getsockname()[:2]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


@final
class BoundedServer(uvicorn.Server):
    """uvicorn server with connection limits. It leaves signals to its caller, so that it can run in any thread."""

    def __init__(self, config: uvicorn.Config, registry: ConnectionRegistry) -> None:
        super().__init__(config)
        self.registry = registry

    @contextmanager
    def capture_signals(self) -> Generator[None, None, None]:
        """Installs no signal handlers, unlike the base class."""
        yield

    def stop_listening(self) -> None:
        """Accepts no more connections; open ones stay open."""
        for server in getattr(self, "servers", []):  # missing if the server did not start
            server.close()


def bounded_server(app: ASGIApp, limits: ServerLimits, state: ServerState) -> BoundedServer:
    """A uvicorn server that enforces ``limits``. Requests are logged by ``RequestMiddleware``, not by uvicorn."""
    registry = ConnectionRegistry(limits, state)

    def connection(**options: Any) -> asyncio.Protocol:
        return BoundedConnection(registry, partial(H11Protocol, **options))

    config = uvicorn.Config(
        ConnectionMiddleware(app, registry),
        http=cast(Any, connection),
        ws="none",
        loop="asyncio",
        log_config=None,
        access_log=False,
        server_header=False,
        proxy_headers=False,  # ``ConnectionMiddleware`` needs the address of the peer, not of a forwarded client
        timeout_keep_alive=cast(Any, limits.keep_alive_timeout),
        timeout_graceful_shutdown=FINAL_READ_TIMEOUT,
    )
    return BoundedServer(config, registry)


@contextmanager
def stop_signals() -> Iterator[list[int]]:
    """Collects SIGTERM and SIGINT in a list while the block runs. Outside the main thread Python receives none."""
    received: list[int] = []
    if threading.current_thread() is not threading.main_thread():
        yield received
        return
    before = {handled: signal.signal(handled, lambda number, _frame: received.append(number)) for handled in SIGNALS}
    try:
        yield received
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextmanager
def quiet_uvicorn() -> Iterator[None]:
    """Silences uvicorn's log while the block runs."""
    logger = logging.getLogger("uvicorn")
    before = logger.level
    logger.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        logger.setLevel(before)
