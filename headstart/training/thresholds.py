"""From which probability on an image is given a label, where it may bear any number of them."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from headstart.training.targets import Labels, folds_of

Probabilities = npt.NDArray[np.float64]

MIDDLE = 0.5
"""The threshold where nothing says better."""

LEAST = 5
"""Images that bear a label, and others that do not, below which its threshold is not chosen."""

FOLDS = 5


def best_thresholds(probabilities: Probabilities, labels: Labels) -> Probabilities:
    """The threshold of each label at which its F1 is greatest; ``MIDDLE`` where that does as well.

    Args:
        probabilities: (N, classes) in [0, 1].
        labels: (N, classes) int64 of 0 and 1.

    Returns:
        (classes,) float64; a label is given where its probability is at least that.
    """
    return np.array([_best(probabilities[:, i], labels[:, i]) for i in range(labels.shape[1])])


def given_by(thresholds: npt.ArrayLike, probabilities: Probabilities) -> Labels:
    """(N, classes) int64 of 0 and 1: the labels that images are given."""
    return (probabilities >= np.asarray(thresholds)).astype(np.int64)


def given_by_others(probabilities: Probabilities, labels: Labels) -> Labels:
    """As ``given_by``, but each fifth of the images by the thresholds that are best for the others.

    So images on which thresholds are chosen say honestly how good such thresholds are.
    """
    given = np.zeros_like(labels)
    if len(labels) < FOLDS:
        return given_by(MIDDLE, probabilities)
    for learn, judge in folds_of(labels, FOLDS, 0):
        given[judge] = given_by(best_thresholds(probabilities[learn], labels[learn]), probabilities[judge])
    return given


def _best(chances: Probabilities, bears: Labels) -> float:
    total = int(bears.sum())
    if min(total, len(bears) - total) < LEAST:
        return MIDDLE
    order = np.argsort(-chances, kind="stable")
    ranked, hits = chances[order], np.cumsum(bears[order])
    ends = np.flatnonzero(np.diff(ranked, append=-1.0))  # equal probabilities are given together or not at all
    f1 = 2 * hits[ends] / (ends + 1 + total)
    best = f1.max()
    found = []
    for end in ends[f1 == best]:
        high, low = ranked[end], ranked[end + 1] if end + 1 < len(ranked) else 0.0
        found.append(MIDDLE if low < MIDDLE <= high else (low + high) / 2)
    return float(min(found, key=lambda threshold: abs(threshold - MIDDLE)))
