"""Label errors by confident learning (Northcutt et al., 2021) on cross-validated predictions."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from headstart.cache.computed import computed_once
from headstart.concurrency import ignored_warnings
from headstart.engine.interface import summation_order
from headstart.extras import version_of
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
from headstart.training.penalty import CHOOSE_FROM, FOLDS, choose_c
from headstart.training.probe import standardised
from headstart.trust.calibration import agreement

LEAST_KAPPA = 0.3
"""Cohen's kappa of the classifier below which no label is reported: a poor classifier contradicts correct labels.
Features of random weights reach 0.18 on hot dogs and contradicted a third of the labels; with two classes and 30 %
wrong labels, a perfect classifier reaches 0.4."""

METHOD_VERSION = 1
"""Changed with whatever ``find_label_errors`` finds: results of an earlier version are not read."""

Features = npt.NDArray[np.float32]
Probabilities = npt.NDArray[np.float64]


@dataclass(frozen=True)
class LabelErrors:
    """Images whose labels are probably wrong, among N.

    Attributes:
        positions: (M,) int64, most likely errors first.
        probabilities: (N, classes) float64 out-of-fold probabilities; NaN for images that are not judged.
    """

    positions: npt.NDArray[np.int64]
    probabilities: Probabilities

    @classmethod
    def of_table(cls, table: Probabilities) -> LabelErrors | None:
        """The reverse of ``table_of_errors``."""
        ranks = table[:, 0]
        if (ranks == _NO_RESULT).all():
            return None
        found = np.flatnonzero(ranks > 0)
        return cls(found[np.argsort(ranks[found])], table[:, 1:])


_NO_RESULT = -1.0


def table_of_errors(found: LabelErrors | None, count: int, classes: int) -> Probabilities:
    """(count, 1 + classes) float64: for each image its place among the errors, from 1 (0: none), and probabilities."""
    if found is None:
        return np.full((count, 1 + classes), _NO_RESULT)
    table = np.column_stack([np.zeros(count), found.probabilities])
    table[found.positions, 0] = np.arange(1, 1 + len(found.positions))
    return table


def cached_label_errors(
    features: Features,
    labels: Labels,
    *,
    c: float | None,
    seed: int,
    together: Parts | None,
    progress: Progress | None,
    cache: Path | None,
) -> LabelErrors | None:
    """``find_label_errors``, from the cache if it was called with the same arguments before.

    The fits take a second for a thousand images, and cleanlab, which imports pandas, one more.
    """
    classes = labels.shape[1] if is_multi_label(labels) else int(labels.max()) + 1
    about = {
        "images": len(labels),
        "c": c,
        "seed": seed,
        "version": METHOD_VERSION,
        "cleanlab": version_of("cleanlab"),
        "scikit-learn": version_of("scikit-learn"),
        "torch": version_of("torch"),
        "machine": summation_order(torch.device("cpu")),
    }

    def compute() -> Probabilities:
        found = find_label_errors(features, labels, c=c, seed=seed, together=together, progress=progress)
        return table_of_errors(found, len(labels), classes)

    inputs: list[npt.NDArray[Any]] = [features, labels, *([] if together is None else [together])]
    return LabelErrors.of_table(
        computed_once("label-errors", about, inputs, (len(labels), 1 + classes), compute, cache=cache)
    )


def find_label_errors(
    features: Features,
    labels: Labels,
    *,
    c: float | None = None,
    standardise: bool = True,
    seed: int = 0,
    together: Parts | None = None,
    progress: Progress | None = None,
) -> LabelErrors | None:
    """Finds label errors with cross-validated logistic regression and cleanlab, in two rounds.

    Certain errors of the first round are excluded from training in the second, where they would hide other errors
    (docs/results/2026-11-23-data-check.md).

    Args:
        features: (N, D) float32.
        labels: see ``training.losses``; every class has images.
        c: inverse strength of the L2 penalty; None: chosen by cross-validation.
        standardise: whether the features are standardised; not where their scale means something, as in principal
            components.
        seed: of the folds.
        together: (N,) numbers of parts (groups, near copies) that cross-validation does not divide, see
            ``losses.learnable_folds``: a copy with the same wrong label would confirm it. Images of a class with a
            single part are not judged.
        progress: receives the number of fits done.

    Returns:
        None if there are fewer than ``penalty.CHOOSE_FROM`` images, or five of a class, or if the classifier is not
        clearly better than chance (``LEAST_KAPPA``).

    Source: Northcutt et al., "Confident Learning: Estimating Uncertainty in Dataset Labels", JAIR 2021.
    """
    if (
        len(labels) < CHOOSE_FROM
        or class_sizes(labels).min() < FOLDS
        or count_learnable(labels) < 2 - is_multi_label(labels)
    ):
        return None
    x = standardised(features)[2] if standardise else features
    if c is None:
        c = choose_c(x, labels, balance=False, seed=seed, together=together, progress=progress or SilentProgress()).c
    folds = learnable_folds(labels, FOLDS, seed, together=together)
    judged = evaluated_images(folds)
    with (progress or SilentProgress()).task("Looking for wrong labels", 2 * FOLDS, unit="fits") as advance:
        first = _held_out(x, labels, folds, c, advance)
        found_first = agreement(first[judged] - 0.5 * is_multi_label(labels), labels[judged])
        if not found_first.learnt or found_first.kappa < LEAST_KAPPA:
            return None
        surely = np.zeros(len(labels), dtype=bool)
        surely[judged] = _doubted(labels[judged], first[judged], surely=True)
        probabilities = _held_out(x, labels, _without(folds, surely, labels), c, advance)
    found = judged[_doubted(labels[judged], probabilities[judged], surely=False)]
    return LabelErrors(found[np.argsort(_agreement(labels, probabilities)[found], kind="stable")], probabilities)


def _held_out(x: Features, labels: Labels, folds: Folds, c: float, advance: Callable[[int], None]) -> Probabilities:
    multi_label = is_multi_label(labels)
    classes = labels.shape[1] if multi_label else int(labels.max()) + 1
    probabilities = np.full((len(x), classes), np.nan)
    judge = iter([judged for _, judged in folds])
    for group in linear_fits(x, labels, [learn for learn, _ in folds], loss="binary" if multi_label else "logistic"):
        group.fit(c, lambda: advance(0))
        advance(len(group.learn))
        scores = group.scores()
        for place in range(len(group.learn)):
            judged = next(judge)
            probabilities[judged] = probabilities_of(scores[judged, place], multi_label=multi_label)
    return probabilities


def _without(folds: Folds, doubted: npt.NDArray[np.bool_], labels: Labels) -> Folds:
    """The folds without the doubted images in training, if each class keeps training images in every fold."""
    kept = [(learn[~doubted[learn]], judge) for learn, judge in folds]
    classes = count_learnable(labels)
    return kept if all(count_learnable(labels[learn]) == classes for learn, _ in kept) else folds


def _doubted(labels: Labels, probabilities: Probabilities, *, surely: bool) -> npt.NDArray[np.bool_]:
    """(N,) bool by cleanlab; ``surely``: only if both of its rules agree."""
    rule = "both" if surely else "prune_by_noise_rate"
    with ignored_warnings():
        if is_multi_label(labels):
            from cleanlab.multilabel_classification.filter import find_label_issues as find_in_several

            names = [image_labels.nonzero()[0].tolist() for image_labels in labels]
            return np.asarray(find_in_several(names, probabilities, filter_by=rule, n_jobs=1))
        from cleanlab.filter import find_label_issues as find_in_one

        return np.asarray(find_in_one(labels, probabilities, filter_by=rule, n_jobs=1))


def _agreement(labels: Labels, probabilities: Probabilities) -> Probabilities:
    """(N,) probability of the label; of several, that of the answer that is least believed."""
    if is_multi_label(labels):
        return np.asarray(np.where(labels > 0, probabilities, 1 - probabilities).min(axis=1))
    return np.asarray(probabilities[np.arange(len(labels)), labels])
