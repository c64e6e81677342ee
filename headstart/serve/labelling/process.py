"""Server of a labelling session on this machine: application, port, start and orderly end."""

from __future__ import annotations

import asyncio
import os
import socket
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Final

from fastapi import FastAPI

from headstart.errors import DataError, HeadstartError, OptionError
from headstart.labelling.session import LabellingSession
from headstart.progress import Progress, SilentProgress
from headstart.serve.access import AccessPolicy
from headstart.serve.app import add_error_handlers
from headstart.serve.corrections import Correction, Corrections
from headstart.serve.labelling.backend import LabellingBackend
from headstart.serve.labelling.routes import label_router
from headstart.serve.limits import ServerLimits
from headstart.serve.listener import address, listen, stop_signals
from headstart.serve.middleware import RequestMiddleware, ServerState
from headstart.serve.prometheus import Metrics
from headstart.serve.request_log import write_json_line
from headstart.serve.static_files import SecurityHeadersMiddleware, asset_router
from headstart.serve.uvicorn_server import bounded_server, quiet_uvicorn
from headstart.serve.watch.process import open_in_browser
from headstart.serve.watch.views import watch_router

HOST: Final = "127.0.0.1"
POLL_SECONDS: Final = 0.1

CORRECTIONS_SECONDS: Final = 2.0
"""Seconds between two looks at a folder of corrections."""

LIMITS: Final = ServerLimits(header_timeout=60.0, keep_alive_timeout=60.0)
"""Patient: the pass over the images may take all processors, and a connection that is closed loses an action."""


def labelling_app(backend: LabellingBackend, state: ServerState) -> FastAPI:
    """The ASGI application of the labelling page.

    Args:
        backend: the session, its training and trial.
        state: counters to update; event streams end when it is draining.
    """
    app = FastAPI(openapi_url=None, docs_url=None, redoc_url=None, redirect_slashes=False)
    app.include_router(label_router(backend, is_stopping=lambda: state.draining))
    app.include_router(watch_router(backend.reader, is_stopping=lambda: state.draining))
    app.include_router(asset_router())
    add_error_handlers(app)
    app.add_middleware(
        RequestMiddleware,
        limits=LIMITS,
        admission=AccessPolicy(),
        state=state,
        metrics=Metrics(),
        log=_log_faults,
    )
    app.add_middleware(SecurityHeadersMiddleware)
    return app


def _log_faults(entry: dict[str, Any]) -> None:
    """Logs unexpected errors, and no requests."""
    if "error" in entry:
        write_json_line(entry)


def label(
    source: str | os.PathLike[str],
    *,
    labels: str | os.PathLike[str] | None = None,
    corrections: str | os.PathLike[str] | None = None,
    port: int = 0,
    backbone: str = "auto",
    multi_label: bool = False,
    seed: int = 0,
    device: str = "auto",
    cache: str | os.PathLike[str] | None = None,
    train_options: Sequence[str] = (),
    open_browser: bool = True,
    progress: Progress | None = None,
    stop: threading.Event | None = None,
) -> Path:
    """Labels images on a page in the browser, with a classifier that is updated after each action.

    The page is served on 127.0.0.1 only, and no image leaves this machine. Labels are written to a table after every
    action; images are never changed. Serves until SIGTERM or SIGINT, or until ``stop`` is set.

    Args:
        source: images: a folder, a table, an archive, a pattern or a URL.
        labels: the labels table; default: NAME-labels.csv beside the folder or archive.
        corrections: folder of corrected images, as written by ``serve``; they are added to the session with their
            labels, also those that ``serve`` writes while the session is open.
        port: port on this machine; 0 for any free port.
        backbone: architecture for the features; "auto" chooses the default of ``train``.
        multi_label: whether an image may have any number of labels.
        seed: seed of the random sample that measures the accuracy.
        device: see ``device.resolve_device``.
        cache: folder for cached features; default: the cache of Headstart.
        train_options: options of ``headstart train`` for the button of the page.
        open_browser: whether to open the page in the browser.
        progress: receives the address of the page.
        stop: ends the session when it is set.

    Returns:
        The labels table, which ``train`` accepts.

    Raises:
        DataError: there is no such source, or it has no image.
        LabelError: another process labels the same images, or their journal is damaged.
        OptionError: an option is not valid, or this thread has a running event loop.
        ServerError: the port is in use.

    Examples:
        >>> import headstart as hs
        >>> hs.label("photographs/")  # doctest: +SKIP
        PosixPath('photographs-labels.csv')
    """
    _require_no_event_loop()
    progress = progress or SilentProgress()
    listener = listen(HOST, port, options="--port")
    session = LabellingSession.open(
        source,
        labels=None if labels is None else Path(labels),
        backbone=backbone,
        multi_label=multi_label,
        seed=seed,
        device=device,
        cache=None if cache is None else Path(cache),
    )
    backend = LabellingBackend(session, train_options, device)
    session.served_at(address(listener))
    session.start()
    ended = threading.Event()
    if corrections is not None:
        given = (session, Path(corrections), progress, ended)
        threading.Thread(target=follow_corrections, args=given, daemon=True).start()
    try:
        _serve_until_stopped(backend, listener, progress, stop, open_browser=open_browser)
    finally:
        ended.set()
    return backend.labels_file


def _serve_until_stopped(
    backend: LabellingBackend,
    listener: socket.socket,
    progress: Progress,
    stop: threading.Event | None,
    *,
    open_browser: bool,
) -> None:
    """Serves the page, then closes the session and says where the labels are."""
    where, table = address(listener), backend.labels_file

    def ready() -> None:
        progress.say(f"Label the images at {where}. Labels: {table}. Stop with Ctrl-C.")
        if open_browser:
            open_in_browser(where)

    try:
        with listener:
            _serve(backend, listener, ready, stop)
        if (failure := backend.session.failure) is not None:
            raise DataError(failure)
    finally:
        stopped = backend.close()
        if stopped is not None:
            progress.say(f"The training was stopped. To continue it: headstart train --resume {stopped}")
    progress.say(f"Labels: {table}")


def _require_no_event_loop() -> None:
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return
    raise OptionError("label() cannot run in a thread with a running event loop. Call it in another thread.")


def follow_corrections(
    session: LabellingSession,
    folder: Path,
    progress: Progress,
    stop: threading.Event,
    seconds: float = CORRECTIONS_SECONDS,
) -> None:
    """Adds the images of a corrections folder with their labels, and those that ``serve`` stores there meanwhile.

    Args:
        session: started; nothing is added before the images of its source are known.
        folder: of ``headstart.serve.corrections.Corrections``; it may be created later.
        progress: receives a message about each image that cannot be added.
        stop: ends the loop.
        seconds: between two looks at the folder.
    """
    corrections, taken = Corrections(folder), set[Correction]()
    if not session.wait_ready():
        return
    while not stop.is_set():
        for correction in reversed(corrections.all()):
            if correction not in taken:
                taken.add(correction)
                try:
                    session.add_file(correction.file, correction.label, "import")
                except HeadstartError as error:
                    progress.say(f"{correction.file}: not added ({error})")
        stop.wait(seconds)


def _serve(
    backend: LabellingBackend, listener: socket.socket, ready: Callable[[], None], stop: threading.Event | None
) -> None:
    """Serves until a signal arrives, ``stop`` is set, or it is known that there is no image."""
    state = ServerState()
    server = bounded_server(labelling_app(backend, state), LIMITS, state)

    async def run() -> None:
        serving, is_announced = asyncio.create_task(server.serve(sockets=[listener])), False
        while not serving.done():
            await asyncio.sleep(POLL_SECONDS)
            if server.started and not is_announced:
                is_announced = True
                await asyncio.to_thread(ready)
            if signals or (stop is not None and stop.is_set()) or backend.session.failure is not None:
                state.draining = server.should_exit = True
        await serving

    with stop_signals() as signals, quiet_uvicorn():
        asyncio.run(run())
