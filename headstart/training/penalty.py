"""The penalty of the probe, chosen by cross-validation."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from headstart.import_effects import import_quietly
from headstart.progress import Progress
from headstart.training.linear_fits import linear_fits
from headstart.training.losses import (
    Folds,
    Labels,
    Parts,
    are_correct,
    class_sizes,
    is_multi_label,
    learnable_folds,
    log_losses,
)

C_GRID = (1e-4, 1e-3, 1e-2, 1e-1, 1.0, 10.0)
"""Inverse strengths of the L2 penalty that cross-validation chooses from."""

C_WITHOUT_CHOICE = 0.1
"""C for data sets too small to choose on; on the five test sets it was at most one point worse than the best
(docs/results/2026-11-22-main-job.md)."""

WORSE = 1.02
"""Ratio to the smallest loss from which on no larger C is tried: the loss has one minimum, and fits get slower."""

FOLDS = 5
CHOOSE_FROM = 50
"""Number of training images below which C is not chosen, because the folds' losses would be noise."""

CHOOSE_ON = 10_000
"""Size of the stratified sample that C is chosen on if there are more training images."""

Features = npt.NDArray[np.float32]
SampleWeight = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Penalty:
    """The strength of the L2 penalty of a probe.

    Attributes:
        c: inverse strength.
        num_folds: of the cross-validation that chose it; 0 if it was not chosen.
        losses: C -> mean log loss over the folds, in nats; empty if C was not chosen.
    """

    c: float
    num_folds: int
    losses: dict[float, float]

    def reason(self, labels: Labels) -> str:
        """Why this C was chosen for the labels, a sentence."""
        if not self.losses:
            why = f"{num_judged(labels)} training images of classes that have at least two"
            return f"C = {self.c} (default: {why} are too few to choose it)"
        where = "the training images" if len(labels) <= CHOOSE_ON else f"{CHOOSE_ON:,} of the training images"
        by = f"the log loss of {self.num_folds}-fold cross-validation on {where}"
        return f"C = {self.c:g}, chosen from {len(self.losses)} values by {by}"

    def as_numbers(self) -> npt.NDArray[np.float64]:
        """(NUM_PENALTY_NUMBERS,) float64 that ``of_numbers`` reads; NaN for values of C that were not tried."""
        return np.array([self.c, self.num_folds, *(self.losses.get(c, np.nan) for c in C_GRID)])

    @classmethod
    def of_numbers(cls, numbers: npt.NDArray[np.float64]) -> Penalty:
        """Reads what ``as_numbers`` wrote."""
        c, num_folds, *losses = numbers.tolist()
        return cls(c, int(num_folds), {c: loss for c, loss in zip(C_GRID, losses, strict=True) if loss == loss})


NUM_PENALTY_NUMBERS = 2 + len(C_GRID)


@dataclass(frozen=True)
class CrossValidation:
    """The cross-validation of a probe on N training images.

    Attributes:
        penalty: the C with the smallest mean loss.
        losses: (N,) log loss of each image in its held-out fold at this C, in nats; NaN for an image in none.
        correct: (N,) whether it was classified correctly there; False for an image in none.
    """

    penalty: Penalty
    losses: npt.NDArray[np.float64]
    correct: npt.NDArray[np.bool_]


def choose_c(
    x: Features,
    labels: Labels,
    *,
    balance: bool,
    sample_weight: SampleWeight | None = None,
    seed: int,
    together: Parts | None = None,
    progress: Progress,
) -> Penalty:
    """Chooses C by cross-validation if there are enough images; arguments as ``cross_validate``."""
    found = cross_validate(
        x, labels, balance=balance, sample_weight=sample_weight, seed=seed, together=together, progress=progress
    )
    return Penalty(C_WITHOUT_CHOICE, 0, {}) if found is None else found.penalty


def cross_validate(
    x: Features,
    labels: Labels,
    *,
    balance: bool = False,
    sample_weight: SampleWeight | None = None,
    seed: int,
    together: Parts | None = None,
    progress: Progress,
) -> CrossValidation | None:
    """Cross-validates a probe for each C.

    Args:
        x: (N, D) float32, standardised.
        labels: see ``training.losses``.
        balance: see ``fit_probe``.
        sample_weight: see ``fit_probe``.
        seed: of the folds.
        together: see ``fit_probe``.
        progress: receives the number of fits done.

    Returns:
        Of the images it was done on, at most ``CHOOSE_ON``; None if there are too few.
    """
    if num_judged(labels) < CHOOSE_FROM:
        return None
    weights = sample_weight
    if len(labels) > CHOOSE_ON:
        kept = stratified_sample(labels, seed)
        x, labels, weights = x[kept], labels[kept], None if weights is None else weights[kept]
        together = None if together is None else together[kept]
    folds = learnable_folds(labels, FOLDS, seed, together=together)
    tried = _out_of_fold(x, labels, folds, balance=balance, weights=weights, progress=progress)
    best = min(tried, key=lambda c: tried[c].loss)
    penalty = Penalty(best, len(folds), {c: found.loss for c, found in tried.items()})
    return CrossValidation(penalty, tried[best].losses, tried[best].correct)


def num_judged(labels: Labels) -> int:
    """Number of images that cross-validation can evaluate: those of classes with at least two."""
    return int((class_sizes(labels) > 1).sum())


def stratified_sample(labels: Labels, seed: int) -> Labels:
    """Indices of ``CHOOSE_ON`` images, with the classes in proportion if each has at least two images."""
    can_stratify = not is_multi_label(labels) and class_sizes(labels).min() >= 2
    kept, _ = import_quietly("sklearn.model_selection").train_test_split(
        np.arange(len(labels)),
        train_size=CHOOSE_ON,
        stratify=labels if can_stratify else None,
        random_state=seed,
    )
    return np.asarray(kept)


@dataclass(frozen=True)
class _OutOfFold:
    """Held-out results for one C: mean log loss over the folds, and (N,) losses and correctness of the images."""

    loss: float
    losses: npt.NDArray[np.float64]
    correct: npt.NDArray[np.bool_]


def _out_of_fold(
    x: Features,
    labels: Labels,
    folds: Folds,
    *,
    balance: bool,
    weights: SampleWeight | None,
    progress: Progress,
) -> dict[float, _OutOfFold]:
    """C -> results, for rising C until the mean loss gets worse."""
    multi_label = is_multi_label(labels)
    targets = labels if multi_label else np.unique(labels, return_inverse=True)[1]
    groups = linear_fits(
        x,
        targets,
        [learn for learn, _ in folds],
        loss="binary" if multi_label else "logistic",
        balance=balance,
        sample_weight=weights,
    )
    tried: dict[float, _OutOfFold] = {}
    with progress.task("Choosing the penalty", len(folds) * len(C_GRID), unit="fits") as advance:
        for c in C_GRID:
            fold_losses: list[float] = []
            losses, correct = np.full(len(labels), np.nan), np.zeros(len(labels), bool)
            judges = iter([judge for _, judge in folds])
            for group in groups:
                group.fit(c, lambda: advance(0))
                scores = group.scores()
                for i in range(len(group.learn)):
                    judge = next(judges)
                    losses[judge] = log_losses(scores[judge, i], targets[judge])
                    correct[judge] = are_correct(scores[judge, i], targets[judge])
                    counted = None if weights is None else weights[judge]
                    fold_losses.append(float(np.average(losses[judge], weights=counted)))
                advance(len(group.learn))
            tried[c] = _OutOfFold(float(np.mean(fold_losses)), losses, correct)
            if tried[c].loss > WORSE * min(found.loss for found in tried.values()):
                advance(len(folds) * (len(C_GRID) - len(tried)))  # a weaker penalty would overfit more
                break
    return tried
