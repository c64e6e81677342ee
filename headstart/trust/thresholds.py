"""From which probability on an image is given a label, where it may bear any number of them."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from scipy.special import logit
from sklearn.linear_model import LogisticRegression

from headstart.training.losses import Labels, Parts, folds_of

Probabilities = npt.NDArray[np.float64]

DEFAULT_THRESHOLD = 0.5
"""The threshold where nothing says better."""

LEAST = 5
"""Images that bear a label, and others that do not, below which its threshold is not chosen."""

FOLDS = 5

NEARLY = 1e-6
"""Probabilities are taken to be no nearer to 0 and 1."""

CALIBRATION_C = 1e3
"""Inverse strength of the penalty on the two numbers that calibrate a label: next to none."""


def best_thresholds(probabilities: Probabilities, labels: Labels) -> Probabilities:
    """The threshold of each label with the greatest expected F1; ``DEFAULT_THRESHOLD`` where that does as well.

    What is to be expected follows from the label's own probabilities once they are calibrated on these images by two
    numbers. The threshold that was best for these very images follows chance: it was worth less than none
    (docs/results/2026-11-23-multi-label.md).

    Args:
        probabilities: (N, classes) in [0, 1].
        labels: (N, classes) int64 of 0 and 1.

    Returns:
        (classes,) float64; a label is given where its probability is at least that.

    Source: Lipton et al., "Optimal Thresholding of Classifiers to Maximize F1 Measure", ECML 2014; the calibration is
    that of Platt, "Probabilistic Outputs for Support Vector Machines", 1999.
    """
    return np.array([_best(probabilities[:, i], labels[:, i]) for i in range(labels.shape[1])])


def labels_above(thresholds: npt.ArrayLike, probabilities: Probabilities) -> Labels:
    """(N, classes) int64 of 0 and 1: the labels that images are given."""
    return (probabilities >= np.asarray(thresholds)).astype(np.int64)


def cross_fitted_labels(probabilities: Probabilities, labels: Labels, *, together: Parts | None = None) -> Labels:
    """As ``labels_above``, but each fifth of the images by the thresholds that are best for the others.

    So images on which thresholds are chosen say honestly how good such thresholds are.

    Args:
        probabilities: (N, classes) in [0, 1].
        labels: (N, classes) int64 of 0 and 1.
        together: (N,) numbers of parts (groups, near copies) that the fifths do not divide.
    """
    given = np.zeros_like(labels)
    if len(labels) < FOLDS:
        return labels_above(DEFAULT_THRESHOLD, probabilities)
    for learn, judge in folds_of(labels, FOLDS, 0, together=together):
        given[judge] = labels_above(best_thresholds(probabilities[learn], labels[learn]), probabilities[judge])
    return given


def _best(chances: Probabilities, bears: Labels) -> float:
    total = int(bears.sum())
    if min(total, len(bears) - total) < LEAST:
        return DEFAULT_THRESHOLD
    odds = logit(np.clip(chances, NEARLY, 1 - NEARLY))[:, None]
    calibrated = LogisticRegression(C=CALIBRATION_C).fit(odds, bears).predict_proba(odds)[:, 1]
    order = np.argsort(-chances, kind="stable")
    ranked, hits = chances[order], np.cumsum(calibrated[order])
    ends = np.flatnonzero(np.diff(ranked, append=-1.0))  # equal probabilities are given together or not at all
    f1 = 2 * hits[ends] / (ends + 1 + hits[-1])
    end = ends[f1.argmax()]
    high, low = ranked[end], ranked[end + 1] if end + 1 < len(ranked) else 0.0
    return DEFAULT_THRESHOLD if low < DEFAULT_THRESHOLD <= high else float(low + high) / 2
