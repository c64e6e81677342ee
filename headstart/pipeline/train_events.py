"""Training as an iterator of events, for notebooks and pages."""

from __future__ import annotations

import os
import queue
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Unpack

from headstart.data.dataset import Dataset
from headstart.errors import OptionError
from headstart.pipeline.resume import resume
from headstart.pipeline.train import train
from headstart.progress import Progress
from headstart.runs.events import Event, Listener
from headstart.training.recipe import Recipe
from headstart.training.recipe_options import RecipeOptions


class _Stopped(BaseException):
    """The loop over the events was left."""


def train_events(
    source: str | os.PathLike[str] | Dataset | None = None,
    *,
    resume_from: str | os.PathLike[str] | None = None,
    out: str | os.PathLike[str] | None = None,
    recipe: Recipe | None = None,
    minutes: float | None = None,
    device: str = "auto",
    cache: Path | None = None,
    progress: Progress | None = None,
    **options: Unpack[RecipeOptions],
) -> Iterator[Event]:
    """Trains in a thread, and yields the events of the run as they happen.

    The last event is "finished". Leaving the loop early stops the run at its next step; ``resume_from`` resumes it.

    Args:
        source: as ``train`` takes it; None with ``resume_from``.
        resume_from: the folder of a run that was stopped, instead of ``source``.
        out: the run folder, see ``train``.
        recipe: every option at once.
        minutes: time for the whole run, see ``train``.
        device: "auto", "cpu", "cuda" or "mps".
        cache: the cache folder; the default one if None.
        progress: receives messages and the progress of each task as well.
        **options: fields of ``Recipe``, instead of ``recipe``. A run is resumed with the options that it began with.

    Yields:
        Events, see ``runs.events.Event``.

    Raises:
        HeadstartError: see ``train`` and ``resume``; raised in the loop.

    Examples:
        >>> from headstart.pipeline import train_events
        >>> for event in train_events("flowers/"):
        ...     if event.kind == "images":
        ...         print(event["counts"]["val"])
        {'roses': 5, 'tulips': 5}
        >>> run = hs.load_run(event["run"])
    """
    if (source is None) == (resume_from is None):
        raise OptionError("give either a source to train on or resume_from.")
    given = {"out": out, "recipe": recipe, "minutes": minutes, "device": None if device == "auto" else device}
    refused: dict[str, Any] = {**{name: True for name, value in given.items() if value is not None}, **options}

    def run(listener: Listener) -> None:
        if source is not None:
            places: dict[str, Any] = {"out": out, "minutes": minutes, "device": device, "cache": cache}
            train(source, recipe=recipe, progress=progress, listener=listener, **places, **options)
        elif resume_from is not None:
            resume(resume_from, cache=cache, progress=progress, listener=listener, **refused)

    yield from _events_of(run)


def _events_of(run: Callable[[Listener], None]) -> Iterator[Event]:
    """The events of a function that runs in a thread; it is stopped at its next event if the loop is left."""
    received: queue.SimpleQueue[Event | BaseException | None] = queue.SimpleQueue()
    is_left = threading.Event()

    def listener(event: Event) -> None:
        if is_left.is_set():
            raise _Stopped
        received.put(event)

    def work() -> None:
        try:
            run(listener)
        except _Stopped:
            pass
        except BaseException as error:  # raised again where the caller is
            received.put(error)
        finally:
            received.put(None)

    thread = threading.Thread(target=work, name="headstart-train", daemon=True)
    thread.start()
    try:
        while (event := received.get()) is not None:
            if isinstance(event, BaseException):
                raise event
            yield event
    finally:
        is_left.set()
        thread.join()
