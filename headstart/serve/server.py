"""Server life cycle: startup, signals and graceful shutdown."""

from __future__ import annotations

import asyncio
import os
import socket
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Final

from fastapi import FastAPI
from starlette.types import ASGIApp

from headstart.engine.device import resolve_device
from headstart.errors import OptionError, ServerError
from headstart.files import user_path
from headstart.loading import load_onnx
from headstart.model import load
from headstart.progress import Progress, SilentProgress
from headstart.runtime.onnx_model import is_onnx
from headstart.runtime.server import serve as serve_onnx
from headstart.serve.access import AccessPolicy, check_key
from headstart.serve.app import Log, build_app
from headstart.serve.batching import InferenceService
from headstart.serve.corrections import Corrections, corrections_folder
from headstart.serve.limits import ServerLimits
from headstart.serve.listener import address, is_loopback, listen, stop_signals
from headstart.serve.request_log import write_json_line
from headstart.serve.uvicorn_server import BoundedServer, bounded_server, quiet_uvicorn, settle

POLL_SECONDS: Final = 0.05
"""Seconds between two checks whether the server should stop and whether all requests are answered."""

QUIET_SECONDS: Final = 1.0
"""A connection without a request is closed after it was unused for this long when the server stops: a client that has
just connected or read a response is about to send its request, which a closed connection would reset."""


def create_app(
    run_or_model: str | os.PathLike[str] | None = None,
    *,
    key: str | None = None,
    local: bool = True,
    limits: ServerLimits | None = None,
    corrections: Path | None = None,
    device: str = "auto",
    log: Log | None = write_json_line,
    progress: Progress | None = None,
) -> FastAPI:
    """Creates the ASGI application of a model, for any ASGI server or to mount in another application.

    The model is loaded at once. Its threads start with the application's lifespan, or with the first request if the
    lifespan does not run (mounted). They end with the lifespan, with the process, or with
    ``app.state.service.close()``. Worker processes share no threads.

    Args:
        run_or_model: see ``load``; default: the environment variable HEADSTART_MODEL.
        key: API key that clients must send; "" for none; default: the environment variable HEADSTART_KEY.
        local: without a key, answer only requests for localhost (protects against DNS rebinding).
        limits: limits of the server.
        corrections: folder for corrected images; default: NAME-corrections next to the run or model.
        device: see ``device.resolve_device``.
        log: called with one entry per request; None for no log.
        progress: reports which engine was chosen.

    Returns:
        A FastAPI application.

    Raises:
        ModelFileError: the model cannot be read.
        OptionError: no model was given, the key has characters that a header cannot contain, or the device is unknown.

    Examples:
        ``HEADSTART_MODEL=runs/flowers uvicorn --factory headstart.serve:create_app``, or mounted:

        >>> from fastapi import FastAPI
        >>> from headstart.serve import create_app
        >>> app = FastAPI()
        >>> app.mount("/flowers", create_app("runs/flowers"))
    """
    where = run_or_model or os.environ.get("HEADSTART_MODEL")
    if not where:
        raise OptionError("No model: pass a run folder or a model file, or set HEADSTART_MODEL to its path.")
    key = os.environ.get("HEADSTART_KEY", "") if key is None else key
    check_key(key)
    resolve_device(device)
    model, folder = load(where), user_path(where)
    service = InferenceService(
        model, run=folder if folder.is_dir() else None, limits=limits, device=device, progress=progress
    )
    stored = Corrections(user_path(corrections or corrections_folder(folder)))
    return build_app(service, admission=AccessPolicy(key, local), corrections=stored, log=log)


def serve(
    run_or_model: str | os.PathLike[str],
    *,
    host: str = "127.0.0.1",
    port: int = 8000,
    key: str = "",
    limits: ServerLimits | None = None,
    corrections: Path | None = None,
    device: str = "auto",
    progress: Progress | None = None,
    stop: threading.Event | None = None,
) -> None:
    """Serves a model over HTTP until SIGTERM or SIGINT, or until ``stop`` is set.

    Outside the main thread it handles no signals: use ``stop``.

    Args:
        run_or_model: see ``load``; or an exported ONNX file, for the server of ``runtime.server``.
        host: name or address to listen on.
        port: 0 for any free port.
        key: API key that clients must send; "" for none.
        limits: limits of the server.
        corrections: folder for corrected images; default: NAME-corrections next to the run or model.
        device: see ``device.resolve_device``.
        progress: reports the engine, the URL as soon as the server is ready, and a warning if it is open without a key.
        stop: stops the server when it is set; active requests are answered first.

    Raises:
        ModelFileError: the model cannot be read.
        OptionError: the key has characters that a header cannot contain, the device is unknown, or this thread has a
            running event loop.
        ServerError: the address cannot be used, or the model cannot be run.

    Examples:
        >>> from headstart.serve import serve
        >>> serve("runs/flowers", port=8000)  # doctest: +SKIP
    """
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        pass
    else:
        raise OptionError(
            "serve() cannot run in a thread with a running event loop. Use `await serve_async(...)`, or "
            "`create_app(...)` with another ASGI server."
        )
    if is_onnx(run_or_model):
        if corrections is not None or device not in ("auto", "cpu"):
            raise OptionError("corrections and device: not for an ONNX file, which runs on the CPU and has no page.")
        say = (progress or SilentProgress()).say
        serve_onnx(load_onnx(run_or_model), host=host, port=port, key=key, limits=limits, say=say, stop=stop)
        return
    app, service = _application(run_or_model, host, key, limits, corrections, device, progress)
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
    limits: ServerLimits | None = None,
    corrections: Path | None = None,
    device: str = "auto",
    progress: Progress | None = None,
) -> None:
    """``serve`` for a running event loop: serves until its task is cancelled, and handles no signals.

    Active requests are answered before the cancellation takes effect. Arguments and errors: see ``serve``.
    """
    app, service = await asyncio.to_thread(_application, run_or_model, host, key, limits, corrections, device, progress)
    with listen(host, port) as listener, quiet_uvicorn():
        await _run(app, service, listener, _announcement(service, listener, host, key, progress), lambda: 0)
    _raise_startup_error(service)


def _application(
    run_or_model: str | os.PathLike[str],
    host: str,
    key: str,
    limits: ServerLimits | None,
    corrections: Path | None,
    device: str,
    progress: Progress | None,
) -> tuple[FastAPI, InferenceService]:
    """The application that listens on an address, and its service."""
    app = create_app(
        run_or_model,
        key=key,
        local=is_loopback(host),
        limits=limits,
        corrections=corrections,
        device=device,
        progress=progress,
    )
    return app, app.state.service


def _announcement(
    service: InferenceService, listener: socket.socket, host: str, key: str, progress: Progress | None
) -> Callable[[], None]:
    """Warns if the server is open without a key, and returns the function to call when it is ready."""
    progress = progress or SilentProgress()
    if not is_loopback(host) and not key:
        progress.say("Warning: anybody who can reach this machine can use the server. Set a key (HEADSTART_KEY).")
    words = f"{service.model!r} is ready at {address(listener)}. Stop it with Ctrl-C."
    return lambda: progress.say(words)


def run_until_stopped(
    app: ASGIApp,
    service: InferenceService,
    listener: socket.socket,
    *,
    ready: Callable[[], None] | None = None,
    stop: threading.Event | None = None,
) -> None:
    """Serves until SIGTERM or SIGINT, answers the active requests, and returns.

    While it stops, new requests and ``/readyz`` are answered with 503. A second signal stops it at once. Outside the
    main thread it handles no signals.

    Args:
        app: see ``build_app``.
        service: the model of the application.
        listener: see ``listen``.
        ready: called as soon as requests can be answered.
        stop: stops it as a signal does.

    Raises:
        ServerError: the engine cannot be started.
    """
    with stop_signals() as signals, quiet_uvicorn():
        asyncio.run(_run(app, service, listener, ready, lambda: len(signals) + (stop is not None and stop.is_set())))
    _raise_startup_error(service)


def _raise_startup_error(service: InferenceService) -> None:
    if service.startup_error is not None:
        raise ServerError(f"The model cannot be run ({service.startup_error}).") from service.startup_error


def server_for(app: ASGIApp, service: InferenceService) -> BoundedServer:
    """See ``bounded_server``."""
    return bounded_server(app, service.limits, service.state)


async def _run(
    app: ASGIApp,
    service: InferenceService,
    listener: socket.socket,
    ready: Callable[[], None] | None,
    num_stop_requests: Callable[[], int],
) -> None:
    """Serves until a stop is requested or the task is cancelled, and answers the active requests."""
    server = server_for(app, service)
    serving = asyncio.create_task(server.serve(sockets=[listener]))
    cancelled: asyncio.CancelledError | None = None
    try:
        while not num_stop_requests() and service.startup_error is None and not serving.done():
            await asyncio.sleep(POLL_SECONDS)
            if ready is not None and service.ready and server.started:
                ready()
                ready = None
    except asyncio.CancelledError as error:
        cancelled = error
    try:
        await _drain(server, service, num_stop_requests)
    except asyncio.CancelledError as error:
        cancelled, server.force_exit = error, True
    server.should_exit = True
    await serving
    if cancelled is not None:
        raise cancelled


async def _drain(server: BoundedServer, service: InferenceService, num_stop_requests: Callable[[], int]) -> None:
    """Answers all requests that have been sent, then closes the listener; a second signal ends it at once."""
    state, registry = service.state, server.registry
    until = time.monotonic() + service.limits.drain_timeout

    async def wait_while(busy: Callable[[], object]) -> None:
        while busy() and time.monotonic() < until and not server.force_exit:
            server.force_exit = num_stop_requests() > 1
            await asyncio.sleep(POLL_SECONDS)

    await settle()
    state.draining = True
    await wait_while(lambda: state.active_requests)
    await server.stop_listening()
    await wait_while(lambda: state.active_requests or registry.in_use(QUIET_SECONDS))
    registry.close_lingering()
