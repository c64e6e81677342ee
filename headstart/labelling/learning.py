"""What a session learns from its labels: suggestions, queues, clusters, honest accuracy and possible mistakes."""

from __future__ import annotations

import threading
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, final

import numpy as np
import numpy.typing as npt

from headstart.labelling.clusters import EXAMPLES, Clusters
from headstart.labelling.frozen_pass import PassResult
from headstart.labelling.image_list import ImageList
from headstart.labelling.journal import Journal
from headstart.labelling.knowledge import AccuracyPoint, accuracy_document, advice, comparable, forecast
from headstart.labelling.label_state import LabelState
from headstart.labelling.learner import CERTAIN, C, Learner, Learnt, LearnTask, PseudoLabelPool, extended, task_of
from headstart.labelling.queues import (
    CERTAIN_EVERY,
    FAR_EVERY,
    SUGGESTED_FROM,
    Candidates,
    far_from_labels,
    informative,
    to_confirm,
    unchecked,
)
from headstart.labelling.run_doubts import ContradictedLabel, contradicted_labels
from headstart.labelling.vectors import Projection, Vectors
from headstart.trust.label_errors import find_label_errors

POINT_EVERY: Final = 5
"""Labels between two points of the curve, at least."""


TYPICAL_FIRST: Final = 20
"""Labels before which the images asked for are those that stand for clusters: a classifier of fewer knows little."""

CLEAR_DOUBT: Final = 0.5
"""By how much another class must be more probable than the label for a second look."""

LEAST_OFFERED, MOST_OFFERED = 5, 0.1
"""Labels offered for a second look, at most: a number, or a share of all if that is more."""


@dataclass(frozen=True)
class DoubtedLabel:
    """A label that is probably wrong.

    Attributes:
        image: its number.
        label: the more probable class; with several labels the one whose answer is least believed.
        probability: of that class, 0-1.
        by_run: whether the trained model says so, not the classifier of the session.
    """

    image: int
    label: str
    probability: float
    by_run: bool = False


@final
class SessionLearning:
    """Learns from the labels once the pass is ready. The caller holds the lock of the session, but in ``mistakes``.

    Args:
        result: of the pass.
        images: of the session.
        journal: of the session.
        multi_label: whether an image may have any number of labels.
        seed: of the clusters.
        publish: receives each result of the learner, from its thread.
        lock: of the session; reentrant.
    """

    def __init__(
        self,
        result: PassResult,
        images: ImageList,
        journal: Journal,
        *,
        multi_label: bool,
        seed: int,
        publish: Callable[[Learnt], None],
        lock: AbstractContextManager[object],
    ) -> None:
        self.result, self._images, self._journal = result, images, journal
        self._multi_label = multi_label
        self._projection = Projection.of_features(result.features[result.usable])
        self.vectors = self._projection.vectors(result.features)
        self._is_first = _first_images(result)
        self._clusters = Clusters.of_vectors(self.vectors, np.flatnonzero(self._is_first), seed)
        self._groups = self._clusters.cluster_of(len(result.keys))[result.stacks.first]
        self.learnt: Learnt | None = None
        self._learner = Learner(self.vectors, publish)
        self._mistakes: tuple[int, list[DoubtedLabel]] = -2, []
        self._contradicted: tuple[Path | None, list[ContradictedLabel]] = None, []
        self._lock, self._looking = lock, threading.Lock()
        self._candidates: tuple[tuple[int, int], Candidates] | None = None
        self._suggested: tuple[Candidates | None, dict[str, int]] = None, {}

    @property
    def learner(self) -> Learner:
        """Fits in the background."""
        return self._learner

    @property
    def _state(self) -> LabelState:
        return self._journal.state

    def predict(self, features: npt.NDArray[np.float32]) -> list[str]:
        """The most probable class of other images; ``learnt`` must not be None.

        Args:
            features: (N, F) float32 of the same backbone.
        """
        assert self.learnt is not None
        logits = self.learnt.fit.logits(self._projection.vectors(features))
        return [self.learnt.classes[place] for place in logits.argmax(axis=1)]

    def submit(self) -> None:
        """Has the classifier refitted to the labels of now."""
        self._learner.submit(self._task())

    def _task(self) -> LearnTask:
        """Labelled images outside the blind sample and other held-out splits; one of each stack."""
        state, firsts = self._state, self.result.stacks.first
        kinds = ("label", "none") if self._multi_label else ("label",)
        chosen: dict[int, tuple[int, tuple[str, ...]]] = {}
        for path, answer in state.answers.items():
            if answer.kind in kinds and state.split_of(path) == "train":
                image = self._images.number_of(path)
                if image is not None and image < len(firsts) and self.result.usable[image]:
                    chosen.setdefault(int(firsts[image]), (image, answer.labels))
        return task_of(list(chosen.values()), state.names, multi_label=self._multi_label, pool=self._pool())

    def _pool(self) -> PseudoLabelPool:
        """Unlabelled images that may get a pseudo-label.

        Left out are images for which a class was rejected, and groups that have an image of none of the classes.
        """
        state, open_ = self._state, self.is_open()
        for path in state.rejected:
            image = self._images.number_of(path)
            if image is not None and image < len(open_):
                open_[image] = False
        none = (self._images.number_of(path) for path, answer in state.answers.items() if answer.kind == "none")
        foreign = [self._groups[image] for image in none if image is not None and image < len(open_)]
        return PseudoLabelPool(np.flatnonzero(open_ & ~np.isin(self._groups, foreign)), self._groups)

    def join(self, result: PassResult) -> list[str]:
        """Takes a result with more images, which are learnt from and asked for from now on.

        They are in no cluster, so that clusters and questions of the session stay as they are.

        Args:
            result: of all images, the first of which are those before.

        Returns:
            Paths of added images that are near-duplicates of one of the blind sample, which they belong to.
        """
        before = len(self.result.keys)
        self.vectors = np.concatenate([self.vectors, self._projection.vectors(result.features[before:])])
        self.result, self._is_first = result, _first_images(result)
        self._groups = self._clusters.cluster_of(len(result.keys))[result.stacks.first]
        self._candidates = None
        self._learner.extend(self.vectors)
        if self.learnt is not None:
            self.learnt = extended(self.learnt, self.vectors)
        paths, blind = self._images.paths, self._state.blind_set
        return [
            paths[image]
            for image in range(before, len(result.keys))
            if any(paths[other] in blind for other in result.stacks.members(image))
        ]

    def take(self, learnt: Learnt) -> None:
        """Takes a result of the learner, and adds a point to the curve."""
        self.learnt = extended(learnt, self.vectors)
        correct, count = self.blind_result()
        last = self.curve()[-1].labels if self.curve() else -POINT_EVERY
        if count and abs(learnt.labels - last) >= POINT_EVERY:
            point = {"labels": learnt.labels, "correct": correct, "count": count}
            self._journal.note({"event": "accuracy", **point})

    def is_open(self) -> npt.NDArray[np.bool_]:
        """(N,) unlabelled images outside the blind sample, the first of their stacks."""
        open_: npt.NDArray[np.bool_] = self._is_first.copy()
        state = self._state
        for path in (*state.answers, *state.blind):
            image = self._images.number_of(path)
            if image is not None and image < len(open_):
                open_[image] = False
        return open_

    def candidates(self, revision: int) -> Candidates:
        """What may be asked for or confirmed; the same until labels or probabilities change."""
        stamp = revision, -1 if self.learnt is None else self.learnt.version
        if self._candidates is None or self._candidates[0] != stamp:
            self._candidates = stamp, self._candidates_of(np.flatnonzero(self.is_open()))
        return self._candidates[1]

    def _candidates_of(self, images: npt.NDArray[np.int64]) -> Candidates:
        learnt, state = self.learnt, self._state
        if learnt is None:
            return Candidates(images, (), np.zeros((len(images), 0), np.float32), self._multi_label)
        if self._multi_label:
            images = np.union1d(images, self._partly_confirmed())
        known = self._known(learnt)
        classes = tuple(learnt.classes[place] for place in known)
        chances = learnt.probabilities[images][:, known]
        row_of = {int(image): row for row, image in enumerate(images)}
        place_of = {name: place for place, name in enumerate(classes)}
        answered = ((path, a.labels) for path, a in state.answers.items()) if self._multi_label else ()
        for path, names in (*state.rejected.items(), *answered):
            row = row_of.get(-1 if (image := self._images.number_of(path)) is None else image)
            if row is not None:
                chances[row, [place_of[name] for name in names if name in place_of]] = 0
        return Candidates(images, classes, chances, self._multi_label)

    def _known(self, learnt: Learnt) -> list[int]:
        """Places of the learnt classes that still exist."""
        names = set(self._state.names)
        return [place for place, name in enumerate(learnt.classes) if name in names]

    def _partly_confirmed(self) -> npt.NDArray[np.int64]:
        """With several labels: images labelled in the confirm queue, which may get more labels there."""
        state = self._state
        paths = (p for p, a in state.answers.items() if a.source == "confirm" and p not in state.blind_set)
        numbers = (self._images.number_of(path) for path in paths)
        return np.array(
            [n for n in numbers if n is not None and n < len(self._is_first) and self._is_first[n]], np.int64
        )

    def ask(self, count: int, revision: int) -> tuple[list[int], int]:
        """Images to ask for, at first those that stand for clusters; and the number of unlabelled ones."""
        open_, learnt = self.is_open(), self.learnt
        found = self.candidates(revision)
        if learnt is None or learnt.labels < TYPICAL_FIRST or len(found.classes) < 2 - self._multi_label:
            answered = np.zeros(len(open_), bool)
            answered[self._task().images] = True
            return self._clusters.in_turn(open_, count, answered), int(open_.sum())
        rows = np.flatnonzero(open_[found.images])
        images = found.images[rows]
        chances = np.where(found.chances[rows] > 0, learnt.label_probabilities[images][:, self._known(learnt)], 0)
        among = Candidates(images, found.classes, chances, self._multi_label)
        questions = self._exploring(among, count)
        others = among.without(questions.values())
        asked = informative(others, self.vectors, count - len(questions)) if len(questions) < count else []
        for place, image in sorted(questions.items()):
            asked.insert(place, image)
        return asked, int(open_.sum())

    def _exploring(self, among: Candidates, count: int) -> dict[int, int]:
        """Place in the next questions -> image that is asked to find classes without a name, see ``CERTAIN_EVERY``."""
        learnt, answered = self.learnt, len(self._state.answers)
        assert learnt is not None
        task, found = self._task(), dict[int, int]()
        for place in range(count):
            number, image = answered + place, None
            left = among.without(found.values())
            if number % CERTAIN_EVERY == 0 and not self._multi_label and task.classes == among.classes and task.pool:
                familiar = task.pool.familiar(left.images, left.chances.argmax(axis=1), task)
                image = unchecked(left, self._groups[left.images], familiar, CERTAIN)
            if image is None and number % FAR_EVERY == 0 and len(task.images):
                image = far_from_labels(left.images, task.images, self.vectors, number)
            if image is not None:
                found[place] = image
        return found

    def confirm(self, label: str | None, count: int, revision: int) -> tuple[str | None, int, list[int]]:
        """See ``queues.to_confirm``."""
        return to_confirm(self.candidates(revision), self.vectors, label, count)

    def suggested(self, revision: int) -> dict[str, int]:
        """Class -> number of images that are suggested for it."""
        found = self.candidates(revision)
        if self._suggested[0] is not found:
            place = {name: number for number, name in enumerate(found.classes)}
            counts = {
                name: int((found.chances[places, place[name]] >= SUGGESTED_FROM).sum())
                for name, places in found.predicted().items()
            }
            self._suggested = found, counts
        return self._suggested[1]

    def cluster_images(self, number: int) -> list[int]:
        """Images of a cluster outside the blind sample, nearest to its centre first; none for an unknown number."""
        if not 0 <= number < len(self._clusters.members):
            return []
        paths, blind = self._images.paths, self._state.blind_set
        return [int(image) for image in self._clusters.members[number] if paths[image] not in blind]

    def clusters(self) -> list[dict[str, Any]]:
        """Document of each cluster; unlabelled examples come first, those with a rejected class after the others."""
        open_, state, paths = self.is_open(), self._state, self._images.paths
        found = []
        for number in range(len(self._clusters.members)):
            images = self.cluster_images(number)
            left = sorted((image for image in images if open_[image]), key=lambda image: paths[image] in state.rejected)
            names = [state.answers[paths[i]].labels for i in images if paths[i] in state.answers]
            given = [label for labels in names for label in labels]
            found.append(
                {
                    "id": number,
                    "size": len(images),
                    "unlabelled": len(left),
                    "examples": (left + [image for image in images if not open_[image]])[:EXAMPLES],
                    "suggested": max(dict.fromkeys(given), key=given.count) if given else self._predicted(left),
                }
            )
        return [cluster for cluster in found if cluster["size"]]

    def _predicted(self, images: list[int]) -> str | None:
        """The class that is most probable on average."""
        if self.learnt is None or not images:
            return None
        best = self.learnt.classes[int(self.learnt.probabilities[images].mean(axis=0).argmax())]
        return best if best in self._state.names else None

    def blind_images(self) -> tuple[list[int], list[int]]:
        """Images of the blind sample, one of each stack: those without a blind label, and those with one."""
        state = self._state
        left: list[int] = []
        done: list[int] = []
        for path in state.blind:
            image = self._images.number_of(path)
            if image is not None and image < len(self._is_first) and self._is_first[image]:
                answer = state.answers.get(path)
                (done if answer is not None and answer.source == "blind" else left).append(image)
        return left, done

    def blind_result(self) -> tuple[int, int]:
        """Correct predictions among the blind images of a class, and their number."""
        state, paths = self._state, self._images.paths
        kinds = ("label", "none") if self._multi_label else ("label",)
        answers = {image: state.answers[paths[image]] for image in self.blind_images()[1]}
        judged = {image: answer for image, answer in answers.items() if answer.kind in kinds}
        if self.learnt is None or not judged:
            return 0, 0
        right = 0
        for image, answer in judged.items():
            row, names = self.learnt.probabilities[image], self.learnt.classes
            if self._multi_label:
                right += {names[i] for i in np.flatnonzero(row >= SUGGESTED_FROM)} == set(answer.labels)
            else:
                right += names[int(row.argmax())] in answer.labels
        return right, len(judged)

    def curve(self) -> list[AccuracyPoint]:
        """Accuracy over labels, oldest first; of points with as many labels the latest."""
        events = (e for e in self._journal.events if e["event"] == "accuracy")
        points = {e["labels"]: AccuracyPoint(e["labels"], e["correct"], e["count"]) for e in events}
        return [points[labels] for labels in sorted(points)]

    def knowledge(self) -> dict[str, Any]:
        """Accuracy, curve, forecast and advice, as JSON."""
        left, done = self.blind_images()
        curve = comparable(self.curve())
        expected = forecast(curve)
        words = advice(len(done), len(left) + len(done), expected, int(self.is_open().sum()))
        return {
            "accuracy": accuracy_document(*self.blind_result()),
            "curve": [point.as_json() for point in curve],
            "forecast": None if expected is None else vars(expected) | {},
            "words": words,
        }

    def mistakes(self, run: Path | None = None) -> list[DoubtedLabel]:
        """Images whose labels are probably wrong; most likely mistakes first. Takes the lock only briefly.

        What the trained model contradicts comes first, unless the label has been changed since; then what the
        classifier doubts, nothing with too few labels, see ``find_label_errors``. Left out are images of the blind
        sample, those whose label was given in a second look, and those for which a person rejected the other class.

        Args:
            run: folder of the last finished run on these labels.
        """
        if run != self._contradicted[0]:
            self._contradicted = run, [] if run is None else contradicted_labels(run)
        with self._lock:
            version, task = -1 if self.learnt is None else self.learnt.version, self._task()
        with self._looking:
            if self._mistakes[0] != version:
                self._mistakes = version, _find_mistakes(self.vectors, task)
            found = self._mistakes[1]
        with self._lock:
            state, names = self._state, self._state.names
            first: dict[int, DoubtedLabel] = {}
            for one in self._contradicted[1]:
                answer, image = state.answers.get(one.path), self._images.number_of(one.path)
                if image is None or answer is None or one.path in state.blind_set or one.predicted not in names:
                    continue
                if sorted(answer.labels) == sorted(one.labels):
                    shown = int(self.result.stacks.first[image]) if image < len(self._is_first) else image
                    first.setdefault(shown, DoubtedLabel(shown, one.predicted, one.probability, by_run=True))
            looked_at = {path for path, answer in state.answers.items() if answer.source == "second look"}
            every = [*first.values(), *(one for one in found if one.image not in first)]
            settled = {one.image for one in every if one.label in state.rejected.get(self._images.paths[one.image], ())}
        return [one for one in every if self._images.paths[one.image] not in looked_at and one.image not in settled]


def _first_images(result: PassResult) -> npt.NDArray[np.bool_]:
    """(N,) usable images that are the first of their stacks."""
    return np.asarray(result.usable & (result.stacks.first == np.arange(len(result.keys))))


def _find_mistakes(vectors: Vectors, task: LearnTask) -> list[DoubtedLabel]:
    """Labels that confident learning doubts and that are much less probable than another one, least probable first.

    Images that were asked for are difficult, so that confident learning alone doubts a quarter of right labels.
    """
    errors = find_label_errors(vectors[task.images], task.labels, c=C, standardise=False) if task.is_learnable else None
    if errors is None:
        return []
    found = []
    for place in errors.positions:
        row, given = errors.probabilities[place], task.labels[place]
        doubts = np.abs(given - row) if task.labels.ndim == 2 else row - row[given]
        best = int(doubts.argmax())
        if doubts[best] > CLEAR_DOUBT:
            found.append(DoubtedLabel(int(task.images[place]), task.classes[best], float(row[best])))
    return found[: max(LEAST_OFFERED, round(MOST_OFFERED * len(task.images)))]
