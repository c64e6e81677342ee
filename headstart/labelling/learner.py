"""The classifier of a session: refitted in the background after each batch of labels; the newest labels win."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final, Literal, final

import numpy as np
import numpy.typing as npt
import torch

from headstart.labelling.vectors import Vectors
from headstart.training.linear_fits import LinearFits
from headstart.training.losses import Labels, probabilities_of

C: Final = 0.1
"""Inverse strength of the L2 penalty. With 60 to 600 labels it is within half a point of the best of four values on
flowers (docs/results/2026-12-01-labelling.md); cross-validation would take seconds."""

STEPS: Final = 30
"""Iterations of a fit that starts from the one before, at most: contradictory labels would take hundreds."""

CLOSE_SECONDS: Final = 10.0
"""Seconds that closing waits for a fit."""

LearnerState = Literal["too few labels", "fitting", "ready"]


@dataclass(frozen=True)
class LearnTask:
    """Labels to learn from.

    Attributes:
        images: (n,) numbers of labelled images.
        labels: (n,) int64 indices into ``classes``, each of which occurs; or (n, classes) of 0 and 1.
        classes: names.
    """

    images: npt.NDArray[np.int64]
    labels: Labels
    classes: tuple[str, ...]

    @property
    def is_learnable(self) -> bool:
        """Whether there are images of two classes; if several labels are allowed, a label that only some have."""
        if self.labels.ndim == 2:
            return bool(len(self.labels)) and bool(np.ptp(self.labels, axis=0).any())
        return len(self.classes) > 1


@dataclass(frozen=True)
class Learnt:
    """Probabilities for N images, from one fit.

    Attributes:
        classes: names of the classes that have labels.
        probabilities: (N, classes) float32 in [0, 1].
        labels: number of labelled images that the fit used.
        seconds: time of the fit and of the probabilities.
        weight: (D, classes) float32; logits of vectors are ``vectors @ weight + bias``.
        bias: (classes,) float32.
        version: number of the fit, from 1.
    """

    classes: tuple[str, ...]
    probabilities: npt.NDArray[np.float32]
    labels: int
    seconds: float
    weight: Vectors
    bias: Vectors
    version: int = 0

    def suggestion(self, image: int, rejected: Collection[str], names: Collection[str]) -> dict[str, Any] | None:
        """The first of ``suggestions``; None without one."""
        return next(iter(self.suggestions(image, rejected, names, 1)), None)

    def suggestions(
        self, image: int, rejected: Collection[str], names: Collection[str], count: int
    ) -> list[dict[str, Any]]:
        """The most probable classes of an image that still exist and were not rejected, most probable first.

        Args:
            image: its number.
            rejected: classes that were rejected for it.
            names: classes of the session.
            count: classes, at most.
        """
        found: list[dict[str, Any]] = []
        row = self.probabilities[image] if image < len(self.probabilities) else ()
        for place in np.argsort(-np.asarray(row), kind="stable"):
            name = self.classes[place]
            if len(found) < count and name in names and name not in rejected:
                found.append({"label": name, "probability": round(float(row[place]), 4)})
        return found


def learn(vectors: Vectors, task: LearnTask, start: Learnt | None = None) -> Learnt:
    """Fits logistic regression, one for each label if there may be several, and gives probabilities for all images.

    Args:
        vectors: (N, D) float32 of all images.
        task: learnable labels.
        start: the fit before, from whose weights a fit with some more labels takes a few steps.
    """
    started, several = time.monotonic(), task.labels.ndim == 2
    loss: Literal["binary", "logistic"] = "binary" if several else "logistic"
    count = len(task.images)
    fits = LinearFits(vectors[task.images], task.labels, [np.arange(count)], loss=loss)
    if start is not None:
        for place, name in enumerate(task.classes):
            if name in start.classes:
                before = start.classes.index(name)
                fits.weight[:, 0, place] = torch.from_numpy(start.weight[:, before])
                fits.bias[0, place] = float(start.bias[before])
    fits.fit(C, rounds=None if start is None else STEPS)
    weight, bias = fits.weight[:, 0].numpy().astype(np.float32), fits.bias[0].numpy().astype(np.float32)
    logits = vectors @ weight + bias
    found = probabilities_of(logits, multi_label=several).astype(np.float32)
    return Learnt(task.classes, found, count, round(time.monotonic() - started, 3), weight, bias)


@final
class Learner:
    """Fits in a thread. While a fit runs, only the newest task waits.

    Args:
        vectors: (N, D) float32 of all images.
        publish: receives each result, from the thread.
    """

    def __init__(self, vectors: Vectors, publish: Callable[[Learnt], None]) -> None:
        self._vectors, self._publish = vectors, publish
        self._ready = threading.Condition()
        self._task: LearnTask | None = None
        self._is_fitting = self._is_closed = False
        self._version = 0
        self._last: Learnt | None = None
        self._thread = threading.Thread(target=self._run, name="headstart-label-learner", daemon=True)
        self._thread.start()

    def submit(self, task: LearnTask) -> None:
        """Replaces the task that waits."""
        with self._ready:
            self._task = task
            self._ready.notify_all()

    @property
    def is_busy(self) -> bool:
        """Whether a fit runs or waits."""
        return self._is_fitting or self._task is not None

    def wait(self, timeout: float | None = None) -> bool:
        """Waits until no fit runs or waits; False if that takes longer than ``timeout`` seconds."""
        with self._ready:
            return self._ready.wait_for(lambda: not self.is_busy, timeout)

    def close(self) -> None:
        """Ends the thread after the fit that runs. The caller must not hold a lock that ``publish`` waits for."""
        with self._ready:
            self._is_closed = True
            self._ready.notify_all()
        self._thread.join(CLOSE_SECONDS)

    def _run(self) -> None:
        warm = LearnTask(np.arange(2) % len(self._vectors), np.arange(2), ("one", "other"))
        learn(self._vectors[:2], warm)  # imports what takes a second the first time
        while True:
            with self._ready:
                self._ready.wait_for(lambda: self._task is not None or self._is_closed)
                if self._is_closed or self._task is None:
                    return
                task, self._task, self._is_fitting = self._task, None, True
            try:
                if task.is_learnable:
                    self._version += 1
                    self._last = replace(learn(self._vectors, task, self._last), version=self._version)
                    self._publish(self._last)
            finally:
                with self._ready:
                    self._is_fitting = False
                    self._ready.notify_all()


def task_of(answers: Sequence[tuple[int, Sequence[str]]], names: Sequence[str], *, multi_label: bool) -> LearnTask:
    """The task of labelled images.

    Args:
        answers: number and labels of each image; without ``multi_label``, one label.
        names: classes of the session; those without images are left out.
        multi_label: whether an image may have any number of labels.
    """
    used = {label for _, labels in answers for label in labels}
    classes = tuple(name for name in names if name in used)
    place = {name: number for number, name in enumerate(classes)}
    images = np.array([image for image, _ in answers], np.int64)
    if not multi_label:
        return LearnTask(images, np.array([place[labels[0]] for _, labels in answers], np.int64), classes)
    labels = np.zeros((len(answers), len(classes)), np.int64)
    for row, (_, given) in enumerate(answers):
        labels[row, [place[name] for name in given]] = 1
    return LearnTask(images, labels, classes)
