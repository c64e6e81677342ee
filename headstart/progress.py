"""What a long task says while it works: sentences, and a bar with images a second and the time left.

The library takes any ``Progress`` and is silent by default; the command line passes a ``TerminalProgress``.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import TYPE_CHECKING, Protocol, final

from headstart.files import unicode_text

if TYPE_CHECKING:
    from rich.progress import Progress as RichProgress

BAR_AFTER_SECONDS = 2.0


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


@final
class TerminalProgress:
    """Writes sentences to stderr, and a bar where stderr is a terminal and the task takes over two seconds."""

    def say(self, text: str) -> None:
        """Prints one sentence to stderr."""
        print(unicode_text(text), file=sys.stderr, flush=True)

    @contextmanager
    def task(self, name: str, total: int, unit: str = "images") -> Iterator[Callable[[int], None]]:
        """Shows a bar that leaves no trace once the task is done."""
        if not sys.stderr.isatty():
            yield lambda _done: None
            return
        started, bar = time.monotonic(), None
        done = 0

        def advance(count: int) -> None:
            nonlocal bar, done
            done += count
            if bar is None and time.monotonic() - started > BAR_AFTER_SECONDS:
                bar = _bar(name, total, unit)
                bar.start()
            if bar is not None:
                seconds = time.monotonic() - started
                bar.update(bar.task_ids[0], completed=done, rate=f"{done / seconds:,.0f} {unit}/s")

        try:
            yield advance
        finally:
            if bar is not None:
                bar.stop()


def _bar(name: str, total: int, unit: str) -> RichProgress:
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
    from rich.progress import Progress as RichProgress

    bar = RichProgress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[rate]}"),
        TimeRemainingColumn(),
        TextColumn("left"),
        console=Console(stderr=True),
        transient=True,
    )
    bar.add_task(name, total=total, rate=f"- {unit}/s")
    return bar
