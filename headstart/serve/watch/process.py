"""Watching a run from a process of its own: a training is neither slowed nor stopped by who looks at it."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import subprocess
import sys
import threading
import time
import webbrowser
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, final

from fastapi import FastAPI
from fastapi.responses import RedirectResponse, Response
from starlette.types import ASGIApp, Receive, Scope, Send

from headstart.errors import RunError, ServerError
from headstart.serve.http_limits import address, bounded_server, listen, quiet_uvicorn, stop_signals
from headstart.serve.limits import Limits
from headstart.serve.middleware import Admission, Guard, Traffic
from headstart.serve.prometheus import Metrics
from headstart.serve.static_files import PageHeaders, asset_router
from headstart.serve.watch.run_reader import Watched
from headstart.serve.watch.views import watch_router

HOST = "127.0.0.1"

STARTED_WITHIN = 30.0
"""Seconds that the process of the view gets to say where it is."""

TELL_WITHIN = 6.0
"""Seconds that a page gets, at most, to fetch the last of a run once its training is over."""

TELL_AT_LEAST, QUIET = 1.0, 1.0
"""Seconds that it gets in any case, and without a request after which it is taken to have all."""

TICK = 0.1


def watch(folder: Path, *, port: int = 0, opened: Callable[[str], None] | None = None) -> None:
    """Shows a run, under way or not, until Ctrl-C.

    Args:
        folder: of the run.
        port: 0 for any that is free.
        opened: told the address.

    Raises:
        RunError: no run there.
        ServerError: the port cannot be had.
    """
    if not (folder / "recipe.json").is_file():
        raise RunError(f"{folder}: no run. Expected a folder that headstart train has begun.")
    _serve(Watched(folder), port=port, opened=opened, over=None)


def watch_for_parent(folder: Path, *, port: int = 0) -> None:
    """Shows the run of the process that has started this one, and ends soon after it.

    The address is told as a line of JSON on stdout; the parent lives as long as stdin is open.

    Args:
        folder: of the run; it may not be there yet.
        port: 0 for any that is free.
    """
    alone = threading.Event()

    def wait() -> None:
        with contextlib.suppress(OSError):
            while sys.stdin.buffer.read(1 << 16):
                pass
        alone.set()

    def tell(where: str) -> None:
        print(json.dumps({"address": where}), flush=True)

    threading.Thread(target=wait, daemon=True).start()
    try:
        _serve(Watched(folder, expected=lambda: not alone.is_set()), port=port, opened=tell, over=alone.is_set)
    except ServerError as error:
        print(json.dumps({"error": str(error)}), flush=True)


@contextmanager
def watched_beside(folder: Path, *, port: int = 0) -> Iterator[Callable[[], str]]:
    """A process beside this one that shows a run.

    Args:
        folder: of the run; it may not be there yet.
        port: 0 for any that is free.

    Yields:
        A function that waits for its address, and raises ServerError where there is none.
    """
    command = [sys.executable, "-m", "headstart", "watch", str(folder), "--port", str(port), "--beside"]
    pipe = subprocess.PIPE
    # A session of its own: Ctrl-C is for the training, and the page is to show that it was stopped.
    process = subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=subprocess.DEVNULL, start_new_session=True)
    try:
        yield lambda: _address_of(process)
    finally:
        assert process.stdin is not None
        with contextlib.suppress(OSError):
            process.stdin.close()
        try:
            process.wait(timeout=TELL_WITHIN + 2)
        except (subprocess.TimeoutExpired, KeyboardInterrupt):
            process.kill()
            process.wait()


def view_app(watched: Watched, traffic: Traffic) -> FastAPI:
    """The application that shows a run, and nothing else.

    Args:
        watched: the run.
        traffic: is kept up to date; its streams end where it is draining.
    """
    app = FastAPI(openapi_url=None, docs_url=None, redoc_url=None)
    app.include_router(watch_router(watched, ending=lambda: traffic.draining))
    app.include_router(asset_router())
    app.add_api_route("/", _to_the_run, include_in_schema=False)
    app.add_middleware(Guard, limits=Limits(), admission=Admission(), traffic=traffic, metrics=Metrics(), log=None)
    app.add_middleware(PageHeaders)
    return app


def open_in_browser(where: str) -> None:
    """Opens an address where there is a display to show it on."""
    if sys.platform in ("win32", "darwin") or os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY"):
        with contextlib.suppress(Exception):  # a browser that fails is no reason to end anything
            webbrowser.open(where)


def _address_of(process: subprocess.Popen[bytes]) -> str:
    said: list[bytes] = []
    assert process.stdout is not None
    reader = threading.Thread(target=lambda: said.append(process.stdout.readline()), daemon=True)  # type: ignore[union-attr]
    reader.start()
    reader.join(STARTED_WITHIN)
    try:
        told: dict[str, Any] = json.loads(said[0])
    except (IndexError, ValueError):
        raise ServerError("The view of the run did not start. Train without --watch, and look at the report.") from None
    if "address" not in told:
        raise ServerError(f"{told.get('error')}")
    return str(told["address"])


def _serve(
    watched: Watched, *, port: int, opened: Callable[[str], None] | None, over: Callable[[], bool] | None
) -> None:
    traffic, seen = Traffic(), _Seen()
    app = view_app(watched, traffic)
    app.add_middleware(_Counted, seen=seen)
    try:
        listener = listen(HOST, port)
    except ServerError as error:
        raise ServerError(
            str(error).replace("--host or --port", "--watch-port, or --port of headstart watch")
        ) from None
    server = bounded_server(app, Limits(), traffic)
    if opened is not None:
        opened(f"{address(listener)}/watch")

    async def run() -> None:
        serving = asyncio.create_task(server.serve(sockets=[listener]))
        begun: float | None = None
        while not serving.done():
            await asyncio.sleep(TICK)
            if signals:
                traffic.draining = server.should_exit = True
            if over is not None and over():
                begun = time.monotonic() if begun is None else begun
                since = time.monotonic() - begun
                told = since > TELL_AT_LEAST and seen.quiet > QUIET
                if not seen.any or told or since > TELL_WITHIN:
                    traffic.draining = server.should_exit = True
        await serving

    with stop_signals() as signals, quiet_uvicorn():
        asyncio.run(run())


async def _to_the_run() -> Response:
    return RedirectResponse("/watch")


class _Seen:
    """When a request was last seen."""

    def __init__(self) -> None:
        self.any = False
        self.last = 0.0

    @property
    def quiet(self) -> float:
        """Seconds since."""
        return time.monotonic() - self.last


@final
class _Counted:
    def __init__(self, app: ASGIApp, *, seen: _Seen) -> None:
        self.app, self.seen = app, seen

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        self.seen.any, self.seen.last = True, time.monotonic()
        await self.app(scope, receive, send)
