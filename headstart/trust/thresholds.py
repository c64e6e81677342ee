"""Decision thresholds for multi-label data that maximise expected F1 (Lipton et al., 2014)."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from scipy.special import logit

from headstart.import_effects import import_quietly
from headstart.training.losses import Labels, Parts, folds_of

Probabilities = npt.NDArray[np.float64]

DEFAULT_THRESHOLD = 0.5
"""Threshold of a label with too few images to choose one."""

LEAST = 5
"""Minimum number of images with a label, and of images without, to choose its threshold."""

FOLDS = 5

NEARLY = 1e-6
"""Distance from 0 and 1 to which probabilities are clipped."""

CALIBRATION_C = 1e3
"""Inverse L2 penalty of Platt scaling: nearly none."""


def best_thresholds(probabilities: Probabilities, labels: Labels) -> Probabilities:
    """The threshold of each label with the greatest expected F1; ``DEFAULT_THRESHOLD`` where that does as well.

    The expectation uses the label's probabilities after Platt scaling on these images. The threshold with the best F1
    on the images themselves overfits: it was worse than the default threshold
    (docs/results/2026-11-23-multi-label.md).

    Args:
        probabilities: (N, classes) in [0, 1].
        labels: (N, classes) int64 of 0 and 1.

    Returns:
        (classes,) float64; a label is assigned if its probability is at least its threshold.

    Source: Lipton et al., "Optimal Thresholding of Classifiers to Maximize F1 Measure", ECML 2014; Platt scaling:
    Platt, "Probabilistic Outputs for Support Vector Machines", 1999.
    """
    return np.array([_best(probabilities[:, i], labels[:, i]) for i in range(labels.shape[1])])


def labels_above(thresholds: npt.ArrayLike, probabilities: Probabilities) -> Labels:
    """(N, classes) int64, 1 for labels whose probability reaches the threshold."""
    return (probabilities >= np.asarray(thresholds)).astype(np.int64)


def cross_fitted_labels(probabilities: Probabilities, labels: Labels, *, together: Parts | None = None) -> Labels:
    """Cross-fitted ``labels_above``: each fold by the best thresholds of the others.

    So the images on which thresholds are chosen give an unbiased estimate of their quality.

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


def _best(probabilities: Probabilities, has_label: Labels) -> float:
    total = int(has_label.sum())
    if min(total, len(has_label) - total) < LEAST:
        return DEFAULT_THRESHOLD
    odds = logit(np.clip(probabilities, NEARLY, 1 - NEARLY))[:, None]
    regression = import_quietly("sklearn.linear_model").LogisticRegression(C=CALIBRATION_C)
    calibrated = regression.fit(odds, has_label).predict_proba(odds)[:, 1]
    order = np.argsort(-probabilities, kind="stable")
    ranked, hits = probabilities[order], np.cumsum(calibrated[order])
    ends = np.flatnonzero(np.diff(ranked, append=-1.0))  # equal probabilities are assigned together or not at all
    f1 = 2 * hits[ends] / (ends + 1 + hits[-1])
    end = ends[f1.argmax()]
    high, low = ranked[end], ranked[end + 1] if end + 1 < len(ranked) else 0.0
    return DEFAULT_THRESHOLD if low < DEFAULT_THRESHOLD <= high else float(low + high) / 2
