"""Linear classifiers on several sets of the same images at once: what cross-validation needs, for little more than one.

Fitted one by one, folds wait for memory most of the time; one pass over the features serves all of them
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
"""Weights that the optimizer holds at once; it keeps some twenty copies of each."""

ROUNDS = 1000
"""Rounds of L-BFGS after which a fit that has not converged stops."""

Loss = Literal["logistic", "binary", "squared_hinge"]
"""scikit-learn's ``LogisticRegression``; that for each of several labels; or ``LinearSVC`` for each class against the
rest."""


def linear_fits(
    x: npt.NDArray[np.float32],
    labels: npt.NDArray[np.int64],
    learn: Sequence[npt.NDArray[np.int64]],
    *,
    loss: Loss = "logistic",
    balance: bool = False,
    sample_weight: npt.NDArray[np.float64] | None = None,
) -> list[LinearFits]:
    """As few groups as memory allows; arguments as ``LinearFits``."""
    classes = labels.shape[1] if labels.ndim == 2 else int(labels.max()) + 1
    at_once = max(1, WEIGHTS_AT_ONCE // (x.shape[1] * classes))
    parts = [learn[i : i + at_once] for i in range(0, len(learn), at_once)]
    return [LinearFits(x, labels, own, loss=loss, balance=balance, sample_weight=sample_weight) for own in parts]


class LinearFits:
    """Fits that share one optimizer and its line search; each is held to the tolerance that it would have alone.

    Args:
        x: (N, D) float32.
        labels: (N,) int64 in [0, classes), each of them in each set; for "binary" (N, classes) int64 of 0 and 1.
        learn: of each set, the numbers of its images.
        loss: see ``Loss``.
        balance: weigh each class by the inverse of its share in the set; not for "binary".
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
        told = torch.from_numpy(labels)
        target = (told if loss == "binary" else nn.functional.one_hot(told)).float()
        self.target = target[:, None]
        self.share = torch.zeros(len(x), len(learn), 1)
        self.penalty = torch.zeros(len(learn), 1, dtype=torch.float64)
        for i, own in enumerate(learn):
            weight = np.ones(len(own)) if sample_weight is None else sample_weight[own]
            if balance:
                weight = weight * balanced_weights(labels[own], weight)
            self.share[own, i, 0] = torch.from_numpy(weight / weight.sum()).float()
            self.penalty[i] = 1 / weight.sum()
        if loss == "logistic" and target.shape[1] == 2:
            self.penalty *= 2  # scikit-learn fits the difference of the two alone, which bears half of what both would
        self.weight = torch.zeros(x.shape[1], len(learn), target.shape[1], dtype=torch.float64)
        self.bias = torch.zeros(self.weight.shape[1:], dtype=torch.float64)

    def fit(self, c: float, tick: Callable[[], object] = lambda: None) -> bool:
        """Goes on from the weights that are there.

        Args:
            c: inverse strength of the L2 penalty.
            tick: called in every round.

        Returns:
            Whether it converged within ``ROUNDS``.
        """
        penalty = self.penalty / c
        optimizer = torch.optim.LBFGS(
            [self.weight, self.bias],
            max_iter=ROUNDS,
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
        rounds = int(optimizer.state_dict()["state"][0]["n_iter"])
        return rounds < ROUNDS and bool(torch.isfinite(self.weight).all())

    def scores(self) -> npt.NDArray[np.float64]:
        """(N, sets, classes): the logits, or the distances from the margins, of all images in all sets' classifiers."""
        scores: npt.NDArray[np.float64] = self._scores().double().numpy()
        return scores

    def _losses(self, scores: Tensor) -> tuple[Tensor, Tensor]:
        """(N, sets, classes) losses, and their gradients with regard to the scores."""
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
    """(N,) factors of the images' weights by which all classes weigh the same, as scikit-learn's "balanced"."""
    _, own = np.unique(labels, return_inverse=True)
    totals = np.bincount(own, weights=sample_weight)
    factors: npt.NDArray[np.float64] = (totals.sum() / (len(totals) * totals))[own]
    return factors
