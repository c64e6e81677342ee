"""Predictions on a named set of images, with the right answers beside them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from headstart.evaluation.metrics import Scores, score
from headstart.files import csv_text

MANY_CLASSES = 200
"""Classes from which on those that do not occur are left out of a set's figures."""


@dataclass(frozen=True)
class Evaluated:
    """Predictions and scores on one named set of images.

    Attributes:
        scores: the figures.
        paths: N paths.
        labels: (N,) the right classes, as indices.
        probabilities: (N, classes) float64.
        classes: the names.
    """

    scores: Scores
    paths: tuple[str, ...]
    labels: npt.NDArray[np.int64]
    probabilities: npt.NDArray[np.float64]
    classes: tuple[str, ...]

    def mistakes(self) -> list[int]:
        """Positions of the wrong answers, the surest first."""
        given = self.probabilities.argmax(axis=1)
        wrong = np.flatnonzero(given != self.labels)
        order = np.argsort(-self.probabilities[wrong, given[wrong]], kind="stable")
        return [int(place) for place in wrong[order]]


def evaluate_predictions(
    name: str,
    paths: Sequence[str],
    labels: npt.NDArray[np.int64],
    probabilities: npt.NDArray[np.float64],
    classes: tuple[str, ...],
) -> Evaluated:
    """Scores N predictions and keeps them; arguments as in ``Evaluated``.

    Of very many classes, those that no image bears and none was given are left out of what is kept.
    """
    if len(classes) > MANY_CLASSES:
        occur = np.union1d(labels, probabilities.argmax(axis=1))
        labels, probabilities = np.searchsorted(occur, labels), probabilities[:, occur]
        classes = tuple(classes[i] for i in occur)
    return Evaluated(score(probabilities, labels, classes, name=name), tuple(paths), labels, probabilities, classes)


def predictions_csv(evaluated: Sequence[Evaluated]) -> str:
    """A table of every evaluated image: path, split, right label, given label, its probability, and every class's."""
    classes = tuple(dict.fromkeys(name for part in evaluated for name in part.classes))
    rows = []
    for part in evaluated:
        places = [classes.index(name) for name in part.classes]
        for path, right, p in zip(part.paths, part.labels, part.probabilities, strict=True):
            cells = [""] * len(classes)
            for place, chance in zip(places, p.tolist(), strict=True):
                cells[place] = repr(chance)
            names = part.classes[right], part.classes[p.argmax()]
            rows.append([path, part.scores.name, *names, repr(float(p.max())), *cells])
    header = ["path", "split", "label", "predicted", "probability", *(f"p:{name}" for name in classes)]
    return csv_text([header, *rows])
