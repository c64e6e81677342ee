"""A server from its first connection to its last answer."""

from __future__ import annotations

import asyncio
import logging
import signal
import socket
import time
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any, cast

import uvicorn
from starlette.types import ASGIApp

from headstart.errors import ServerError
from headstart.serve.connections import BoundedConnection
from headstart.serve.guard import LOOPBACK
from headstart.serve.limits import Limits

if TYPE_CHECKING:  # it brings torch with it, and a run is watched without
    from headstart.serve.service import Service

TICK = 0.05
"""Seconds between two looks at whether all is answered."""

LAST_WORDS = 5
"""Seconds that connections get to take their last answer."""

SIGNALS = (signal.SIGINT, signal.SIGTERM)


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


def run(app: ASGIApp, service: Service, listener: socket.socket, *, ready: Callable[[], None] | None = None) -> None:
    """Serves until SIGTERM or SIGINT, finishes what is under way, and returns.

    Meanwhile ``/readyz`` says 503, and so do new requests. A second signal ends it at once.

    Args:
        app: see ``build_app``.
        service: that answers in it.
        listener: see ``listen``.
        ready: called once the first request can be answered.

    Raises:
        ServerError: the engine cannot be started.
    """
    before = {own: signal.signal(own, lambda *_: None) for own in SIGNALS}  # uvicorn raises them once more at its end
    try:
        asyncio.run(_run(server_for(app, service.limits), service, listener, ready))
    finally:
        for own, handler in before.items():
            signal.signal(own, handler)
    if service.fault is not None:
        raise ServerError(f"The model cannot be run here ({service.fault}).") from service.fault


def server_for(app: ASGIApp, limits: Limits) -> uvicorn.Server:
    """A uvicorn within bounds, and silent: requests are logged by ``Guard``."""
    logging.getLogger("uvicorn").setLevel(logging.CRITICAL)
    config = uvicorn.Config(
        app,
        http=cast(Any, partial(BoundedConnection, limits)),
        ws="none",
        loop="asyncio",
        log_config=None,
        access_log=False,
        server_header=False,
        timeout_keep_alive=cast(Any, limits.idle_seconds),
        timeout_graceful_shutdown=LAST_WORDS,
    )
    return uvicorn.Server(config)


async def _run(
    server: uvicorn.Server, service: Service, listener: socket.socket, ready: Callable[[], None] | None
) -> None:
    serving = asyncio.create_task(server.serve(sockets=[listener]))
    while not server.started and not serving.done():
        await asyncio.sleep(TICK)
    asked = asyncio.Event()
    for own in SIGNALS:
        asyncio.get_running_loop().add_signal_handler(own, _stop, server, asked)
    while not asked.is_set() and service.fault is None and not serving.done():
        await asyncio.sleep(TICK)
        if ready is not None and service.ready:
            ready()
            ready = None
    service.traffic.draining = True
    until = time.monotonic() + service.limits.drain_seconds
    while service.traffic.under_way and time.monotonic() < until and not server.should_exit:
        await asyncio.sleep(TICK)
    server.should_exit = True
    await serving


def _stop(server: uvicorn.Server, asked: asyncio.Event) -> None:
    if asked.is_set():
        server.should_exit = server.force_exit = True
    asked.set()
