"""Live view of a run in a separate process, so that it can neither slow down nor stop the training."""

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
from typing import Any, Final, final

from fastapi import FastAPI
from fastapi.responses import RedirectResponse, Response
from starlette.types import ASGIApp, Receive, Scope, Send

from headstart.errors import RunError, ServerError
from headstart.serve.access import AccessPolicy
from headstart.serve.limits import ServerLimits
from headstart.serve.listener import address, listen, stop_signals
from headstart.serve.middleware import RequestMiddleware, ServerState
from headstart.serve.prometheus import Metrics
from headstart.serve.static_files import SecurityHeadersMiddleware, asset_router
from headstart.serve.uvicorn_server import bounded_server, quiet_uvicorn
from headstart.serve.watch.run_reader import RunReader
from headstart.serve.watch.views import watch_router

HOST = "127.0.0.1"

START_TIMEOUT: Final = 30.0
"""Seconds until the process must have reported its address."""

MAX_LINGER: Final = 6.0
"""Maximum seconds for which the server continues after the training, so that open pages can fetch the result."""

MIN_LINGER, IDLE_SECONDS = 1.0, 1.0
"""Minimum seconds for which it continues, and seconds without a request after which no page is open."""

POLL_SECONDS: Final = 0.1


def watch(folder: Path, *, port: int = 0, opened: Callable[[str], None] | None = None) -> None:
    """Shows a run, active or not, until Ctrl-C.

    Args:
        folder: run folder.
        port: 0 for any free port.
        opened: called with the URL of the view.

    Raises:
        RunError: the folder is not a run folder.
        ServerError: the port is in use.
    """
    if not (folder / "recipe.json").is_file():
        raise RunError(
            f"{folder}: not a run folder (it has no recipe.json). Pass the folder that headstart train created."
        )
    _serve(RunReader(folder), port=port, opened=opened, is_over=None)


def watch_for_parent(folder: Path, *, port: int = 0) -> None:
    """Shows the run of the parent process, and exits soon after it.

    Protocol: this process writes its URL as a line of JSON to stdout; the parent has ended when stdin is closed.

    Args:
        folder: run folder, which may not exist yet.
        port: 0 for any free port.
    """
    parent_ended = threading.Event()

    def wait() -> None:
        with contextlib.suppress(OSError):
            while sys.stdin.buffer.read(1 << 16):
                pass
        parent_ended.set()

    def report(url: str) -> None:
        print(json.dumps({"address": url}), flush=True)

    threading.Thread(target=wait, daemon=True).start()
    try:
        reader = RunReader(folder, expected=lambda: not parent_ended.is_set())
        _serve(reader, port=port, opened=report, is_over=parent_ended.is_set)
    except ServerError as error:
        print(json.dumps({"error": str(error)}), flush=True)


@contextmanager
def watched_beside(folder: Path, *, port: int = 0) -> Iterator[Callable[[], str]]:
    """Shows a run from a child process while the block runs.

    Args:
        folder: run folder, which may not exist yet.
        port: 0 for any free port.

    Yields:
        A function that waits for the URL of the view, and raises ServerError if it did not start.
    """
    command = [sys.executable, "-m", "headstart", "watch", str(folder), "--port", str(port), "--beside"]
    pipe = subprocess.PIPE
    # A new session: Ctrl-C stops only the training, and the page then shows that it was stopped.
    process = subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=subprocess.DEVNULL, start_new_session=True)
    try:
        yield lambda: _address_of(process)
    finally:
        assert process.stdin is not None
        with contextlib.suppress(OSError):
            process.stdin.close()
        try:
            process.wait(timeout=MAX_LINGER + 2)
        except (subprocess.TimeoutExpired, KeyboardInterrupt):
            process.kill()
            process.wait()


def view_app(reader: RunReader, state: ServerState) -> FastAPI:
    """The ASGI application of the live view.

    Args:
        reader: reads the run folder.
        state: counters to update; event streams end when it is draining.
    """
    app = FastAPI(openapi_url=None, docs_url=None, redoc_url=None)
    app.include_router(watch_router(lambda: reader, is_stopping=lambda: state.draining))
    app.include_router(asset_router())
    app.add_api_route("/", _redirect_to_view, include_in_schema=False)
    app.add_middleware(
        RequestMiddleware, limits=ServerLimits(), admission=AccessPolicy(), state=state, metrics=Metrics(), log=None
    )
    app.add_middleware(SecurityHeadersMiddleware)
    return app


def open_in_browser(url: str) -> None:
    """Opens a URL in the browser if this machine has a display."""
    if sys.platform in ("win32", "darwin") or os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY"):
        with contextlib.suppress(Exception):  # the command works without a browser
            webbrowser.open(url)


def _address_of(process: subprocess.Popen[bytes]) -> str:
    lines: list[bytes] = []
    assert process.stdout is not None
    reader = threading.Thread(target=lambda: lines.append(process.stdout.readline()), daemon=True)  # type: ignore[union-attr]
    reader.start()
    reader.join(START_TIMEOUT)
    try:
        message: dict[str, Any] = json.loads(lines[0])
    except (IndexError, ValueError):
        raise ServerError(
            "The page of the run did not start. Train without watch, and open the report at the end."
        ) from None
    if "address" not in message:
        raise ServerError(f"{message.get('error')}")
    return str(message["address"])


def _serve(
    reader: RunReader, *, port: int, opened: Callable[[str], None] | None, is_over: Callable[[], bool] | None
) -> None:
    state, requests = ServerState(), _RequestClock()
    app = view_app(reader, state)
    app.add_middleware(_RequestClockMiddleware, clock=requests)
    listener = listen(HOST, port, options="--watch-port, or --port of headstart watch")
    server = bounded_server(app, ServerLimits(), state)
    if opened is not None:
        opened(f"{address(listener)}/watch")

    async def run() -> None:
        serving = asyncio.create_task(server.serve(sockets=[listener]))
        over_since: float | None = None
        while not serving.done():
            await asyncio.sleep(POLL_SECONDS)
            if over_since is None and is_over is not None and is_over():
                over_since = time.monotonic()
            if signals or (over_since is not None and requests.nobody_waits(over_since)):
                state.draining = server.should_exit = True
        await serving

    with stop_signals() as signals, quiet_uvicorn():
        asyncio.run(run())


async def _redirect_to_view() -> Response:
    return RedirectResponse("/watch")


class _RequestClock:
    """Time of the last request."""

    def __init__(self) -> None:
        self.any = False
        self.last = 0.0

    def nobody_waits(self, over_since: float) -> bool:
        """Whether open pages have fetched the result of a run that is over since then."""
        elapsed, idle = time.monotonic() - over_since, time.monotonic() - self.last
        return not self.any or elapsed > MAX_LINGER or (elapsed > MIN_LINGER and idle > IDLE_SECONDS)


@final
class _RequestClockMiddleware:
    """ASGI middleware that records the time of each request."""

    def __init__(self, app: ASGIApp, *, clock: _RequestClock) -> None:
        self.app, self.clock = app, clock

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        self.clock.any, self.clock.last = True, time.monotonic()
        await self.app(scope, receive, send)
