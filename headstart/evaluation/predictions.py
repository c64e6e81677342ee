"""Predictions on a named set of images, with the right answers beside them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from headstart.evaluation.metrics import Scores, score
from headstart.files import csv_text


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
    """Scores N predictions and keeps them; arguments as in ``Evaluated``."""
    return Evaluated(score(probabilities, labels, classes, name=name), tuple(paths), labels, probabilities, classes)


def predictions_csv(evaluated: Sequence[Evaluated]) -> str:
    """A table of every evaluated image: path, split, right label, given label, its probability, and every class's."""
    classes = evaluated[0].classes if evaluated else ()
    rows = [
        [
            path,
            part.scores.name,
            classes[right],
            classes[p.argmax()],
            repr(float(p.max())),
            *map(repr, p.tolist()),
        ]
        for part in evaluated
        for path, right, p in zip(part.paths, part.labels, part.probabilities, strict=True)
    ]
    header = ["path", "split", "label", "predicted", "probability", *(f"p:{name}" for name in classes)]
    return csv_text([header, *rows])
