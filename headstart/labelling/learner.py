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

CERTAIN: Final = 0.8
"""Probability from which on a prediction is certain enough for a pseudo-label."""

PSEUDO_WEIGHT: Final = 0.5
"""Weight of a pseudo-label against a label. Weights of 0.2 to 1 need about as many labels
(docs/results/2026-12-01-labelling.md)."""

MOST_PSEUDO: Final = 4_000
"""Pseudo-labels of a fit, at most; more take longer than a second."""

LearnerState = Literal["too few labels", "fitting", "ready"]


@dataclass(frozen=True)
class PseudoLabelPool:
    """Unlabelled images that suggestions may also be learnt from, with the class predicted for them.

    Attributes:
        images: (m,) their numbers.
        groups: (N,) number of the group of similar images that each of all N images is in; -1 for an image in none.
    """

    images: npt.NDArray[np.int64]
    groups: npt.NDArray[np.int64]

    def familiar(
        self, images: npt.NDArray[np.int64], predicted: npt.NDArray[np.int64], task: LearnTask
    ) -> npt.NDArray[np.bool_]:
        """(n,) whether the group of an image has an image that a person labelled as the class predicted for it.

        Args:
            images: (n,) numbers.
            predicted: (n,) indices into the classes of the task.
            task: labels of persons, one per image.
        """
        labelled = np.zeros((int(self.groups.max(initial=0)) + 2, len(task.classes)), bool)
        labelled[self.groups[task.images], task.labels] = True
        labelled[-1] = False  # images in no group
        return np.asarray(labelled[self.groups[images], predicted])


@dataclass(frozen=True)
class LearnTask:
    """Labels to learn from.

    Attributes:
        images: (n,) numbers of labelled images.
        labels: (n,) int64 indices into ``classes``, each of which occurs; or (n, classes) of 0 and 1.
        classes: names.
        pool: images that may get a pseudo-label; None for none.
    """

    images: npt.NDArray[np.int64]
    labels: Labels
    classes: tuple[str, ...]
    pool: PseudoLabelPool | None = None

    @property
    def is_learnable(self) -> bool:
        """Whether there are images of two classes; if several labels are allowed, a label that only some have."""
        if self.labels.ndim == 2:
            return bool(len(self.labels)) and bool(np.ptp(self.labels, axis=0).any())
        return len(self.classes) > 1


@dataclass(frozen=True)
class LinearWeights:
    """A linear classifier of vectors.

    Attributes:
        weight: (D, classes) float32.
        bias: (classes,) float32.
    """

    weight: Vectors
    bias: Vectors

    def logits(self, vectors: Vectors) -> Vectors:
        """(N, classes) float32 of (N, D) vectors."""
        return np.asarray(vectors @ self.weight + self.bias)


@dataclass(frozen=True)
class Learnt:
    """Probabilities for N images, from one task.

    Attributes:
        classes: names of the classes that have labels.
        probabilities: (N, classes) float32 in [0, 1], for suggestions; learnt from labels and pseudo-labels.
        labels: number of labelled images that the fit used.
        seconds: time of the fits and of the probabilities.
        fit: gave the probabilities.
        label_fit: learnt from labels alone; the same as ``fit`` without pseudo-labels.
        label_probabilities: (N, classes) float32 of ``label_fit``, to choose questions by.
        num_pseudo: number of pseudo-labels.
        version: number of the fit, from 1.
        multi_label: whether an image may have any number of labels.
    """

    classes: tuple[str, ...]
    probabilities: npt.NDArray[np.float32]
    labels: int
    seconds: float
    fit: LinearWeights
    label_fit: LinearWeights
    label_probabilities: npt.NDArray[np.float32]
    num_pseudo: int = 0
    version: int = 0
    multi_label: bool = False

    def suggestion(self, image: int, rejected: Collection[str], names: Collection[str]) -> dict[str, Any] | None:
        """The most probable class of an image that still exists and was not rejected; None without one.

        Args:
            image: its number.
            rejected: classes that were rejected for it.
            names: classes of the session.
        """
        ranked = self._ranked(image, rejected, names)
        return _suggestion(*ranked[0]) if ranked else None

    def suggestions(
        self, image: int, rejected: Collection[str], names: Collection[str], count: int
    ) -> list[dict[str, Any]]:
        """The first classes for an image, most probable first, given that it is of no rejected class.

        With one label per image, the probabilities of all classes that are left sum to 1.

        Args:
            image: its number.
            rejected: classes that were rejected for it.
            names: classes of the session.
            count: classes, at most.
        """
        ranked = self._ranked(image, rejected, names)
        left = 1.0 if self.multi_label else max(sum(chance for _, chance in ranked), 1e-9)
        return [_suggestion(name, chance / left) for name, chance in ranked[:count]]

    def _ranked(self, image: int, rejected: Collection[str], names: Collection[str]) -> list[tuple[str, float]]:
        """Classes that still exist and were not rejected, with their probabilities; none for an image added since."""
        if image >= len(self.probabilities):
            return []
        row = zip(self.classes, self.probabilities[image].tolist(), strict=True)
        return sorted((pair for pair in row if pair[0] in names and pair[0] not in rejected), key=lambda pair: -pair[1])


def _suggestion(name: str, probability: float) -> dict[str, Any]:
    return {"label": name, "probability": round(probability, 4)}


def extended(learnt: Learnt, vectors: Vectors) -> Learnt:
    """The same result with probabilities for images that were added since.

    Args:
        learnt: from the first images.
        vectors: (N, D) float32 of all images.
    """
    if len(learnt.probabilities) == len(vectors):
        return learnt
    added = vectors[len(learnt.probabilities) :]
    several = learnt.multi_label
    rows, label_rows = (_probabilities(added, fit, multi_label=several) for fit in (learnt.fit, learnt.label_fit))
    return replace(
        learnt,
        probabilities=np.concatenate([learnt.probabilities, rows]),
        label_probabilities=np.concatenate([learnt.label_probabilities, label_rows]),
    )


def learn(vectors: Vectors, task: LearnTask, start: Learnt | None = None) -> Learnt:
    """Fits logistic regression, one for each label if there may be several, and gives probabilities for all images.

    With a pool, a second fit also learns from pseudo-labels, see ``pseudo_labels``.

    Args:
        vectors: (N, D) float32 of all images.
        task: learnable labels.
        start: the fit before, from whose weights a fit with some more labels takes a few steps.
    """
    started, multi_label = time.monotonic(), task.labels.ndim == 2
    fit = label_fit = _fitted(vectors, task, None if start is None else (start.classes, start.label_fit))
    found = label_found = _probabilities(vectors, fit, multi_label=multi_label)
    images, labels = pseudo_labels(label_found, task)
    if len(images):
        weights = np.repeat((1.0, PSEUDO_WEIGHT), (len(task.images), len(images)))
        more = LearnTask(np.append(task.images, images), np.append(task.labels, labels), task.classes)
        before = (task.classes, label_fit) if start is None else (start.classes, start.fit)
        fit = _fitted(vectors, more, before, weights)
        found = _probabilities(vectors, fit, multi_label=False)
    seconds = round(time.monotonic() - started, 3)
    return Learnt(
        task.classes,
        found,
        len(task.images),
        seconds,
        fit,
        label_fit,
        label_found,
        num_pseudo=len(images),
        multi_label=multi_label,
    )


def _fitted(
    vectors: Vectors,
    task: LearnTask,
    start: tuple[tuple[str, ...], LinearWeights] | None,
    sample_weight: npt.NDArray[np.float64] | None = None,
) -> LinearWeights:
    """A fit to labels; ``start``: classes and weights of the fit before."""
    loss: Literal["binary", "logistic"] = "binary" if task.labels.ndim == 2 else "logistic"
    all_rows = [np.arange(len(task.images))]
    fits = LinearFits(vectors[task.images], task.labels, all_rows, loss=loss, sample_weight=sample_weight)
    if start is not None:
        classes, weights = start
        for place, name in enumerate(task.classes):
            if name in classes:
                before = classes.index(name)
                fits.weight[:, 0, place] = torch.from_numpy(weights.weight[:, before])
                fits.bias[0, place] = float(weights.bias[before])
    fits.fit(C, rounds=None if start is None else STEPS)
    return LinearWeights(fits.weight[:, 0].numpy().astype(np.float32), fits.bias[0].numpy().astype(np.float32))


def _probabilities(vectors: Vectors, fit: LinearWeights, *, multi_label: bool) -> npt.NDArray[np.float32]:
    return probabilities_of(fit.logits(vectors), multi_label=multi_label).astype(np.float32)


def pseudo_labels(
    probabilities: npt.NDArray[np.float32], task: LearnTask
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Images of the pool that get a pseudo-label, and their labels; none if an image may have several labels.

    An image gets one if its prediction is certain and its group of similar images has a label of that class given by a
    person: images of a class without a name are in groups that have none.

    Args:
        probabilities: (N, classes) of all images, learnt from labels alone.
        task: labels.
    """
    if task.pool is None or task.labels.ndim == 2:
        return np.empty(0, np.int64), np.empty(0, np.int64)
    images = task.pool.images
    rows = probabilities[images]
    predicted = rows.argmax(axis=1)
    chosen = np.flatnonzero((rows.max(axis=1) >= CERTAIN) & task.pool.familiar(images, predicted, task))
    chosen = chosen[:: max(1, -(-len(chosen) // MOST_PSEUDO))]
    return images[chosen], predicted[chosen]


def warm_up() -> None:
    """Imports everything that a fit needs, by a fit to two vectors: PyTorch's optimizers import its compiler."""
    learn(np.eye(2, dtype=np.float32), LearnTask(np.arange(2), np.arange(2), ("one", "other")))


@final
class Learner:
    """Fits in a thread. While a fit runs, only the newest task waits.

    It imports what a fit needs when it is created: on a busy machine that takes longer than the first fits.

    Args:
        vectors: (N, D) float32 of all images.
        publish: receives each result, from the thread.
    """

    def __init__(self, vectors: Vectors, publish: Callable[[Learnt], None]) -> None:
        self._vectors, self._publish = vectors, publish
        warm_up()
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

    def extend(self, vectors: Vectors) -> None:
        """Takes the (N, D) vectors of more images, the first of which are those before."""
        with self._ready:
            self._vectors = vectors

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
        while True:
            with self._ready:
                self._ready.wait_for(lambda: self._task is not None or self._is_closed)
                if self._is_closed or self._task is None:
                    return
                task, self._task, self._is_fitting = self._task, None, True
                vectors = self._vectors
            try:
                if task.is_learnable:
                    self._version += 1
                    self._last = replace(learn(vectors, task, self._last), version=self._version)
                    self._publish(self._last)
            finally:
                with self._ready:
                    self._is_fitting = False
                    self._ready.notify_all()


def task_of(
    answers: Sequence[tuple[int, Sequence[str]]],
    names: Sequence[str],
    *,
    multi_label: bool,
    pool: PseudoLabelPool | None = None,
) -> LearnTask:
    """The task of labelled images.

    Args:
        answers: number and labels of each image; without ``multi_label``, one label.
        names: classes of the session; those without images are left out.
        multi_label: whether an image may have any number of labels.
        pool: images that may get a pseudo-label.
    """
    used = {label for _, labels in answers for label in labels}
    classes = tuple(name for name in names if name in used)
    place = {name: number for number, name in enumerate(classes)}
    images = np.array([image for image, _ in answers], np.int64)
    if not multi_label:
        return LearnTask(images, np.array([place[labels[0]] for _, labels in answers], np.int64), classes, pool)
    labels = np.zeros((len(answers), len(classes)), np.int64)
    for row, (_, given) in enumerate(answers):
        labels[row, [place[name] for name in given]] = 1
    return LearnTask(images, labels, classes)
