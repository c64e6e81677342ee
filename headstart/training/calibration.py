"""Probabilities that can be taken at their word: a temperature, and from which one on an answer is sure enough."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from headstart.training.targets import Labels, Logits, are_several, folds_of, probabilities_of
from headstart.training.temperature import best_scale

LEAST = 50
"""Images below which nothing is fitted."""

FOLDS = 5

WANTED = 0.95
"""Share of the answers that are to be right, where nothing else is asked for."""

Right = npt.NDArray[np.bool_]
Chances = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Calibration:
    """What was fitted on validation images.

    Attributes:
        temperature: that logits are divided by.
        images: that it was fitted on; 0 where there were too few, and the temperature is 1.
        wanted: share of the answers that are to be right, in (0, 1); 0 where each image may bear several labels.
        threshold: probability of the best class below which the model is unsure; 0: never, above 1: always.
        coverage: share of the images that it is sure of, each fifth judged by the threshold of the others.
        accuracy: share of those that are right, likewise; 0 where there are none.
    """

    temperature: float = 1.0
    images: int = 0
    wanted: float = 0.0
    threshold: float = 0.0
    coverage: float = 1.0
    accuracy: float = 0.0

    def as_json(self) -> dict[str, Any]:
        """A JSON document that ``Calibration(**document)`` reads."""
        return asdict(self)


def calibrate(logits: Logits, labels: Labels, *, wanted: float) -> Calibration:
    """Fits a temperature and a threshold.

    Args:
        logits: (N, classes) of images that were not learnt from.
        labels: of these, see ``training.targets``.
        wanted: share of the answers that are to be right, in (0, 1).
    """
    if len(labels) < LEAST:
        return Calibration()
    scale = calibrated_scale(logits, labels)
    if are_several(labels):
        return Calibration(1 / scale, len(labels))
    chances = probabilities_of(scale * logits, several=False)
    right, best = chances.argmax(axis=1) == labels, chances.max(axis=1)
    sure = np.zeros(len(labels), dtype=bool)
    for learn, judge in folds_of(labels, FOLDS, 0):
        sure[judge] = best[judge] >= threshold_for(wanted, best[learn], right[learn])
    return Calibration(
        1 / scale,
        len(labels),
        wanted,
        threshold_for(wanted, best, right),
        float(sure.mean()),
        float(right[sure].mean()) if sure.any() else 0.0,
    )


def calibrated_scale(logits: Logits, labels: Labels) -> float:
    """1 / temperature, with one wrong answer more than there were, so that no number of right ones makes it certain.

    Source: Guo et al., "On Calibration of Modern Neural Networks", ICML 2017; the answer more is after Platt (1999).
    """
    return best_scale(logits, labels, doubt=1 / (len(labels) + 2))


def by_others(logits: Logits, labels: Labels) -> Chances:
    """(N, classes) probabilities of the images on which a temperature is fitted, each fifth by that of the others."""
    chances = np.empty(logits.shape)
    several = are_several(labels)
    if len(labels) < LEAST:
        return probabilities_of(logits, several=several)
    for learn, judge in folds_of(labels, FOLDS, 0):
        scale = calibrated_scale(logits[learn], labels[learn])
        chances[judge] = probabilities_of(scale * logits[judge], several=several)
    return chances


def threshold_for(wanted: float, best: Chances, right: Right) -> float:
    """The lowest probability from which on a wanted share of the answers is right.

    Args:
        wanted: that share, in (0, 1).
        best: (N,) probability of each image's most probable class.
        right: (N,) whether it is its own.

    Returns:
        0 where all answers together are as good; above 1 where none are.
    """
    order = np.argsort(-best, kind="stable")
    ranked, hits = best[order], np.cumsum(right[order])
    ends = np.flatnonzero(np.diff(ranked, append=-1.0))  # equal probabilities are answered together or not at all
    enough = ends[hits[ends] >= wanted * (ends + 1)]
    if not len(enough):
        return math.nextafter(1.0, 2.0)
    return 0.0 if enough[-1] == len(best) - 1 else float(ranked[enough[-1]])
