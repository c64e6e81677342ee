"""Findings from features: probable label errors, and outliers that fit no class."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from headstart.data.checks import image_finding
from headstart.data.dataset import Dataset
from headstart.data.finding import Finding
from headstart.progress import Progress
from headstart.training.losses import Labels, Parts, is_multi_label
from headstart.training.penalty import FOLDS
from headstart.trust.label_errors import LabelErrors, cached_label_errors
from headstart.trust.ood import find_outliers

WRONG_LABEL = "wrong-label"
OUTLIER = "outlier"


def inspect_features(
    dataset: Dataset,
    positions: Sequence[int],
    features: npt.NDArray[np.float32],
    *,
    c: float | None = None,
    seed: int = 0,
    together: Parts | None = None,
    progress: Progress | None = None,
    cache: Path | None = None,
) -> list[Finding]:
    """Findings about probable label errors and outliers.

    Args:
        dataset: the images.
        positions: positions of N images to judge.
        features: (N, D) float32 features of the images to judge.
        c: see ``label_errors.find_label_errors``.
        seed: seed of the cross-validation folds.
        together: (N,) numbers of parts (groups, near-duplicates) that cross-validation does not divide.
        progress: receives the number of fits done.
        cache: the cache folder, where label errors are stored; default ``cache_root()``.
    """
    places, labels, classes = _judged(dataset, np.array(positions))
    used = features[places]
    of = np.array(positions)[places]
    issues = None
    if len(classes):
        parts = None if together is None else together[places]
        issues = cached_label_errors(used, labels, c=c, seed=seed, together=parts, progress=progress, cache=cache)
    wrong = issues.positions if issues is not None else np.empty(0, np.int64)
    found = []
    if issues is not None and len(wrong):
        reasons = {int(of[i]): _disagreement(issues, labels, classes, i) for i in wrong.tolist()}
        message = f"{len(wrong):,} of {len(labels):,} labels are probably wrong"
        found.append(image_finding(WRONG_LABEL, "warning", message, dataset, reasons))
    mislabelled = set(wrong.tolist())
    outliers = {int(of[i]): far for i, far in find_outliers(used, labels).items() if i not in mislabelled}
    if outliers:
        message = f"{len(outliers):,} image(s) are outliers in their class"
        if dataset.multi_label:
            message = f"{len(outliers):,} image(s) are outliers"
        reasons = {i: f"{far:.1f} times the median distance to other images" for i, far in outliers.items()}
        found.append(image_finding(OUTLIER, "warning", message, dataset, reasons))
    return found


def _judged(
    dataset: Dataset, positions: npt.NDArray[np.int64]
) -> tuple[npt.NDArray[np.int64], Labels, tuple[str, ...]]:
    """(places in ``positions``, labels, class names) of the classes with at least five images, for cross-validation."""
    labels = dataset.labels[positions]
    if is_multi_label(labels):
        bearing = labels.sum(axis=0)
        kept = np.flatnonzero((bearing >= FOLDS) & (bearing <= len(labels) - FOLDS))
        return np.arange(len(positions)), labels[:, kept], tuple(dataset.classes[i] for i in kept)
    kept = np.flatnonzero(np.bincount(labels, minlength=len(dataset.classes)) >= FOLDS)
    places = np.flatnonzero(np.isin(labels, kept))
    return places, np.searchsorted(kept, labels[places]), tuple(dataset.classes[i] for i in kept)


def _disagreement(issues: LabelErrors, labels: Labels, classes: Sequence[str], place: int) -> str:
    probabilities = issues.probabilities[place]
    if is_multi_label(labels):
        wrong = [i for i in range(len(classes)) if (probabilities[i] > 0.5) != (labels[place, i] > 0)]
        wrong = wrong or [int(np.where(labels[place] > 0, probabilities, 1 - probabilities).argmin())]
        parts = [f"{'not ' if labels[place, i] else ''}{classes[i]} ({100 * probabilities[i]:.1f} %)" for i in wrong]
        return f"rather {', '.join(parts)}"
    best = int(probabilities.argmax())
    label = labels[place]
    given = f"labelled {classes[label]} ({100 * probabilities[label]:.1f} %)"
    return f"{given}, more likely {classes[best]} ({100 * probabilities[best]:.1f} %)" if best != label else given
