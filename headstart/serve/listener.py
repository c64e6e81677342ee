"""Listener: the listening socket of a server, its address, and the signals that stop it."""

from __future__ import annotations

import signal
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

from ..errors import ServerError
from .access import LOOPBACK_HOSTS

SIGNALS: Final = (signal.SIGINT, signal.SIGTERM)


def listen(host: str, port: int, *, options: str = "--host or --port") -> socket.socket:
    """Opens a listening TCP socket.

    Args:
        host: name or address of this machine.
        port: 0 for any free port.
        options: the command's options with which another address is chosen.

    Raises:
        ServerError: the address is in use, not of this machine or not permitted.
    """
    try:
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
        return socket.create_server((host, port), family=family, backlog=1024)
    except (OSError, OverflowError) as error:
        reason = getattr(error, "strerror", None) or error
        raise ServerError(f"{host}:{port}: cannot listen there ({reason}). Choose another {options}.") from error


def is_loopback(host: str) -> bool:
    """Whether a host name or address can be reached from this machine only."""
    return host in LOOPBACK_HOSTS or host.startswith("127.")


def address(listener: socket.socket) -> str:
    """URL of a listening socket."""
    host, port = listener.getsockname()[:2]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


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
