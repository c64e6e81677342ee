"""A server from its first connection to its last answer."""

from __future__ import annotations

import asyncio
import os
import socket
import threading
import time
from collections.abc import Callable
from pathlib import Path

from fastapi import FastAPI
from starlette.types import ASGIApp

from headstart.engine.device import resolve_device
from headstart.errors import OptionError, ServerError
from headstart.files import user_path
from headstart.model import load
from headstart.progress import Progress, SilentProgress
from headstart.serve.app import Log, build_app
from headstart.serve.batching import Service
from headstart.serve.corrections import Corrections, corrections_folder
from headstart.serve.http_limits import (
    BoundedServer,
    address,
    bounded_server,
    is_loopback,
    listen,
    quiet_uvicorn,
    stop_signals,
)
from headstart.serve.limits import Limits
from headstart.serve.middleware import Admission, write_line

TICK = 0.05
"""Seconds between two looks at whether the server is to stop, and whether all is answered."""

SETTLE = 5
"""Turns of the event loop after which all that clients had sent before is a request that counts: accept a connection,
begin to read, read, begin the request, count it."""


def create_app(
    run_or_model: str | os.PathLike[str] | None = None,
    *,
    key: str | None = None,
    local: bool = True,
    limits: Limits | None = None,
    corrections: Path | None = None,
    device: str = "auto",
    log: Log | None = write_line,
    progress: Progress | None = None,
) -> FastAPI:
    """The ASGI application of a model: alone under any ASGI server, or mounted in another application.

    The model is loaded here. Its threads start with the application's lifespan or, where that does not run (mounted),
    with the first request; they end with the lifespan, with the process, or with ``app.state.service.close()``. Each
    worker process of a server that forks has threads of its own.

    Args:
        run_or_model: see ``load``; the environment variable HEADSTART_MODEL where it is None.
        key: API key that clients must send; the environment variable HEADSTART_KEY where it is None, "" for none.
        local: without a key, answer only to requests for localhost (against DNS rebinding); False to answer to any.
        limits: bounds of the server.
        corrections: folder for corrected images; see ``corrections_folder`` where it is not given.
        device: see ``device.resolve_device``.
        log: gets an entry for each request; None for no log.
        progress: told of the engine.

    Raises:
        ModelFileError: the model cannot be read.
        OptionError: no model is named, a key that no header can hold, or no such device.

    Example:
        ``HEADSTART_MODEL=runs/flowers uvicorn --factory headstart.serve:create_app``, or

        >>> app.mount("/flowers", headstart.serve.create_app("runs/flowers"))  # doctest: +SKIP
    """
    where = run_or_model or os.environ.get("HEADSTART_MODEL")
    if not where:
        raise OptionError("Name a run folder or a model file, or set HEADSTART_MODEL to one.")
    key = os.environ.get("HEADSTART_KEY", "") if key is None else key
    if not all("!" <= c <= "~" for c in key):
        raise OptionError("The key may hold ASCII letters, digits and signs only, and no blanks.")
    resolve_device(device)
    model, folder = load(where), user_path(where)
    service = Service(model, run=folder if folder.is_dir() else None, limits=limits, device=device, progress=progress)
    kept = Corrections(user_path(corrections or corrections_folder(folder)))
    return build_app(service, admission=Admission(key, local), corrections=kept, log=log)


def serve(
    run_or_model: str | os.PathLike[str],
    *,
    host: str = "127.0.0.1",
    port: int = 8000,
    key: str = "",
    limits: Limits | None = None,
    corrections: Path | None = None,
    device: str = "auto",
    progress: Progress | None = None,
    stop: threading.Event | None = None,
) -> None:
    """Serves a model over HTTP until SIGTERM or SIGINT, or until ``stop`` is set.

    In a thread other than the main one no signal is handled: end it with ``stop``.

    Args:
        run_or_model: see ``load``.
        host: where it listens.
        port: 0 for any that is free.
        key: API key that clients must send; "" for none.
        limits: bounds of the server.
        corrections: folder for corrected images; see ``corrections_folder`` where it is not given.
        device: see ``device.resolve_device``.
        progress: told of the engine, of the address once it is ready, and of whom it lets in.
        stop: ends the server once it is set; requests under way are answered first.

    Raises:
        ModelFileError: the model cannot be read.
        OptionError: a key that no header can hold, no such device, or a running event loop in this thread.
        ServerError: it cannot listen there, or the model cannot be run.
    """
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        pass
    else:
        raise OptionError(
            "serve() cannot run in a thread whose event loop is running. Use `await serve_async(...)` there, or "
            "`create_app(...)` under an ASGI server of your own."
        )
    app = create_app(
        run_or_model,
        key=key,
        local=is_loopback(host),
        limits=limits,
        corrections=corrections,
        device=device,
        progress=progress,
    )
    service: Service = app.state.service
    with listen(host, port) as listener:
        run_until_stopped(
            app, service, listener, ready=_announcement(service, listener, host, key, progress), stop=stop
        )


async def serve_async(
    run_or_model: str | os.PathLike[str],
    *,
    host: str = "127.0.0.1",
    port: int = 8000,
    key: str = "",
    limits: Limits | None = None,
    corrections: Path | None = None,
    device: str = "auto",
    progress: Progress | None = None,
) -> None:
    """``serve`` within a running event loop, until the task is cancelled; it handles no signals.

    Requests under way are answered before the cancellation goes on. Arguments and errors are those of ``serve``.
    """
    app = await asyncio.to_thread(
        create_app,
        run_or_model,
        key=key,
        local=is_loopback(host),
        limits=limits,
        corrections=corrections,
        device=device,
        progress=progress,
    )
    service: Service = app.state.service
    with listen(host, port) as listener, quiet_uvicorn():
        await _run(app, service, listener, _announcement(service, listener, host, key, progress), lambda: 0)
    _raise_fault(service)


def _announcement(
    service: Service, listener: socket.socket, host: str, key: str, progress: Progress | None
) -> Callable[[], None]:
    """Warns of a server without a key, and gives what to call once it is ready."""
    progress = progress or SilentProgress()
    if not is_loopback(host) and not key:
        progress.say("Warning: whoever reaches this machine can use the server. Give it a key (HEADSTART_KEY).")
    words = f"{service.model!r} is ready at {address(listener)}. Stop it with Ctrl-C."
    return lambda: progress.say(words)


def run_until_stopped(
    app: ASGIApp,
    service: Service,
    listener: socket.socket,
    *,
    ready: Callable[[], None] | None = None,
    stop: threading.Event | None = None,
) -> None:
    """Serves until SIGTERM or SIGINT, answers what has been accepted, and returns.

    Meanwhile ``/readyz`` says 503, and so do new requests. A second signal ends it at once. In another thread than the
    main one no signal is handled.

    Args:
        app: see ``build_app``.
        service: that answers in it.
        listener: see ``listen``.
        ready: called once the first request can be answered.
        stop: ends it as a signal does.

    Raises:
        ServerError: the engine cannot be started.
    """
    with stop_signals() as signals, quiet_uvicorn():
        asyncio.run(_run(app, service, listener, ready, lambda: len(signals) + (stop is not None and stop.is_set())))
    _raise_fault(service)


def _raise_fault(service: Service) -> None:
    if service.fault is not None:
        raise ServerError(f"The model cannot be run here ({service.fault}).") from service.fault


def server_for(app: ASGIApp, service: Service) -> BoundedServer:
    """See ``bounded_server``."""
    return bounded_server(app, service.limits, service.traffic)


async def _run(
    app: ASGIApp,
    service: Service,
    listener: socket.socket,
    ready: Callable[[], None] | None,
    asked: Callable[[], int],
) -> None:
    """Serves until ``asked`` is not 0 any more, or until the task is cancelled, and answers what is under way."""
    server = server_for(app, service)
    serving = asyncio.create_task(server.serve(sockets=[listener]))
    cancelled: asyncio.CancelledError | None = None
    try:
        while not asked() and service.fault is None and not serving.done():
            await asyncio.sleep(TICK)
            if ready is not None and service.ready and server.started:
                ready()
                ready = None
    except asyncio.CancelledError as error:
        cancelled = error
    try:
        await _drain(server, service, asked)
    except asyncio.CancelledError as error:
        cancelled, server.force_exit = error, True
    server.should_exit = True
    await serving
    if cancelled is not None:
        raise cancelled


async def _drain(server: BoundedServer, service: Service, asked: Callable[[], int]) -> None:
    """Answers every request that has been sent, then takes no more connections; a second signal ends it at once."""
    traffic = service.traffic
    until = time.monotonic() + service.limits.drain_seconds

    async def answered() -> None:
        for _ in range(SETTLE):
            await asyncio.sleep(0)
        traffic.draining = True
        while traffic.under_way and time.monotonic() < until and not server.force_exit:
            server.force_exit = asked() > 1
            await asyncio.sleep(TICK)

    await answered()
    for own in getattr(server, "servers", []):  # none where it could not start
        own.close()
    await answered()  # what came with the last connections
