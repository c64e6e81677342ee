"""A server from its first connection to its last answer."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import uvicorn
from starlette.types import ASGIApp

from headstart.backbone.device import resolve_device
from headstart.errors import OptionError, ServerError
from headstart.files import user_path
from headstart.model import load
from headstart.progress import Progress, SilentProgress
from headstart.serve.app import build_app
from headstart.serve.connections import address, bounded_server, is_loopback, listen
from headstart.serve.corrections import Corrections, corrections_folder
from headstart.serve.guard import Admission
from headstart.serve.limits import Limits
from headstart.serve.service import Service

TICK = 0.05
"""Seconds between two looks at whether all is answered."""

SIGNALS = (signal.SIGINT, signal.SIGTERM)


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
) -> None:
    """Answers over HTTP what a model says of pictures, until SIGTERM or SIGINT.

    Args:
        run_or_model: see ``load``.
        host: where it listens.
        port: 0 for any that is free.
        key: that requests must bring; "" for none.
        limits: what it takes on.
        corrections: folder for pictures whose answer was corrected on the page; see ``corrections_folder`` where it is
            not given.
        device: see ``device.resolve_device``.
        progress: told of the engine, of the address once it is ready, and of whom it lets in.

    Raises:
        ModelFileError: the model cannot be read.
        OptionError: a key that no header can hold, or no such device.
        ServerError: it cannot listen there, or the model cannot be run.
    """
    progress = progress or SilentProgress()
    if not all("!" <= c <= "~" for c in key):
        raise OptionError("The key may hold ASCII letters, digits and signs only, and no blanks.")
    resolve_device(device)
    model, local, folder = load(run_or_model), is_loopback(host), user_path(run_or_model)
    run = folder if folder.is_dir() else None
    with listen(host, port) as listener:
        if not local and not key:
            progress.say("Warning: whoever reaches this machine can use the server. Give it a key (HEADSTART_KEY).")
        service = Service(model, run=run, limits=limits, device=device, progress=progress)
        kept = Corrections(user_path(corrections or corrections_folder(folder)), split=folder / "split.csv")
        app = build_app(service, admission=Admission(key, local), corrections=kept)
        words = f"{model!r} is ready at {address(listener)}. Stop it with Ctrl-C."
        run_until_stopped(app, service, listener, ready=lambda: progress.say(words))


def run_until_stopped(
    app: ASGIApp, service: Service, listener: socket.socket, *, ready: Callable[[], None] | None = None
) -> None:
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
        asyncio.run(_run(server_for(app, service), service, listener, ready))
    finally:
        for own, handler in before.items():
            signal.signal(own, handler)
    if service.fault is not None:
        raise ServerError(f"The model cannot be run here ({service.fault}).") from service.fault


def server_for(app: ASGIApp, service: Service) -> uvicorn.Server:
    """See ``bounded_server``."""
    return bounded_server(app, service.limits, service.traffic)


async def _run(
    server: uvicorn.Server, service: Service, listener: socket.socket, ready: Callable[[], None] | None
) -> None:
    serving = asyncio.create_task(server.serve(sockets=[listener]))
    while not server.started and not serving.done():
        await asyncio.sleep(TICK)
    asked = asyncio.Event()
    for own in SIGNALS:
        with suppress(NotImplementedError):  # on Windows uvicorn's own handlers stay: it stops without draining first
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
