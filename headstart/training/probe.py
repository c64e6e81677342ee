"""The linear probe: logistic regression on standardised features, folded into one linear layer.

Multinomial for single-label data; one binary regression per label for multi-label data.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from headstart.cache.computed import computed_once
from headstart.concurrency import ignored_warnings
from headstart.engine.interface import summation_order
from headstart.errors import DataError
from headstart.extras import version_of
from headstart.import_effects import import_quietly
from headstart.progress import Progress, SilentProgress
from headstart.training.linear_fits import ROUNDS, LinearFits, balanced_weights
from headstart.training.losses import Labels, Parts, count_learnable, is_multi_label
from headstart.training.penalty import (
    C_GRID,
    CHOOSE_FROM,
    CHOOSE_ON,
    FOLDS,
    NUM_PENALTY_NUMBERS,
    Features,
    Penalty,
    SampleWeight,
    choose_c,
    cross_validate,
    num_judged,
)

PROBE_VERSION = 3
"""Version of the method; incremented to invalidate cached fits."""

STILL = 1e-6
"""Standard deviation below which a feature counts as constant."""

EXACT_UP_TO = 500_000
"""Numbers of the features up to which a probe is fitted in float64, where rounding does not tell an image of weight 2
from the same image twice."""

LEAST_DEVIATION = 0.05
"""Lower bound of a feature's standard deviation, relative to the median; no feature of the five test sets is below it
 (docs/results/2026-11-22-main-job.md)."""

NEVER = -1e4
"""Logit of a class without training images: exp of it is 0."""

NOT_CONVERGED = (
    f"Warning: the fit of the classifier stopped after {ROUNDS:,} rounds without converging; its results may be "
    "inaccurate. Look for near-duplicate images (headstart check), or choose probe svm."
)


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


def fit_probe(
    features: Features,
    labels: Labels,
    *,
    classes: int,
    balance: bool = False,
    sample_weight: SampleWeight | None = None,
    seed: int = 0,
    together: Parts | None = None,
    penalty: Penalty | None = None,
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
        penalty: chosen before, by a cross-validation of the same features, labels and options; None to choose it here.
        progress: receives the number of fits done.
        cache: the cache folder, where the same fit is kept; None to fit in any case.

    Raises:
        DataError: fewer than two classes have images.
    """
    progress, classes = progress or SilentProgress(), labels.shape[1] if is_multi_label(labels) else classes
    require_learnable(labels)

    def fit() -> npt.NDArray[np.float64]:
        chosen = penalty or choose_c(
            standardised(features, sample_weight)[2],
            labels,
            balance=balance,
            sample_weight=sample_weight,
            seed=seed,
            together=together,
            progress=progress,
        )
        weight, bias, converged = _refitted(
            features, labels, classes=classes, c=chosen.c, balance=balance, sample_weight=sample_weight
        )
        return np.concatenate([chosen.as_numbers(), [converged], weight.ravel(), bias], dtype=np.float64)

    size = NUM_PENALTY_NUMBERS + 1 + classes * (features.shape[1] + 1)
    inputs = (features, labels, sample_weight, together)
    numbers = kept_fit(fit, inputs, size, {"classes": int(classes), "balance": bool(balance), "seed": int(seed)}, cache)
    return _probe_of(numbers, classes, labels, progress)


def kept_fit(
    fit: Callable[[], npt.NDArray[np.float64]],
    inputs: Sequence[npt.NDArray[Any] | None],
    size: int,
    options: dict[str, Any],
    cache: Path | None,
) -> npt.NDArray[np.float64]:
    """The numbers that a fit of logistic regression gives, from the cache if it was made before.

    Args:
        fit: returns the numbers, which follow from ``inputs`` and ``options``.
        inputs: arrays; None for one that is not given.
        size: how many numbers.
        options: JSON-able.
        cache: the cache folder; None to call ``fit`` in any case.
    """
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
    numbers = kept_fit(fit, (features, labels, sample_weight), classes * (features.shape[1] + 1), options, cache)
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
    return *of_raw_features(weight, bias, mean, scale), converged


def of_raw_features(
    weight: npt.NDArray[np.float64],
    bias: npt.NDArray[np.float64],
    mean: npt.NDArray[np.float64],
    scale: npt.NDArray[np.float64],
) -> tuple[Features, Features]:
    """(classes, D) and (classes,) float32 of a classifier of standardised features, with these merged into it."""
    plain = weight / scale
    return plain.astype(np.float32), (bias - plain @ mean).astype(np.float32)


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


def cross_validate_once(
    features: Features,
    labels: Labels,
    *,
    balance: bool,
    seed: int,
    together: Parts | None,
    progress: Progress,
    cache: Path | None,
) -> tuple[Penalty, npt.NDArray[np.float64]] | None:
    """The penalty and the (M,) held-out losses of ``cross_validate``, from the cache if they were computed before.

    Args:
        features: (N, D) float32, not standardised.
        labels: see ``cross_validate``, and so the following.
        balance: see there.
        seed: see there.
        together: see there.
        progress: see there.
        cache: the cache folder; None to compute in any case.

    Returns:
        None if there are too few images.
    """
    if num_judged(labels) < CHOOSE_FROM:
        return None

    def compute() -> npt.NDArray[np.float64]:
        x = standardised(features)[2]
        found = cross_validate(x, labels, balance=balance, seed=seed, together=together, progress=progress)
        assert found is not None  # there are enough images
        return np.concatenate([found.penalty.as_numbers(), found.losses])

    options = {"balance": bool(balance), "seed": int(seed), "result": "cross-validation"}
    size = NUM_PENALTY_NUMBERS + min(len(labels), CHOOSE_ON)
    numbers = kept_fit(compute, (features, labels, together), size, options, cache)
    losses = numbers[NUM_PENALTY_NUMBERS:]
    return Penalty.of_numbers(numbers[:NUM_PENALTY_NUMBERS]), losses[np.isfinite(losses)]


def _fit_each(x: Features, labels: Labels, c: float) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64], bool]:
    """(labels, D) weight, (labels,) bias, and True if the fit converged; see ``with_constant_labels``."""
    fits = LinearFits(x, labels, [np.arange(len(x))], loss="binary")
    converged = fits.fit(c)
    weight, bias = fits.weight[:, 0].T.numpy().copy(), fits.bias[0].numpy().copy()
    return *with_constant_labels(weight, bias, labels), converged


def with_constant_labels(
    weight: npt.NDArray[np.float64], bias: npt.NDArray[np.float64], labels: Labels
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """(labels, D) weight and (labels,) bias; those of a label that is on all images or on none are replaced.

    Such a label has only a bias: the log odds with half an image added to each side.
    """
    counts = labels.sum(axis=0)
    constant = (counts == 0) | (counts == len(labels))
    odds = np.log((counts + 0.5) / (len(labels) - counts + 0.5))
    return np.where(constant[:, None], 0, weight), np.where(constant, odds, bias)


def _fit(x: Features, labels: Labels, c: float, sample_weight: SampleWeight | None) -> Any:
    if x.size <= EXACT_UP_TO:
        x = x.astype(np.float64)
    regression = import_quietly("sklearn.linear_model").LogisticRegression  # a slow import that a cached fit avoids
    with ignored_warnings(category=import_quietly("sklearn.exceptions").ConvergenceWarning):
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
