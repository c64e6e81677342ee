"""The linear probe of features that do not fit into memory: the same fit as ``probe``, in passes over batches.

Standardisation and loss are sums over images, so each pass adds them up batch by batch. The penalty is chosen on the
same sample of images as in memory. L-BFGS starts from the fit on that sample, which saves most of the passes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import final

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from headstart.import_effects import import_quietly
from headstart.progress import Progress
from headstart.training.linear_fits import ROUNDS, LinearFits
from headstart.training.losses import Labels, is_multi_label
from headstart.training.penalty import CHOOSE_ON, Features, choose_c, stratified_sample
from headstart.training.probe import (
    NEVER,
    NOT_CONVERGED,
    Probe,
    floored,
    of_raw_features,
    require_learnable,
    with_constant_labels,
)

Batches = Callable[[], Iterator[Features]]
"""Starts a pass over all images: (n, D) float32 features of some images after the other, always in the same order."""

TOLERANCE = 1e-4
"""Largest entry of the gradient of the mean loss at which L-BFGS ends, as in scikit-learn's ``LogisticRegression``."""

TOLERANCE_FROM_SAMPLE = 1e-6
"""Likewise after a start from the fit on a sample, from which ``TOLERANCE`` ends far from the minimum, with a log loss
that is 3 to 20 % smaller or larger (docs/results/2026-12-01-scale.md)."""


def fit_streamed_probe(batches: Batches, labels: Labels, *, classes: int, seed: int = 0, progress: Progress) -> Probe:
    """Fits the probe; the result is that of ``probe.fit_probe`` but for the tolerance of the optimiser.

    Args:
        batches: features of N images.
        labels: of the same images, see ``training.losses``.
        classes: number of classes; a class without images is never predicted.
        seed: of the sample and the folds that C is chosen on.
        progress: receives messages, and the number of passes.

    Raises:
        DataError: fewer than two classes have images.
    """
    require_learnable(labels)
    chosen_on = np.arange(len(labels)) if len(labels) <= CHOOSE_ON else stratified_sample(labels, seed)
    mean, scale, sample = _moments(batches, chosen_on, progress)
    standardised = ((sample - mean) / scale).astype(np.float32)
    penalty = choose_c(standardised, labels[chosen_on], balance=False, seed=seed, progress=progress)
    fit = _StreamedFit(batches, labels, mean, scale)
    fit.begin_with(standardised, chosen_on, penalty.c)
    tolerance = TOLERANCE if len(chosen_on) == len(labels) else TOLERANCE_FROM_SAMPLE
    if not fit.minimise(penalty.c, tolerance, progress):
        progress.say(NOT_CONVERGED)
    weight, bias = of_raw_features(*fit.rows(classes), mean, scale)
    return Probe(
        weight=weight,
        bias=bias,
        c=penalty.c,
        reason=penalty.reason(labels),
        losses=penalty.losses,
    )


def _moments(
    batches: Batches, kept: npt.NDArray[np.int64], progress: Progress
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64], Features]:
    """(D,) means and (D,) standard deviations of all images, and the (K, D) features of those that are kept.

    Source: Chan, Golub and LeVeque, "Algorithms for Computing the Sample Variance", 1983.
    """
    count, mean, squares = 0, np.zeros(1), np.zeros(1)
    order = np.argsort(kept, kind="stable")
    ascending, found = kept[order], list[Features]()
    with progress.task("Averaging the features", 1, unit="passes") as advance:
        for batch in batches():
            begin, end = np.searchsorted(ascending, [count, count + len(batch)])
            found.append(batch[ascending[begin:end] - count])
            total, added = count + len(batch), batch.mean(axis=0, dtype=np.float64)
            squares = squares + batch.var(axis=0, dtype=np.float64) * len(batch)
            squares = squares + np.square(added - mean) * (count * len(batch) / total)
            mean = mean + (added - mean) * (len(batch) / total)
            count = total
        advance(1)
    sample = np.empty((len(kept), len(mean)), np.float32)
    sample[order] = np.concatenate(found)
    return mean, floored(np.sqrt(squares / count)), sample


@final
class _StreamedFit:
    """Logistic regression over batches: multinomial, or of each label of multi-label data.

    Args:
        batches: features.
        labels: (N,) class indices, or (N, labels) of 0 and 1.
        mean: (D,) of the features.
        scale: (D,) standard deviations.
    """

    def __init__(
        self, batches: Batches, labels: Labels, mean: npt.NDArray[np.float64], scale: npt.NDArray[np.float64]
    ) -> None:
        self.batches, self.multi_label = batches, is_multi_label(labels)
        self.mean, self.scale = torch.from_numpy(mean).float(), torch.from_numpy(scale).float()
        self.labels = labels
        self.present = np.arange(labels.shape[1]) if self.multi_label else np.unique(labels)
        self.targets = torch.from_numpy(labels if self.multi_label else np.searchsorted(self.present, labels))
        width = len(self.present)
        # scikit-learn fits the difference of two classes, which has half the penalty of both
        self.penalty = (2 if width == 2 and not self.multi_label else 1) / len(labels)
        self.weight = np.zeros((len(mean), width))
        self.bias = np.zeros(width)

    def begin_with(self, x: Features, places: npt.NDArray[np.int64], c: float) -> None:
        """Starts from the fit on a sample with the same penalty for each image.

        Args:
            x: (K, D) standardised features of the sample.
            places: of its images among all.
            c: of the fit on all images.
        """
        targets = self.targets[torch.from_numpy(places)].numpy()
        if not self.multi_label and len(np.unique(targets)) < len(self.present):
            return  # a rare class is not in the sample
        loss = "binary" if self.multi_label else "logistic"
        fits = LinearFits(x, targets, [np.arange(len(x))], loss=loss)  # type: ignore[arg-type]
        fits.fit(c * len(self.labels) / len(places))
        self.weight, self.bias = fits.weight[:, 0].numpy().copy(), fits.bias[0].numpy().copy()

    def minimise(self, c: float, tolerance: float, progress: Progress) -> bool:
        """Minimises the loss from the current weights; True if it converged.

        Args:
            c: inverse strength of the L2 penalty.
            tolerance: see ``TOLERANCE``.
            progress: receives the number of passes.
        """
        shape = self.weight.shape
        with progress.task("Fitting the classifier", ROUNDS, unit="passes") as advance:

            def loss_and_gradient(numbers: npt.NDArray[np.float64]) -> tuple[float, npt.NDArray[np.float64]]:
                advance(1)
                weight, bias = numbers[: -shape[1]].reshape(shape), numbers[-shape[1] :]
                return self.loss_and_gradient(weight, bias, self.penalty / c)

            found = import_quietly("scipy.optimize").minimize(
                loss_and_gradient,
                np.concatenate([self.weight.ravel(), self.bias]),
                method="L-BFGS-B",
                jac=True,
                options={"maxiter": ROUNDS, "maxls": 50, "gtol": tolerance, "ftol": 64 * np.finfo(float).eps},
            )
        self.weight, self.bias = found.x[: -shape[1]].reshape(shape), found.x[-shape[1] :]
        return bool(found.nit < ROUNDS and np.isfinite(found.x).all())

    def loss_and_gradient(
        self, weight: npt.NDArray[np.float64], bias: npt.NDArray[np.float64], penalty: float
    ) -> tuple[float, npt.NDArray[np.float64]]:
        """Mean loss with the penalty, and its gradient, in one pass."""
        w, b = torch.from_numpy(weight).float(), torch.from_numpy(bias).float()
        gradient, offset = torch.zeros(weight.shape, dtype=torch.float64), torch.zeros(len(bias), dtype=torch.float64)
        loss, start = 0.0, 0
        for batch in self.batches():
            x = (torch.from_numpy(batch) - self.mean) / self.scale
            added, error = self._losses(x @ w + b, self.targets[start : start + len(batch)])
            loss += added
            gradient += (x.T @ error).double()
            offset += error.sum(0, dtype=torch.float64)
            start += len(batch)
        count = len(self.labels)
        whole = gradient.numpy() / count + penalty * weight
        total = loss / count + 0.5 * penalty * float(np.square(weight).sum())
        return total, np.concatenate([whole.ravel(), offset.numpy() / count])

    def _losses(self, scores: Tensor, targets: Tensor) -> tuple[float, Tensor]:
        """Sum of the losses of some images, and (n, width) gradients with respect to the scores."""
        if self.multi_label:
            given = targets.float()
            losses = nn.functional.binary_cross_entropy_with_logits(scores, given, reduction="none")
            return float(losses.sum(dtype=torch.float64)), scores.sigmoid() - given
        log_odds = scores.log_softmax(1)
        rows = torch.arange(len(targets))
        error = log_odds.exp()
        error[rows, targets] -= 1
        return -float(log_odds[rows, targets].sum(dtype=torch.float64)), error

    def rows(self, classes: int) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
        """(classes, D) weight and (classes,) bias of standardised features.

        A class without images is never predicted; for labels see ``with_constant_labels``.
        """
        if self.multi_label:
            return with_constant_labels(self.weight.T, self.bias, self.labels)
        rows, offsets = np.zeros((classes, len(self.weight))), np.full(classes, NEVER)
        rows[self.present], offsets[self.present] = self.weight.T, self.bias
        return rows, offsets
