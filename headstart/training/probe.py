"""The linear probe: logistic regression on standardised features, folded into one linear layer.

Multinomial for single-label data; one binary regression per label for multi-label data.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from headstart.cache.computed import computed_once
from headstart.engine.interface import summation_order
from headstart.errors import DataError
from headstart.extras import version_of
from headstart.import_effects import import_quietly
from headstart.progress import Progress, SilentProgress
from headstart.training.linear_fits import ROUNDS, LinearFits, balanced_weights, linear_fits
from headstart.training.losses import (
    Folds,
    Labels,
    Parts,
    class_sizes,
    count_learnable,
    is_multi_label,
    learnable_folds,
    log_losses,
)

PROBE_VERSION = 1
"""Version of the method; incremented to invalidate cached fits."""

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

STILL = 1e-6
"""Standard deviation below which a feature counts as constant."""

LEAST_DEVIATION = 0.05
"""Lower bound of a feature's standard deviation, relative to the median; no feature of the five test sets is below it
 (docs/results/2026-11-22-main-job.md)."""

NEVER = -1e4
"""Logit of a class without training images: exp of it is 0."""

NOT_CONVERGED = (
    f"Warning: the fit of the classifier stopped after {ROUNDS:,} rounds without converging; its results may be "
    "inaccurate. Look for near-duplicate images (headstart check), or choose probe svm."
)

Features = npt.NDArray[np.float32]
SampleWeight = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Probe:
    """A linear classifier of the raw features: logits = features @ weight.T + bias.

    Attributes:
        weight: (classes, D) float32, with the standardisation merged into it.
        bias: (classes,) float32.
        c: inverse strength of the L2 penalty.
        reason: why this C was chosen, a sentence.
        losses: C -> mean log loss over the folds, in nats; empty if C was not chosen.
    """

    weight: Features
    bias: Features
    c: float
    reason: str
    losses: dict[float, float]


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
            why = f"{_num_judged(labels)} training images of classes that have at least two"
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


def fit_probe(
    features: Features,
    labels: Labels,
    *,
    classes: int,
    balance: bool = False,
    sample_weight: SampleWeight | None = None,
    seed: int = 0,
    together: Parts | None = None,
    progress: Progress | None = None,
    cache: Path | None = None,
) -> Probe:
    """Fits the probe; C is chosen by cross-validation if there are enough images.

    Args:
        features: (N, D) float32.
        labels: see ``training.losses``.
        classes: number of classes; a class without images is never predicted.
        balance: weight each class by the inverse of its share; single-label only.
        sample_weight: (N,) weights of the images, above 0; single-label only.
        seed: of the folds.
        together: (N,) part of each image; parts are not divided, see ``losses.learnable_folds``.
        progress: receives the number of fits done.
        cache: the cache folder, where the same fit is kept; None to fit in any case.

    Raises:
        DataError: fewer than two classes have images.
    """
    progress, classes = progress or SilentProgress(), labels.shape[1] if is_multi_label(labels) else classes
    require_learnable(labels)

    def fit() -> npt.NDArray[np.float64]:
        x = standardised(features, sample_weight)[2]
        penalty = choose_c(
            x, labels, balance=balance, sample_weight=sample_weight, seed=seed, together=together, progress=progress
        )
        weight, bias, converged = _refitted(
            features, labels, classes=classes, c=penalty.c, balance=balance, sample_weight=sample_weight
        )
        return np.concatenate([penalty.as_numbers(), [converged], weight.ravel(), bias], dtype=np.float64)

    size = NUM_PENALTY_NUMBERS + 1 + classes * (features.shape[1] + 1)
    inputs = (features, labels, sample_weight, together)
    numbers = _kept_fit(
        fit, inputs, size, {"classes": int(classes), "balance": bool(balance), "seed": int(seed)}, cache
    )
    return _probe_of(numbers, classes, labels, progress)


def _kept_fit(
    fit: Callable[[], npt.NDArray[np.float64]],
    inputs: Sequence[npt.NDArray[Any] | None],
    size: int,
    options: dict[str, Any],
    cache: Path | None,
) -> npt.NDArray[np.float64]:
    """The numbers that ``fit`` returns, from the cache if it was called with the same inputs and options before."""
    if cache is None:
        return fit()
    method = {"grid": C_GRID, "folds": FOLDS, "rounds": ROUNDS, "version": PROBE_VERSION}
    libraries = {name: version_of(name) for name in ("torch", "scikit-learn", "scipy")}
    machine = {"machine": summation_order(torch.device("cpu"))}
    given = [array for array in inputs if array is not None]
    about = options | method | libraries | machine | {"given": [array is not None for array in inputs]}
    return computed_once("probes", about, given, (size,), fit, cache=cache)


def _probe_of(numbers: npt.NDArray[np.float64], classes: int, labels: Labels, progress: Progress) -> Probe:
    """The probe of the numbers of ``fit_probe``: penalty, 1 if the fit converged, weight, bias."""
    penalty = Penalty.of_numbers(numbers[:NUM_PENALTY_NUMBERS])
    converged, weights = numbers[NUM_PENALTY_NUMBERS], numbers[NUM_PENALTY_NUMBERS + 1 :]
    if not converged:
        progress.say(NOT_CONVERGED)
    weight, bias = _weight_and_bias(weights, classes)
    return Probe(weight=weight, bias=bias, c=penalty.c, reason=penalty.reason(labels), losses=penalty.losses)


def refit_probe(
    features: Features,
    labels: Labels,
    *,
    classes: int,
    c: float,
    balance: bool = False,
    sample_weight: SampleWeight | None = None,
    cache: Path | None = None,
) -> tuple[Features, Features]:
    """The probe for a given C: (classes, D) weight and (classes,) bias, float32. Arguments as ``fit_probe``."""
    classes = labels.shape[1] if is_multi_label(labels) else classes

    def fit() -> npt.NDArray[np.float64]:
        options: dict[str, Any] = {"classes": classes, "c": c, "balance": balance, "sample_weight": sample_weight}
        weight, bias, _ = _refitted(features, labels, **options)
        return np.concatenate([weight.ravel(), bias], dtype=np.float64)

    options = {"classes": int(classes), "c": float(c), "balance": bool(balance)}
    numbers = _kept_fit(fit, (features, labels, sample_weight), classes * (features.shape[1] + 1), options, cache)
    return _weight_and_bias(numbers, classes)


def _weight_and_bias(numbers: npt.NDArray[np.float64], classes: int) -> tuple[Features, Features]:
    """(classes, D) and (classes,) float32 of the numbers in one row."""
    exact = numbers.astype(np.float32)
    return exact[:-classes].reshape(classes, -1), exact[-classes:]


def _refitted(
    features: Features,
    labels: Labels,
    *,
    classes: int,
    c: float,
    balance: bool,
    sample_weight: SampleWeight | None,
) -> tuple[Features, Features, bool]:
    """Weight and bias as ``refit_probe``, and True if the fit converged."""
    mean, scale, x = standardised(features, sample_weight)
    if is_multi_label(labels):
        weight, bias, converged = _fit_each(x, labels, c)
    else:
        weights = sample_weight
        if balance:
            given = np.ones(len(labels)) if weights is None else weights
            weights = given * balanced_weights(labels, given)
        fitted = _fit(x, labels, c, weights)
        converged = bool((fitted.n_iter_ < ROUNDS).all())
        weight, bias = as_rows(fitted, classes)
    plain = weight / scale
    return plain.astype(np.float32), (bias - plain @ mean).astype(np.float32), converged


def require_learnable(labels: Labels) -> None:
    """Checks that a classifier can be trained.

    Raises:
        DataError: fewer than two classes have images; multi-label: no label has images with and without it.
    """
    found = count_learnable(labels)
    if is_multi_label(labels) and not found:
        raise DataError("each label applies to all training images or to none, so nothing can be learned. Add images.")
    if not is_multi_label(labels) and found < 2:
        raise DataError(f"training images of {found} class(es): a classifier needs at least two.")


def standardised(
    features: Features, sample_weight: SampleWeight | None = None
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64], Features]:
    """(D,) means, (D,) standard deviations, and (N, D) float32 standardised features."""
    if sample_weight is None:
        mean = features.mean(axis=0, dtype=np.float64)
        scale = features.std(axis=0, dtype=np.float64)
    else:
        mean = np.average(features, axis=0, weights=sample_weight)
        scale = np.sqrt(np.average(np.square(features - mean), axis=0, weights=sample_weight))
    scale = floored(scale)
    return mean, scale, ((features - mean) / scale).astype(np.float32)


def floored(deviations: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Standard deviations with a lower bound of ``LEAST_DEVIATION`` times the median of non-constant features.

    A feature that is nearly constant in training must not be scaled up: a single image in which it differs would have
    logits of thousands.
    """
    moving = deviations[deviations > STILL]
    least = LEAST_DEVIATION * float(np.median(moving)) if len(moving) else 1.0
    return np.maximum(deviations, least)


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
    """Chooses C by cross-validation if there are enough images.

    Args:
        x: (N, D) float32, standardised.
        labels: see ``training.losses``.
        balance: see ``fit_probe``.
        sample_weight: see ``fit_probe``.
        seed: of the folds.
        together: see ``fit_probe``.
        progress: receives the number of fits done.
    """
    if _num_judged(labels) < CHOOSE_FROM:
        return Penalty(C_WITHOUT_CHOICE, 0, {})
    weights = sample_weight
    if len(labels) > CHOOSE_ON:
        kept = _stratified_sample(labels, seed)
        x, labels, weights = x[kept], labels[kept], None if weights is None else weights[kept]
        together = None if together is None else together[kept]
    folds = learnable_folds(labels, FOLDS, seed, together=together)
    losses = _out_of_fold_losses(x, labels, folds, balance=balance, weights=weights, progress=progress)
    return Penalty(min(losses, key=lambda c: losses[c]), len(folds), losses)


def _num_judged(labels: Labels) -> int:
    """Number of images that cross-validation can evaluate: those of classes with at least two."""
    return int((class_sizes(labels) > 1).sum())


def _stratified_sample(labels: Labels, seed: int) -> Labels:
    """Indices of ``CHOOSE_ON`` images, with the classes in proportion if each has at least two images."""
    can_stratify = not is_multi_label(labels) and class_sizes(labels).min() >= 2
    kept, _ = import_quietly("sklearn.model_selection").train_test_split(
        np.arange(len(labels)),
        train_size=CHOOSE_ON,
        stratify=labels if can_stratify else None,
        random_state=seed,
    )
    return np.asarray(kept)


def _out_of_fold_losses(
    x: Features,
    labels: Labels,
    folds: Folds,
    *,
    balance: bool,
    weights: SampleWeight | None,
    progress: Progress,
) -> dict[float, float]:
    """C -> mean log loss over the folds, for rising C until it gets worse."""
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
    losses: dict[float, float] = {}
    with progress.task("Choosing the penalty", len(folds) * len(C_GRID), unit="fits") as advance:
        for c in C_GRID:
            fold_losses: list[float] = []
            judges = iter([judge for _, judge in folds])
            for group in groups:
                group.fit(c, lambda: advance(0))
                scores = group.scores()
                for i in range(len(group.learn)):
                    judge = next(judges)
                    counted = None if weights is None else weights[judge]
                    fold_losses.append(float(np.average(log_losses(scores[judge, i], targets[judge]), weights=counted)))
                advance(len(group.learn))
            losses[c] = float(np.mean(fold_losses))
            if losses[c] > WORSE * min(losses.values()):  # a weaker penalty would overfit more
                advance(len(folds) * (len(C_GRID) - len(losses)))
                break
    return losses


def _fit_each(x: Features, labels: Labels, c: float) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64], bool]:
    """(labels, D) weight, (labels,) bias, and True if the fit converged.

    A label that is on all images or on none has only a bias: the log odds with half an image added to each side.
    """
    fits = LinearFits(x, labels, [np.arange(len(x))], loss="binary")
    converged = fits.fit(c)
    weight, bias = fits.weight[:, 0].T.numpy().copy(), fits.bias[0].numpy().copy()
    counts = labels.sum(axis=0)
    constant = (counts == 0) | (counts == len(labels))
    weight[constant] = 0
    bias[constant] = np.log((counts[constant] + 0.5) / (len(labels) - counts[constant] + 0.5))
    return weight, bias, converged


def _fit(x: Features, labels: Labels, c: float, sample_weight: SampleWeight | None) -> Any:
    regression = import_quietly("sklearn.linear_model").LogisticRegression  # a slow import that a cached fit avoids
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", import_quietly("sklearn.exceptions").ConvergenceWarning)
        return regression(C=c, max_iter=ROUNDS).fit(x, labels, sample_weight=sample_weight)


def as_rows(fitted: Any, classes: int) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """(classes, D) weight and (classes,) bias; scikit-learn has one row for two classes, and none for empty classes."""
    weight = fitted.coef_.astype(np.float64)
    bias = fitted.intercept_.astype(np.float64)
    if len(weight) == 1:
        weight, bias = np.concatenate([-weight, weight]) / 2, np.concatenate([-bias, bias]) / 2
    rows = np.zeros((classes, weight.shape[1]))
    offsets = np.full(classes, NEVER)
    rows[fitted.classes_], offsets[fitted.classes_] = weight, bias
    return rows, offsets
