"""What a long task says while it works: sentences, and a bar, or lines, with the speed and the time left.

The library takes any ``Progress`` and is silent by default; the command line passes a ``TerminalProgress``.
"""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol, final

from headstart.files import unicode_text

if TYPE_CHECKING:
    from rich.progress import Progress as RichProgress

SHOWN_AFTER = 1.0
"""Seconds after which a task is shown."""

BEAT = 0.5
"""Seconds between two looks at whether something is to be shown."""

LINE_EVERY = 10.0
"""Seconds between two lines about a task where stderr is no terminal."""


class Progress(Protocol):
    """Told of each step of a long task."""

    def say(self, text: str) -> None:
        """One sentence about what was done, chosen or left out."""

    def task(self, name: str, total: int, unit: str = "images") -> AbstractContextManager[Callable[[int], None]]:
        """A piece of work of ``total`` units; the context gives a function to call with the units just done."""


def with_example(text: str, items: Sequence[str]) -> str:
    """A sentence with the first of what it speaks of: "2 files cannot be used (a.jpg: empty file, ...)."."""
    return f"{text} ({items[0]}{', ...' if len(items) > 1 else ''})." if items else f"{text}."


@final
class SilentProgress:
    """Says nothing."""

    def say(self, text: str) -> None:
        """Drops the sentence."""

    @contextmanager
    def task(self, name: str, total: int, unit: str = "images") -> Iterator[Callable[[int], None]]:  # noqa: ARG002
        """Counts nothing."""
        yield lambda _done: None


@contextmanager
def beating(beat: Callable[[], None], every: float) -> Iterator[None]:
    """Calls a function again and again from a thread of its own, however busy the caller is.

    Args:
        beat: the function; not called any more once the block has ended.
        every: seconds between two calls.
    """
    ended = threading.Event()

    def run() -> None:
        while not ended.wait(every):
            beat()

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
    row: Any = None
    line_at: float | None = None

    def words(self, now: float) -> str:
        """For a log: "Fine-tuning: 320 of 1,200 images, 12 s, about 33 s left"."""
        seconds = now - self.started
        far = f"{self.done:,} of {self.total:,} {self.unit}, " if self.total > 1 else ""
        left = f", about {seconds * (self.total - self.done) / self.done:.0f} s left" if self.done else ""
        return f"{self.name}: {far}{seconds:.0f} s{left}"


@final
class TerminalProgress:
    """Writes sentences to stderr, and what is going on: a bar on a terminal, else a line now and then.

    Both move by themselves while a step works that cannot tell how far it is.
    """

    def __init__(self) -> None:
        self._lock = threading.RLock()
        self._tasks: list[_Task] = []
        self._bar: RichProgress | None = None

    def say(self, text: str) -> None:
        """Prints one sentence to stderr."""
        print(unicode_text(text), file=sys.stderr, flush=True)

    @contextmanager
    def task(self, name: str, total: int, unit: str = "images") -> Iterator[Callable[[int], None]]:
        """Shows a task once it has taken a second; on a terminal nothing is left of it in the end."""
        own = _Task(name, total, unit, time.monotonic())
        is_terminal = sys.stderr.isatty()
        show = self._show_bar if is_terminal else self._write_line
        with self._lock:
            self._tasks.append(own)

        def advance(count: int) -> None:
            with self._lock:
                own.done += count
                if self._bar is not None and own.row is not None:
                    self._bar.update(own.row, completed=own.done, rate=_rate(own))

        try:
            with beating(lambda: show(own), BEAT):
                yield advance
        finally:
            self._end(own)

    def _write_line(self, own: _Task) -> None:
        now = time.monotonic()
        with self._lock:
            due = now - own.started >= SHOWN_AFTER if own.line_at is None else now - own.line_at >= LINE_EVERY
            if due and self._tasks[-1] is own:
                own.line_at = now
                self.say(own.words(now))

    def _show_bar(self, own: _Task) -> None:
        with self._lock:
            if own.row is not None or time.monotonic() - own.started < SHOWN_AFTER:
                return
            if self._bar is None:
                self._bar = _bar()
                self._bar.start()
            total = own.total if own.total > 1 else None
            own.row = self._bar.add_task(own.name, total=total, completed=own.done, rate=_rate(own))

    def _end(self, own: _Task) -> None:
        with self._lock:
            self._tasks.remove(own)
            if self._bar is None:
                return
            if own.row is not None:
                self._bar.remove_task(own.row)
            if not self._bar.task_ids:
                self._bar.stop()
                self._bar = None


def _rate(task: _Task) -> str:
    seconds = max(1e-3, time.monotonic() - task.started)
    return f"{task.done / seconds:,.0f} {task.unit}/s" if task.done and task.total > 1 else ""


def _bar() -> RichProgress:
    from rich.console import Console
    from rich.progress import BarColumn, SpinnerColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
    from rich.progress import Progress as RichProgress

    return RichProgress(
        SpinnerColumn(),
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.fields[rate]}"),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        TextColumn("left"),
        console=Console(stderr=True),
        transient=True,
    )
