"""A real server on a free port, in a thread."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

from starlette.types import ASGIApp

from headstart.serve.limits import ServerLimits
from headstart.serve.listener import address, listen
from headstart.serve.middleware import ServerState
from headstart.serve.uvicorn_server import bounded_server


@contextmanager
def serving(app: ASGIApp, state: ServerState) -> Iterator[str]:
    """Serves an application; yields the URL."""
    listener = listen("127.0.0.1", 0)
    server = bounded_server(app, ServerLimits(), state)
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, daemon=True)
    thread.start()
    while not server.started and thread.is_alive():
        time.sleep(0.01)
    try:
        yield address(listener)
    finally:
        server.should_exit = True
        thread.join(timeout=15)
