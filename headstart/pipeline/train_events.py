"""A training run as a stream of events, for notebooks, pages and listeners of every kind."""

from __future__ import annotations

import os
import queue
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Unpack, final

from headstart.data.dataset import Dataset
from headstart.errors import OptionError
from headstart.pipeline.train import resume, train
from headstart.progress import Progress, SilentProgress
from headstart.runs.log import Event
from headstart.training.recipe import Recipe
from headstart.training.recipe_options import RecipeOptions

PROGRESS_EVERY = 0.2
"""Seconds between two events of one task's progress, at least."""


class _Stopped(BaseException):
    """Nobody listens any more."""


def train_events(
    source: str | os.PathLike[str] | Dataset | None = None,
    *,
    resume_from: str | os.PathLike[str] | None = None,
    out: str | os.PathLike[str] | None = None,
    recipe: Recipe | None = None,
    device: str = "auto",
    cache: Path | None = None,
    progress: Progress | None = None,
    **options: Unpack[RecipeOptions],
) -> Iterator[Event]:
    """Trains, and yields what happens while it happens; the run is under way in a thread of its own.

        for event in hs.train_events("flowers/", effort="quick"):
            if event.kind == "validation":
                print(event["epoch"], event["accuracy"])
        run = hs.load_run(event["run"])

    The last event is "finished". Leaving the loop early stops the run at its next step; it can be gone on with by
    ``resume_from``.

    Args:
        source: as ``train`` takes it; None with ``resume_from``.
        resume_from: the folder of a run that was stopped, in place of ``source``.
        out: the run folder, see ``train``.
        recipe: every option at once.
        device: "auto", "cpu", "cuda" or "mps".
        cache: the cache folder; the default one where it is not given.
        progress: told as well.
        **options: fields of ``Recipe``, instead of ``recipe``. A run is resumed with the options that it began with.

    Yields:
        Events, see ``runs.log.Event``.

    Raises:
        HeadstartError: see ``train`` and ``resume``; raised in the loop.
    """
    if (source is None) == (resume_from is None):
        raise OptionError("give a source to train on, or resume_from; one of the two.")
    given = {"out": out is not None, "recipe": recipe is not None, "device": device != "auto"}
    refused: dict[str, Any] = {**{name: True for name, is_given in given.items() if is_given}, **options}
    told: queue.SimpleQueue[Event | BaseException | None] = queue.SimpleQueue()
    left = threading.Event()

    def listener(event: Event) -> None:
        if left.is_set():
            raise _Stopped
        told.put(event)

    def work() -> None:
        try:
            progress_too = _Telling(listener, progress or SilentProgress())
            if source is not None:
                places: dict[str, Any] = {"out": out, "device": device, "cache": cache}
                train(source, recipe=recipe, progress=progress_too, listener=listener, **places, **options)
            elif resume_from is not None:
                resume(resume_from, cache=cache, progress=progress_too, listener=listener, **refused)
        except _Stopped:
            pass
        except BaseException as error:  # raised again where the caller is
            told.put(error)
        finally:
            told.put(None)

    thread = threading.Thread(target=work, name="headstart-train", daemon=True)
    thread.start()
    try:
        while (event := told.get()) is not None:
            if isinstance(event, BaseException):
                raise event
            yield event
    finally:
        left.set()
        thread.join()


@final
class _Telling:
    """A ``Progress`` that makes events of what it is told, and hands it on."""

    def __init__(self, listener: Callable[[Event], None], also: Progress) -> None:
        self._listener, self._also = listener, also

    def say(self, text: str) -> None:
        """A "message"."""
        self._also.say(text)
        self._tell("message", text=text)

    @contextmanager
    def task(self, name: str, total: int, unit: str = "images") -> Iterator[Callable[[int], None]]:
        """A "progress" at the start, at the end and a few times a second."""
        done, last = 0, time.monotonic()
        own: dict[str, Any] = {"task": name, "total": total, "unit": unit}
        self._tell("progress", done=0, **own)
        with self._also.task(name, total, unit) as also:

            def advance(count: int) -> None:
                nonlocal done, last
                done += count
                also(count)
                if time.monotonic() - last >= PROGRESS_EVERY:
                    last = time.monotonic()
                    self._tell("progress", done=done, **own)

            yield advance
        self._tell("progress", done=done, **own)

    def _tell(self, kind: str, **fields: Any) -> None:
        self._listener(Event(kind, time.time(), fields))
