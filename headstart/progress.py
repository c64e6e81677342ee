"""Progress of long tasks: messages, and a progress bar or log lines with speed and time left.

The library accepts any ``Progress`` and is silent by default; the commands pass a ``TerminalProgress``.
"""

from __future__ import annotations

import shutil
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import Protocol, final

from .files import unicode_text

SHOWN_AFTER = 1.0
"""Seconds after which a task is shown; shorter tasks write nothing."""

REDRAW_EVERY = 0.5
"""Seconds between two updates of the bar."""

LINE_EVERY = 10.0
"""Seconds between two lines about a task if stderr is not a terminal."""

BAR_WIDTH = 30
"""Characters of the bar."""

CLEAR_LINE = "\r\x1b[2K"


class Progress(Protocol):
    """Receives messages and the progress of long tasks. Subclass it to show them elsewhere.

    Examples:
        >>> import contextlib
        >>> class Messages:
        ...     def __init__(self): self.texts = []
        ...     def say(self, text): self.texts.append(text)
        ...     def task(self, name, total, unit="images"): return contextlib.nullcontext(lambda count: None)
        >>> messages = Messages()
        >>> inspection = hs.check("flowers/", progress=messages)
        >>> len(messages.texts) > 0
        True
    """

    def say(self, text: str) -> None:
        """Shows one sentence: what was done, chosen or left out."""

    def task(self, name: str, total: int, unit: str = "images") -> AbstractContextManager[Callable[[int], None]]:
        """Starts a task of ``total`` units; the context gives a function to call with the number of units done."""


def with_example(text: str, items: Sequence[str]) -> str:
    """A sentence with the first item that it is about: "2 files cannot be used (a.jpg: empty file, ...)."."""
    return f"{text} ({items[0]}{', ...' if len(items) > 1 else ''})." if items else f"{text}."


@final
class SilentProgress:
    """Shows nothing."""

    def say(self, text: str) -> None:
        """Ignores the message."""

    @contextmanager
    def task(self, name: str, total: int, unit: str = "images") -> Iterator[Callable[[int], None]]:  # noqa: ARG002
        """Ignores the task."""
        yield lambda _count: None


@contextmanager
def call_repeatedly(function: Callable[[], None], every: float) -> Iterator[None]:
    """Calls a function every few seconds from a background thread while the block runs.

    Args:
        function: not called any more once the block has ended.
        every: seconds between two calls.
    """
    ended = threading.Event()

    def run() -> None:
        while not ended.wait(every):
            function()

    thread = threading.Thread(target=run, name="headstart-progress", daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


@dataclass
class _Task:
    name: str
    total: int
    unit: str
    started: float
    done: int = 0
    line_at: float | None = None

    def seconds(self) -> float:
        return max(1e-3, time.monotonic() - self.started)

    def remaining(self) -> str:
        seconds = self.seconds() * (self.total - self.done) / self.done if self.done else 0.0
        return f", about {seconds:.0f} s left" if self.done else ""

    def line(self) -> str:
        """For a log: "Fine-tuning: 320 of 1,200 images, 12 s, about 33 s left"."""
        count = f"{self.done:,} of {self.total:,} {self.unit}, " if self.total > 1 else ""
        return f"{self.name}: {count}{self.seconds():.0f} s{self.remaining()}"

    def bar(self, width: int) -> str:
        """For a terminal: "Fine-tuning [####----] 320/1,200, 27 images/s, 12 s, about 33 s left"."""
        if self.total <= 1:
            text = f"{self.name}, {self.seconds():.0f} s"
        else:
            filled = min(BAR_WIDTH, BAR_WIDTH * self.done // self.total)
            rate = f", {self.done / self.seconds():,.0f} {self.unit}/s" if self.done else ""
            text = f"{self.name} [{'#' * filled}{'-' * (BAR_WIDTH - filled)}] {self.done:,}/{self.total:,}{rate}"
            text += f", {self.seconds():.0f} s{self.remaining()}"
        return text[: max(1, width - 1)]


@final
class TerminalProgress:
    """Writes messages to stderr, and the running task: a bar on a terminal, a line every 10 seconds elsewhere.

    Tasks of less than a second are not shown. Of nested tasks the innermost is shown.

    Examples:
        >>> inspection = hs.check("flowers/", files_only=True, progress=hs.TerminalProgress())
    """

    def __init__(self) -> None:
        self._lock = threading.RLock()
        self._tasks: list[_Task] = []
        self._bar_shown = False

    def say(self, text: str) -> None:
        """Prints one sentence to stderr."""
        with self._lock:
            self._clear_bar()
            print(unicode_text(text), file=sys.stderr, flush=True)

    @contextmanager
    def task(self, name: str, total: int, unit: str = "images") -> Iterator[Callable[[int], None]]:
        """Shows a task while the block runs; on a terminal the bar is removed at the end."""
        task = _Task(name, total, unit, time.monotonic())
        show = self._draw_bar if sys.stderr.isatty() else self._write_line
        with self._lock:
            self._tasks.append(task)

        def advance(count: int) -> None:
            with self._lock:
                task.done += count

        try:
            with call_repeatedly(lambda: show(task), REDRAW_EVERY):
                yield advance
        finally:
            with self._lock:
                self._tasks.remove(task)
                self._clear_bar()

    def _write_line(self, task: _Task) -> None:
        now = time.monotonic()
        with self._lock:
            is_due = now - task.started >= SHOWN_AFTER if task.line_at is None else now - task.line_at >= LINE_EVERY
            if is_due and self._tasks[-1] is task:
                task.line_at = now
                self.say(task.line())

    def _draw_bar(self, task: _Task) -> None:
        with self._lock:
            if self._tasks[-1] is task and task.seconds() >= SHOWN_AFTER:
                width = shutil.get_terminal_size().columns
                print(f"{CLEAR_LINE}{unicode_text(task.bar(width))}", end="", file=sys.stderr, flush=True)
                self._bar_shown = True

    def _clear_bar(self) -> None:
        if self._bar_shown:
            print(CLEAR_LINE, end="", file=sys.stderr, flush=True)
            self._bar_shown = False
