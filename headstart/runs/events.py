"""Events: everything that is shown or written while a run goes on is one stream of them.

A step of a run emits an event by its class, such as ``EpochEnded``. The log, TensorBoard, the live status file,
progress bars and listeners are consumers: functions that take each ``Event`` in order.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, ClassVar, final

from headstart.progress import Progress

THROTTLE = 0.2
"""Seconds between two "progress" events of one task that a listener receives, at least."""


@dataclass(frozen=True)
class Event:
    """Something that happened in a run.

    ``event["loss"]`` is ``event.fields["loss"]``. The classes of this module below name each kind and its fields.

    Attributes:
        kind: "images", "findings", "engine", "plan", "stage", "step", "epoch", "validation", "checkpoint", "mistakes",
            "rung", "message", "progress" or "finished", which is the last one.
        time: seconds since 1970.
        fields: a JSON document.
        is_logged: whether log.jsonl holds it.
    """

    kind: str
    time: float
    fields: dict[str, Any]
    is_logged: bool = True

    def __getitem__(self, name: str) -> Any:
        return self.fields[name]


Listener = Callable[[Event], None]


@dataclass(frozen=True)
class EventData:
    """The fields of one kind of event.

    Attributes:
        kind: its name.
        is_logged: whether log.jsonl holds it; not what is too much, or too fleeting, to keep.
    """

    kind: ClassVar[str]
    is_logged: ClassVar[bool] = True

    def fields(self) -> dict[str, Any]:
        """Name -> value; a dictionary called ``more`` is merged into the others."""
        document = vars(self).copy()
        more: dict[str, Any] = document.pop("more", {})
        return document | more


@dataclass(frozen=True)
class ImagesRead(EventData):
    """The images were read.

    Attributes:
        run: the run folder.
        counts: split -> class -> images.
        findings: number of them.
    """

    kind = "images"
    run: str
    counts: dict[str, dict[str, int]]
    findings: int


@dataclass(frozen=True)
class FindingsUpdated(EventData):
    """All findings of the data check so far; emitted again once the labels were checked.

    Attributes:
        found: of each its kind, severity, message, number of cases, and path and text of the first images.
    """

    kind = "findings"
    found: list[dict[str, Any]]


@dataclass(frozen=True)
class EnginesChosen(EventData):
    """The engines of the frozen pass were chosen.

    Attributes:
        exact: which engine computes held-out images, and why.
        fast: which engine computes training images, and why.
    """

    kind = "engine"
    exact: str
    fast: str


@dataclass(frozen=True)
class PlanLine(EventData):
    """A line of what is going to be done.

    Attributes:
        text: the line.
    """

    kind = "plan"
    text: str


@dataclass(frozen=True)
class StageBegun(EventData):
    """What is trained from here on; of a head on frozen features, what was.

    Attributes:
        stage: its name, "probe" or the name of a rung.
        trainable: number of weights that are trained.
        frozen: number of weights that are not.
        statistics: number of BatchNorm statistics.
        learns_statistics: whether they are updated where they are trained.
        layers: of each layer group [name, weights, trained weights].
        more: how activations are obtained.
    """

    kind = "stage"
    stage: str
    trainable: int
    frozen: int
    statistics: int
    learns_statistics: bool
    layers: list[list[Any]]
    more: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class StepDone(EventData):
    """An optimizer step.

    Attributes:
        stage: its name.
        more: ``step`` (from 1), ``steps``, ``epoch`` (from 0), ``loss`` and ``lr`` (of the head).
    """

    kind = "step"
    is_logged = False
    stage: str
    more: dict[str, Any]


@dataclass(frozen=True)
class EpochEnded(EventData):
    """Figures on the training images as they were shown, mixed and augmented, while the model learnt.

    Attributes:
        stage: its name.
        epoch: from 0.
        loss: mean over the epoch, in nats.
        accuracy: in [0, 1].
    """

    kind = "epoch"
    stage: str
    epoch: int
    loss: float
    accuracy: float


@dataclass(frozen=True)
class Validated(EventData):
    """Figures on the validation images by the averaged weights after an epoch.

    Attributes:
        stage: its name.
        epoch: from 0.
        accuracy: in [0, 1].
        correct: number of images.
        log_loss: mean, in nats.
    """

    kind = "validation"
    stage: str
    epoch: int
    accuracy: float
    correct: int
    log_loss: float


@dataclass(frozen=True)
class CheckpointSaved(EventData):
    """A checkpoint was written: a stop from here on loses nothing before it.

    Attributes:
        stage: its name.
        step: of the stage.
        file: the checkpoint.
    """

    kind = "checkpoint"
    stage: str
    step: int
    file: str


@dataclass(frozen=True)
class MistakesFound(EventData):
    """The most confident mistakes of a stage on val.

    Attributes:
        stage: its name.
        more: ``count``, ``of`` (images) and ``items`` (path, label, predicted label).
    """

    kind = "mistakes"
    stage: str
    more: dict[str, Any]


@dataclass(frozen=True)
class RungJudged(EventData):
    """A rung of the ladder was scored.

    Attributes:
        more: the attributes of ``training.ladder.RungResult``.
    """

    kind = "rung"
    more: dict[str, Any]


@dataclass(frozen=True)
class RunFinished(EventData):
    """The last event: everything is on disk.

    Attributes:
        run: the run folder.
        best: name of the stage that was kept.
        scores: by set.
        seconds: by step.
        more: the proof of what was frozen, and the engines.
    """

    kind = "finished"
    run: str
    best: str
    scores: dict[str, Any]
    seconds: dict[str, float]
    more: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Message(EventData):
    """A sentence for the user.

    Attributes:
        text: the sentence.
    """

    kind = "message"
    is_logged = False
    text: str


@dataclass(frozen=True)
class TaskProgress(EventData):
    """A task begins, advances or ends.

    Attributes:
        task: its name.
        done: units so far.
        total: units in all.
        unit: what is counted.
        began: whether this is its first event.
        ended: whether this is its last one.
        left: seconds that are left of the run; None before there is a plan.
    """

    kind = "progress"
    is_logged = False
    task: str
    done: int
    total: int
    unit: str
    began: bool = False
    ended: bool = False
    left: float | None = None


@final
class EventStream:
    """Passes each event to all consumers, in the order in which they were added; a ``Progress``.

    Args:
        consumers: functions that take each event. What one raises ends the step that emitted the event.
    """

    def __init__(self, consumers: Iterable[Listener] = ()) -> None:
        self._consumers = list(consumers)
        self._seconds_left: Callable[[], float] | None = None

    def add(self, consumer: Listener, *, first: bool = False) -> None:
        """Adds a consumer, behind the others or before them."""
        self._consumers.insert(0 if first else len(self._consumers), consumer)

    def use_estimate(self, seconds_left: Callable[[], float]) -> None:
        """Progress has this estimate of the run's remaining seconds from here on."""
        self._seconds_left = seconds_left

    def emit(self, data: EventData) -> None:
        """Passes one event on."""
        event = Event(data.kind, time.time(), data.fields(), data.is_logged)
        for consumer in list(self._consumers):
            consumer(event)

    def say(self, text: str) -> None:
        """Emits a ``Message``."""
        self.emit(Message(text))

    @contextmanager
    def task(self, name: str, total: int, unit: str = "images") -> Iterator[Callable[[int], None]]:
        """Emits ``TaskProgress`` at the beginning, with each advance and at the end."""
        done = 0

        def tell(*, began: bool = False, ended: bool = False) -> None:
            left = None if self._seconds_left is None else self._seconds_left()
            self.emit(TaskProgress(name, done, total, unit, began, ended, left))

        def advance(count: int) -> None:
            nonlocal done
            done += count
            tell()

        try:
            tell(began=True)
            yield advance
        finally:
            tell(ended=True)


@final
class ProgressConsumer:
    """Passes messages and tasks to a ``Progress``, such as the terminal's.

    Args:
        progress: receives them.
    """

    def __init__(self, progress: Progress) -> None:
        self._progress = progress
        self._tasks: list[_OpenTask] = []

    def __call__(self, event: Event) -> None:
        """Consumes "message" and "progress"."""
        if event.kind == "message":
            self._progress.say(event["text"])
        elif event.kind == "progress":
            self._task(event)

    def _task(self, event: Event) -> None:
        if event["began"]:
            context = self._progress.task(event["task"], event["total"], event["unit"])
            self._tasks.append(_OpenTask(event["task"], context, context.__enter__()))
            return
        task = next((task for task in reversed(self._tasks) if task.name == event["task"]), None)
        if task is None:
            return
        if event["ended"]:
            self._tasks.remove(task)
            task.context.__exit__(None, None, None)
        else:
            task.advance(event["done"] - task.done)
            task.done = event["done"]


@dataclass(eq=False)
class _OpenTask:
    name: str
    context: Any
    advance: Callable[[int], None]
    done: int = 0


def throttled(listener: Listener) -> Listener:
    """The listener, which receives no more than a few "progress" events a second while a task advances."""
    last = 0.0

    def consume(event: Event) -> None:
        nonlocal last
        if event.kind == "progress" and not event["began"] and not event["ended"]:
            now = time.monotonic()
            if now - last < THROTTLE:
                return
            last = now
        listener(event)

    return consume
