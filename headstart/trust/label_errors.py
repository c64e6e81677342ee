"""Labels that are probably wrong, by what a classifier says that did not learn from the image (confident learning)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from headstart.concurrency import ignored_warnings
from headstart.progress import Progress, SilentProgress
from headstart.training.linear_fits import linear_fits
from headstart.training.losses import (
    Folds,
    Labels,
    Parts,
    class_sizes,
    count_learnable,
    evaluated_images,
    is_multi_label,
    learnable_folds,
    probabilities_of,
)
from headstart.training.probe import CHOOSE_FROM, FOLDS, choose_c, standardised
from headstart.trust.calibration import agreement

LEAST_KAPPA = 0.3
"""Agreement of answers and labels beyond chance below which no label is called wrong: a classifier that is often wrong
itself accuses right labels. Features of random weights reach 0.18 on hot dogs, and a third of the labels was accused;
of two classes of which 30 % of the labels are wrong, a perfect classifier reaches 0.4."""

Features = npt.NDArray[np.float32]
Chances = npt.NDArray[np.float64]


@dataclass(frozen=True)
class LabelErrors:
    """Images whose labels are probably wrong, among N.

    Attributes:
        positions: (M,) int64, the likeliest to be wrong first.
        chances: (N, classes) float64, probabilities by a classifier that did not learn from the image; NaN where none
            could be had without its own part.
    """

    positions: npt.NDArray[np.int64]
    chances: Chances


def find_label_errors(
    features: Features,
    labels: Labels,
    *,
    c: float | None = None,
    seed: int = 0,
    together: Parts | None = None,
    progress: Progress | None = None,
) -> LabelErrors | None:
    """Looks for labels that contradict the images, by cross-validated logistic regression and cleanlab.

    Twice: what is surely wrong at first teaches nobody the second time, so that it hides nothing
    (docs/results/2026-11-23-data-check.md).

    Args:
        features: (N, D) float32.
        labels: see ``training.losses``; every class has images.
        c: inverse strength of the L2 penalty; chosen by cross-validation where it is not given.
        seed: of the folds.
        together: (N,) numbers of parts (groups, near copies) that cross-validation does not divide, see
            ``losses.learnable_folds``: a copy with the same wrong label would defend it. Images of a class that is one
            part are not judged.
        progress: told of each fit.

    Returns:
        None where there are too few images to tell: under ``probe.CHOOSE_FROM`` in all or five of a class; or where
        the classifier is not well above chance (``LEAST_KAPPA``).

    Source: Northcutt et al., "Confident Learning: Estimating Uncertainty in Dataset Labels", JAIR 2021.
    """
    if (
        len(labels) < CHOOSE_FROM
        or class_sizes(labels).min() < FOLDS
        or count_learnable(labels) < 2 - is_multi_label(labels)
    ):
        return None
    x = standardised(features)[2]
    if c is None:
        c = choose_c(x, labels, balance=False, seed=seed, together=together, progress=progress or SilentProgress())[0]
    folds = learnable_folds(labels, FOLDS, seed, together=together)
    judged = evaluated_images(folds)
    with (progress or SilentProgress()).task("Looking for wrong labels", 2 * FOLDS, unit="fits") as advance:
        first = _held_out(x, labels, folds, c, advance)
        found_first = agreement(first[judged] - 0.5 * is_multi_label(labels), labels[judged])
        if not found_first.learnt or found_first.kappa < LEAST_KAPPA:
            return None
        surely = np.zeros(len(labels), dtype=bool)
        surely[judged] = _doubted(labels[judged], first[judged], surely=True)
        chances = _held_out(x, labels, _without(folds, surely, labels), c, advance)
    found = judged[_doubted(labels[judged], chances[judged], surely=False)]
    return LabelErrors(found[np.argsort(_agreement(labels, chances)[found], kind="stable")], chances)


def _held_out(x: Features, labels: Labels, folds: Folds, c: float, advance: Callable[[int], None]) -> Chances:
    multi_label = is_multi_label(labels)
    classes = labels.shape[1] if multi_label else int(labels.max()) + 1
    chances = np.full((len(x), classes), np.nan)
    judge = iter([judged for _, judged in folds])
    for group in linear_fits(x, labels, [learn for learn, _ in folds], loss="binary" if multi_label else "logistic"):
        group.fit(c, lambda: advance(0))
        advance(len(group.learn))
        scores = group.scores()
        for place in range(len(group.learn)):
            own = next(judge)
            chances[own] = probabilities_of(scores[own, place], multi_label=multi_label)
    return chances


def _without(folds: Folds, doubted: npt.NDArray[np.bool_], labels: Labels) -> Folds:
    """The folds, which do not learn from what is doubted as long as something of each class is left."""
    kept = [(learn[~doubted[learn]], judge) for learn, judge in folds]
    classes = count_learnable(labels)
    return kept if all(count_learnable(labels[learn]) == classes for learn, _ in kept) else folds


def _doubted(labels: Labels, chances: Chances, *, surely: bool) -> npt.NDArray[np.bool_]:
    """(N,) by cleanlab; ``surely`` where both of its rules say so."""
    rule = "both" if surely else "prune_by_noise_rate"
    with ignored_warnings():
        if is_multi_label(labels):
            from cleanlab.multilabel_classification.filter import find_label_issues as find_in_several

            names = [own.nonzero()[0].tolist() for own in labels]
            return np.asarray(find_in_several(names, chances, filter_by=rule, n_jobs=1))
        from cleanlab.filter import find_label_issues as find_in_one

        return np.asarray(find_in_one(labels, chances, filter_by=rule, n_jobs=1))


def _agreement(labels: Labels, chances: Chances) -> Chances:
    """(N,) probability of the label; of several, that of the answer that is least believed."""
    if is_multi_label(labels):
        return np.asarray(np.where(labels > 0, chances, 1 - chances).min(axis=1))
    return np.asarray(chances[np.arange(len(labels)), labels])
