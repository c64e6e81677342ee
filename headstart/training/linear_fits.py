"""Batched linear classifiers: fitting all folds of a cross-validation together takes little longer than fitting one.

Fitted one by one, folds wait for memory most of the time; here one pass over the features serves all folds
(docs/results/2026-11-22-main-job.md).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Literal

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

WEIGHTS_AT_ONCE = 1_000_000
"""Maximum number of weights in one optimizer, which keeps about twenty copies of each."""

ROUNDS = 1000
"""Maximum iterations of L-BFGS."""

Loss = Literal["logistic", "binary", "squared_hinge"]
"""As scikit-learn's ``LogisticRegression``; logistic regression of each label; or one-vs-rest ``LinearSVC``."""


def linear_fits(
    x: npt.NDArray[np.float32],
    labels: npt.NDArray[np.int64],
    learn: Sequence[npt.NDArray[np.int64]],
    *,
    loss: Loss = "logistic",
    balance: bool = False,
    sample_weight: npt.NDArray[np.float64] | None = None,
) -> list[LinearFits]:
    """Fits in as few groups as memory allows; arguments as ``LinearFits``."""
    classes = labels.shape[1] if labels.ndim == 2 else int(labels.max()) + 1
    at_once = max(1, WEIGHTS_AT_ONCE // (x.shape[1] * classes))
    parts = [learn[i : i + at_once] for i in range(0, len(learn), at_once)]
    return [LinearFits(x, labels, part, loss=loss, balance=balance, sample_weight=sample_weight) for part in parts]


class LinearFits:
    """Fits that share an optimizer and its line search; each has the tolerance that it would have alone.

    Args:
        x: (N, D) float32.
        labels: (N,) int64 in [0, classes), with every class in every set; for "binary" (N, classes) int64 of 0 and 1.
        learn: indices of the training images of each set.
        loss: see ``Loss``.
        balance: weight each class by the inverse of its share in the set; not for "binary".
        sample_weight: (N,) weights of the images, above 0; not for "binary".
    """

    def __init__(
        self,
        x: npt.NDArray[np.float32],
        labels: npt.NDArray[np.int64],
        learn: Sequence[npt.NDArray[np.int64]],
        *,
        loss: Loss = "logistic",
        balance: bool = False,
        sample_weight: npt.NDArray[np.float64] | None = None,
    ) -> None:
        self.x, self.learn, self.loss = torch.from_numpy(x), learn, loss
        indices = torch.from_numpy(labels)
        target = (indices if loss == "binary" else nn.functional.one_hot(indices)).float()
        self.target = target[:, None]
        self.share = torch.zeros(len(x), len(learn), 1)
        self.penalty = torch.zeros(len(learn), 1, dtype=torch.float64)
        for i, images in enumerate(learn):
            weight = np.ones(len(images)) if sample_weight is None else sample_weight[images]
            if balance:
                weight = weight * balanced_weights(labels[images], weight)
            self.share[images, i, 0] = torch.from_numpy(weight / weight.sum()).float()
            self.penalty[i] = 1 / weight.sum()
        if loss == "logistic" and target.shape[1] == 2:
            self.penalty *= 2  # scikit-learn fits the difference of the two, which has half the penalty of both
        self.weight = torch.zeros(x.shape[1], len(learn), target.shape[1], dtype=torch.float64)
        self.bias = torch.zeros(self.weight.shape[1:], dtype=torch.float64)

    def fit(self, c: float, tick: Callable[[], object] = lambda: None, *, rounds: int | None = None) -> bool:
        """Minimises the loss, starting from the current weights.

        Args:
            c: inverse strength of the L2 penalty.
            tick: called in every iteration.
            rounds: iterations, at most; default: ``ROUNDS``.

        Returns:
            True if it converged.
        """
        penalty, rounds = self.penalty / c, rounds or ROUNDS
        optimizer = torch.optim.LBFGS(
            [self.weight, self.bias],
            max_iter=rounds,
            history_size=10,
            tolerance_grad=1e-4,
            tolerance_change=1e-12,
            line_search_fn="strong_wolfe",
        )

        @torch.no_grad()
        def loss_and_gradient() -> Tensor:
            tick()
            losses, error = self._losses(self._scores())
            error *= self.share
            self.weight.grad = (self.x.T @ error.flatten(1)).view(self.weight.shape) + penalty * self.weight
            self.bias.grad = error.sum(0, dtype=torch.float64)
            loss = (self.share * losses).sum(dtype=torch.float64)
            return loss + 0.5 * (penalty * self.weight.square()).sum()

        optimizer.step(loss_and_gradient)  # type: ignore[no-untyped-call]
        done = int(optimizer.state_dict()["state"][0]["n_iter"])
        return done < rounds and bool(torch.isfinite(self.weight).all())

    def scores(self) -> npt.NDArray[np.float64]:
        """(N, sets, classes) logits, or SVM decision values, of all images for the classifiers of all sets."""
        scores: npt.NDArray[np.float64] = self._scores().double().numpy()
        return scores

    def _losses(self, scores: Tensor) -> tuple[Tensor, Tensor]:
        """(N, sets, classes) losses, and their gradients with respect to the scores."""
        if self.loss == "logistic":
            log_odds = scores.log_softmax(2)
            return -self.target * log_odds, log_odds.exp() - self.target
        if self.loss == "binary":
            target = self.target.expand_as(scores)
            losses = nn.functional.binary_cross_entropy_with_logits(scores, target, reduction="none")
            return losses, scores.sigmoid() - target
        side = 2 * self.target - 1
        short = (1 - side * scores).clamp(min=0)
        return short.square(), -2 * side * short

    def _scores(self) -> Tensor:
        flat = self.x @ self.weight.flatten(1).float() + self.bias.flatten().float()
        return flat.view(-1, *self.bias.shape)


def balanced_weights(labels: npt.NDArray[np.int64], sample_weight: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """(N,) factors that give all classes the same total weight, as scikit-learn's "balanced"."""
    _, indices = np.unique(labels, return_inverse=True)
    totals = np.bincount(indices, weights=sample_weight)
    factors: npt.NDArray[np.float64] = (totals.sum() / (len(totals) * totals))[indices]
    return factors
