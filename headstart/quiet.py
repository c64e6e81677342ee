"""Silencing other libraries: their warnings, prints and log lines, scoped to a block and a thread."""

from __future__ import annotations

import contextlib
import functools
import logging
import sys
import threading
from collections.abc import Iterator
from typing import Any, cast

from headstart.concurrency import SharedScope, ignored_warnings


@contextlib.contextmanager
def quiet(*names: str) -> Iterator[None]:
    """Context without warnings, prints and log lines of other libraries; exceptions are raised as usual.

    Any number of threads may use it at a time. What other threads print is printed.

    Args:
        *names: of the libraries' loggers, which log errors only.
    """
    with contextlib.ExitStack() as stack:
        stack.enter_context(ignored_warnings())
        stack.enter_context(_STDOUT)
        for name in names:
            stack.enter_context(_errors_only(name))
        depth = getattr(_MUTED, "depth", 0)
        _MUTED.depth = depth + 1
        try:
            yield
        finally:
            _MUTED.depth = depth


class _UnmutedStdout:
    """Standard output that drops what muted threads write."""

    def __init__(self) -> None:
        self._stream = sys.stdout

    def write(self, text: str) -> int:
        """Drops the text of a muted thread."""
        return len(text) if getattr(_MUTED, "depth", 0) else self._stream.write(text)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


_MUTED = threading.local()
_STDOUT = SharedScope(lambda: contextlib.redirect_stdout(cast(Any, _UnmutedStdout())))


@functools.cache
def _errors_only(logger: str) -> SharedScope:
    return SharedScope(lambda: _at_level(logging.getLogger(logger), logging.ERROR))


@contextlib.contextmanager
def _at_level(logger: logging.Logger, level: int) -> Iterator[None]:
    before = logger.level
    logger.setLevel(level)
    try:
        yield
    finally:
        logger.setLevel(before)
