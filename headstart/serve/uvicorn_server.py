"""Everything about uvicorn: the listening socket, the server with its connection limits, signals and its log.

Of uvicorn's undocumented names this module uses ``Server.capture_signals``, ``Server.servers`` and
``protocols.http.h11_impl.H11Protocol``. tests/serve/test_uvicorn_server.py checks them, and pyproject.toml caps the
version.
"""

from __future__ import annotations

import asyncio
import ctypes
import logging
import socket
import struct
import sys
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any, Final, cast, final

import uvicorn
from starlette.types import ASGIApp
from uvicorn.protocols.http.h11_impl import H11Protocol

from headstart.serve.connections import BoundedConnection, ConnectionMiddleware, ConnectionRegistry
from headstart.serve.limits import ServerLimits
from headstart.serve.middleware import ServerState

FINAL_READ_TIMEOUT: Final = 5
"""Seconds for clients to read their last response when the server stops."""

SETTLE_ITERATIONS: Final = 5
"""Event loop iterations until everything that clients have sent is counted as an active request: accept a connection,
add its reader, read, start the request, count it."""

SO_ATTACH_FILTER: Final = 26
"""Socket option of Linux, missing in the module ``socket``."""

DROP_SYN: Final = b"".join(
    struct.pack("HBBI", *instruction)
    for instruction in (
        (0x30, 0, 0, 13),  # load the byte of the TCP header with the flags
        (0x54, 0, 0, 0x12),  # keep SYN and ACK
        (0x15, 0, 1, 0x02),  # SYN without ACK: a new connection
        (0x06, 0, 0, 0),  # drop the packet
        (0x06, 0, 0, 0xFFFFFFFF),  # keep all of it
    )
)
"""Packet filter (classic BPF) that drops the first packet of a connection only."""

HANDSHAKE_SECONDS: Final = 0.25
"""Time for connections whose first packet has arrived to be established; less than a client waits before it sends its
first packet again (1 s)."""


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

    async def stop_listening(self) -> None:
        """Accepts the connections that clients have opened so far, then no more; open ones stay open.

        The system resets connections that are established but not accepted when their listening socket closes.
        """
        servers = getattr(self, "servers", [])  # missing if the server did not start
        listeners = [listener for server in servers for listener in server.sockets]
        are_ignored = [ignore_new_clients(listener) for listener in listeners]
        if any(are_ignored):
            await asyncio.sleep(HANDSHAKE_SECONDS)
        await settle()
        for server in servers:
            server.close()


async def settle() -> None:
    """Returns as soon as everything that clients have sent is counted as an active request."""
    for _ in range(SETTLE_ITERATIONS):
        await asyncio.sleep(0)


def ignore_new_clients(listener: Any) -> bool:
    """Lets new clients wait; their next attempt, one second later, is refused if the socket is closed by then.

    Connections that have begun are established and can be accepted.

    Args:
        listener: a listening socket.

    Returns:
        Whether the system can do so: Linux only.
    """
    if sys.platform != "linux":
        return False
    program = ctypes.create_string_buffer(DROP_SYN, len(DROP_SYN))
    option = struct.pack("HP", len(DROP_SYN) // struct.calcsize("HBBI"), ctypes.addressof(program))
    try:
        listener.setsockopt(socket.SOL_SOCKET, SO_ATTACH_FILTER, option)
    except OSError:  # a sandbox without packet filters
        return False
    return True


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
def quiet_uvicorn() -> Iterator[None]:
    """Silences uvicorn's log while the block runs."""
    logger = logging.getLogger("uvicorn")
    before = logger.level
    logger.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        logger.setLevel(before)
