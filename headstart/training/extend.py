"""Class-incremental learning: adding classes to a linear classifier without forgetting its old classes.

The weights of the old classes (rows) stay unchanged by default. The new rows are fitted on the new images and on
rehearsal features of the old classes, with their labels or with the old classifier's probabilities as targets
("Learning without Forgetting", Li and Hoiem, ECCV 2016). Without images of the old classes, features are synthesised
from the statistics of the last BatchNorm, which describe the pretraining data (compare "Dreaming to Distill", Yin et
al., CVPR 2020).

Finally the biases of all new classes are lowered by the same amount until the rehearsal features are not assigned to
new classes; that changes nothing among the new classes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from scipy.special import logsumexp, softmax
from torch import Tensor

from headstart.errors import DataError
from headstart.progress import Progress, SilentProgress
from headstart.training.losses import Labels, Parts
from headstart.training.probe import floored

PENALTIES = (1e-3, 1e-2, 1e-1)
"""L2 penalties of the new rows on standardised features, from which cross-validation chooses."""

FOLDS = 3
MAX_FORGOTTEN = 0.005
"""Share of the rehearsal features that may be assigned to new classes, out of fold."""

MIN_FOUND = 0.75
"""Share of the new images that must still be assigned to a new class if the rehearsal features are synthetic.

Measured with five flowers added to ImageNet's 1,000: of 1,657 other photographs 0.2 % were assigned to them, and 1.2 %
with 0.85
(docs/results/2026-11-22-extending.md).
"""

SYNTHESISED_PER_CLASS = 4
"""Synthetic features of each old class."""

CLASS_DISTANCE = 2.0
"""Distance of synthetic features from the mean towards their class, in rows times the features' variances."""

OLD_ROWS_COST = 10.0
"""Penalty of changing the old rows, relative to that of the new rows, if they are trained too."""

ROUNDS = 200
NOT_CONVERGED = (
    f"Warning: the fit of the new classes stopped after {ROUNDS} rounds without converging; its results may "
    "be inaccurate. Look for near-duplicate images (headstart check), or add images of the existing classes "
    "(option rehearsal)."
)

Features = npt.NDArray[np.float32]
Doubles = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Rows:
    """A linear classifier: logits = features @ weight.T + bias.

    Attributes:
        weight: (classes, D) float64.
        bias: (classes,) float64.
    """

    weight: Doubles
    bias: Doubles

    def logits(self, features: Features) -> Doubles:
        """(N, D) -> (N, classes)."""
        return np.asarray(features.astype(np.float64) @ self.weight.T + self.bias)

    def lowered(self, step_back: float) -> Rows:
        """The rows with lower biases."""
        return Rows(self.weight, self.bias - step_back)

    def followed_by(self, rows: Rows) -> Rows:
        """These rows, then others."""
        return Rows(np.concatenate([self.weight, rows.weight]), np.concatenate([self.bias, rows.bias]))


@dataclass(frozen=True)
class RehearsalSamples:
    """Rehearsal features of the old classes.

    Attributes:
        features: (M, D) float32.
        labels: (M,) int64, the classes; -1 where the old classifier's probabilities are the targets.
        is_synthesised: the features are synthetic, not computed from images.
    """

    features: Features
    labels: Labels
    is_synthesised: bool = False


@dataclass(frozen=True)
class Extension:
    """A classifier with added classes.

    Attributes:
        rows: of the old classes, then of the new ones.
        penalty: the chosen L2 penalty.
        step_back: by how much the biases of the new classes were lowered.
        reason: why both were chosen, a clause.
        found: share of the new training images that are assigned to a new class, out of fold.
        lost: share of the rehearsal features that are assigned to a new class, out of fold.
    """

    rows: Rows
    penalty: float
    step_back: float
    reason: str
    found: float
    lost: float

    def as_json(self) -> dict[str, Any]:
        """Everything but the rows."""
        return {
            "penalty": self.penalty,
            "step_back": self.step_back,
            "reason": self.reason,
            "found": self.found,
            "lost": self.lost,
        }


def extend_rows(
    old: Rows,
    features: Features,
    labels: Labels,
    rehearsal: RehearsalSamples,
    *,
    classes: int,
    train_old: bool = False,
    seed: int = 0,
    together: Parts | None = None,
    progress: Progress | None = None,
) -> Extension:
    """Fits rows for new classes.

    Args:
        old: rows of the old classes.
        features: (N, D) float32 of images of the new classes.
        labels: (N,) int64 in [0, classes), each class at least once.
        rehearsal: rehearsal features of the old classes.
        classes: number of new classes.
        train_old: train the old rows too, with a penalty on changes.
        seed: of the folds.
        together: (N,) part of each image; parts are not divided by folds. Ignored if there are fewer parts than folds.
        progress: receives the number of fits done.

    Raises:
        DataError: fewer than two images of new classes, or fewer than two for rehearsal.
    """
    progress = progress or SilentProgress()
    folds = _num_folds(len(features), len(rehearsal.features))
    fit = _ExtensionFit(old, features, labels, rehearsal, classes)
    new_folds, old_folds = _folds(len(features), folds, seed), _folds(len(rehearsal.features), folds, seed + 1)
    if together is not None and len(set(together.tolist())) >= folds:
        parts, part_of = np.unique(together, return_inverse=True)
        new_folds = _folds(len(parts), folds, seed)[part_of]
    with progress.task("Fitting the new classes", folds * len(PENALTIES) + 1, unit="fits") as advance:
        outcomes = {}
        for penalty in PENALTIES:
            outcomes[penalty] = _cross_validate(fit, penalty, new_folds, old_folds, lambda: advance(1))
        penalty = min(outcomes, key=lambda one: outcomes[one].loss)
        new = fit.fit(penalty, np.ones(len(features), bool), np.ones(len(rehearsal.features), bool))
        old_rows, new_rows = fit.fit_all(penalty, new) if train_old else (old, new)
        advance(1)
    if not fit.converged:
        progress.say(NOT_CONVERGED)
    outcome = outcomes[penalty]
    step_back, reason = _step_back(outcome, is_synthesised=rehearsal.is_synthesised)
    chosen = f"penalty {penalty:g}, chosen from {len(PENALTIES)} values by {folds}-fold cross-validation"
    return Extension(
        old_rows.followed_by(new_rows.lowered(step_back)),
        penalty,
        step_back,
        f"{chosen}; {reason}",
        found=float((outcome.new_margins > step_back).mean()),
        lost=float((outcome.old_margins > step_back).mean()),
    )


@dataclass(frozen=True)
class _PenaltyOutcome:
    """Results of a penalty on the images that were not trained on.

    Attributes:
        loss: see ``_ExtensionFit.loss``, mean over the folds.
        new_margins: (N,) margins of the best new class over the best old one, on images of new classes.
        old_margins: (M,) likewise, on rehearsal features.
    """

    loss: float
    new_margins: Doubles
    old_margins: Doubles


def _cross_validate(
    fit: _ExtensionFit, penalty: float, new_folds: Labels, old_folds: Labels, tick: Callable[[], object]
) -> _PenaltyOutcome:
    loss, new_margins, old_margins = 0.0, np.empty(len(new_folds)), np.empty(len(old_folds))
    folds = int(new_folds.max()) + 1
    for fold in range(folds):
        rows = fit.fit(penalty, new_folds != fold, old_folds != fold)
        judge_new, judge_old = new_folds == fold, old_folds == fold
        loss += fit.loss(rows, judge_new, judge_old) / folds
        new_margins[judge_new], old_margins[judge_old] = fit.margins(rows, judge_new, judge_old)
        tick()
    return _PenaltyOutcome(loss, new_margins, old_margins)


def _step_back(outcome: _PenaltyOutcome, *, is_synthesised: bool) -> tuple[float, str]:
    """By how much the biases of the new classes are lowered, and why, a clause."""
    if is_synthesised:
        step_back = max(0.0, float(np.quantile(outcome.new_margins, 1 - MIN_FOUND)))
        recognised = f"until {100 * MIN_FOUND:.0f} % of the new images are still recognised"
        until = f"{recognised} (there are no images of the old classes)"
    else:
        step_back = max(0.0, float(np.quantile(outcome.old_margins, 1 - MAX_FORGOTTEN, method="higher")))
        until = f"until at most {100 * MAX_FORGOTTEN:g} % of the rehearsal images are predicted as a new class"
    if not step_back:
        return 0.0, "the logits of the new classes were not lowered"
    return step_back, f"the logits of the new classes were lowered by {step_back:.2f} {until}"


def synthesise_features(
    old: Rows, average: Doubles, features: Features, labels: Labels, *, seed: int = 0
) -> RehearsalSamples:
    """Synthetic features of the old classes.

    Each is the mean of the pretraining data, moved towards its class, plus the residual of an image of a new class.

    Args:
        old: rows of the old classes.
        average: (D,) mean features of the pretraining data.
        features: (N, D) float32 of images of the new classes.
        labels: (N,) int64 of them.
        seed: of the residuals.
    """
    x = features.astype(np.float64)
    means = np.stack([x[labels == k].mean(axis=0) for k in np.unique(labels)])
    scatter = x - means[np.unique(labels, return_inverse=True)[1]]
    towards = (old.weight - old.weight.mean(axis=0)) * x.var(axis=0)
    which = np.repeat(np.arange(len(old.weight)), SYNTHESISED_PER_CLASS)
    drawn = scatter[np.random.default_rng((seed, 6)).integers(0, len(x), len(which))]
    synthetic = average + CLASS_DISTANCE * towards[which] + drawn
    if x.min() >= 0:  # the features are outputs of a ReLU
        synthetic = synthetic.clip(min=0)
    return RehearsalSamples(synthetic.astype(np.float32), np.full(len(synthetic), -1), is_synthesised=True)


class _ExtensionFit:
    """Standardised features, and for each image the log-sum-exp of the old logits, with which new rows compete.

    Attributes:
        converged: True if the last fit did.
    """

    converged: bool = True

    def __init__(
        self, old: Rows, features: Features, labels: Labels, rehearsal: RehearsalSamples, classes: int
    ) -> None:
        self.old, self.classes, self.labels = old, classes, torch.from_numpy(labels)
        both = np.concatenate([features, rehearsal.features]).astype(np.float64)
        self.mean, self.scale = both.mean(axis=0), floored(both.std(axis=0))
        x = torch.from_numpy((both - self.mean) / self.scale)
        self.new, self.kept = x[: len(features)], x[len(features) :]
        logits = old.logits(features), old.logits(rehearsal.features)
        self.new_rivals, self.kept_rivals = (torch.from_numpy(logsumexp(part, axis=1)) for part in logits)
        self.new_best, self.kept_best = (torch.from_numpy(part.max(axis=1)) for part in logits)
        targets, has_label = softmax(logits[1], axis=1), rehearsal.labels >= 0
        targets[has_label] = np.eye(len(old.weight))[rehearsal.labels[has_label]]
        self.targets = torch.from_numpy(targets)

    def fit(self, penalty: float, new: npt.NDArray[np.bool_], kept: npt.NDArray[np.bool_]) -> Rows:
        """Fits the new rows on some of the images."""
        weight = torch.zeros(self.classes, self.new.shape[1], dtype=torch.float64)
        bias = torch.zeros(self.classes, dtype=torch.float64)
        self.converged = _minimise(
            [weight, bias], lambda: self._loss(weight, bias, new, kept) + penalty / 2 * weight.square().sum()
        )
        return self._rows(weight, bias)

    def fit_all(self, penalty: float, rows: Rows) -> tuple[Rows, Rows]:
        """Trains old and new rows together, starting from their current values: (old, new)."""
        start = [self._standard(part) for part in (self.old, rows)]
        weight, bias = (torch.cat([part[i] for part in start]) for i in (0, 1))
        fixed = torch.cat([start[0][0], torch.zeros_like(start[1][0])])
        labels = self.labels + len(self.old.weight)
        cost = torch.ones(len(weight), dtype=torch.float64)
        cost[: len(self.old.weight)] = OLD_ROWS_COST

        def loss() -> Tensor:
            log_new = (self.new @ weight.T + bias).log_softmax(1)
            log_kept = (self.kept @ weight.T + bias).log_softmax(1)[:, : len(self.old.weight)]
            new_loss = -log_new[torch.arange(len(labels)), labels].mean()
            moved = ((weight - fixed).square().sum(1) * cost).sum()
            return new_loss - (self.targets * log_kept).sum(1).mean() + penalty / 2 * moved

        self.converged = _minimise([weight, bias], loss)
        count = len(self.old.weight)
        return self._rows(weight[:count], bias[:count]), self._rows(weight[count:], bias[count:])

    def loss(self, rows: Rows, new: npt.NDArray[np.bool_], kept: npt.NDArray[np.bool_]) -> float:
        """Mean log loss on new images, plus the increase of the log loss on rehearsal features."""
        return float(self._loss(*self._standard(rows), new, kept))

    def margins(self, rows: Rows, new: npt.NDArray[np.bool_], kept: npt.NDArray[np.bool_]) -> tuple[Doubles, Doubles]:
        """Margins of the best new class over the best old one, on new images and on rehearsal features."""
        weight, bias = self._standard(rows)
        return (
            ((self.new[new] @ weight.T + bias).amax(1) - self.new_best[new]).numpy(),
            ((self.kept[kept] @ weight.T + bias).amax(1) - self.kept_best[kept]).numpy(),
        )

    def _loss(self, weight: Tensor, bias: Tensor, new: npt.NDArray[np.bool_], kept: npt.NDArray[np.bool_]) -> Tensor:
        """The old rows are constants, so only the log-sum-exp of their logits is needed."""
        scores = torch.cat([self.new_rivals[new, None], self.new[new] @ weight.T + bias], 1)
        new_loss = torch.nn.functional.cross_entropy(scores, self.labels[new] + 1)
        rivals = (self.kept[kept] @ weight.T + bias).logsumexp(1)
        return new_loss + torch.nn.functional.softplus(rivals - self.kept_rivals[kept]).mean()

    def _rows(self, weight: Tensor, bias: Tensor) -> Rows:
        plain = weight.numpy() / self.scale
        return Rows(plain, bias.numpy() - plain @ self.mean)

    def _standard(self, rows: Rows) -> tuple[Tensor, Tensor]:
        weight = torch.from_numpy(rows.weight * self.scale)
        return weight, torch.from_numpy(rows.bias + rows.weight @ self.mean)


def _minimise(variables: Sequence[Tensor], loss: Any) -> bool:
    """Minimises a loss with L-BFGS; True if it converged within ``ROUNDS`` iterations."""
    for variable in variables:
        variable.requires_grad_(True)
    optimizer: Any = torch.optim.LBFGS(variables, max_iter=ROUNDS, line_search_fn="strong_wolfe", tolerance_grad=1e-6)

    def closure() -> float:
        optimizer.zero_grad()
        value = loss()
        value.backward()
        return float(value.detach())

    optimizer.step(closure)
    for variable in variables:
        variable.requires_grad_(False)
    return int(optimizer.state_dict()["state"][0]["n_iter"]) < ROUNDS


def _num_folds(new: int, kept: int) -> int:
    """Number of folds for some images of new classes and some for rehearsal.

    Raises:
        DataError: there are too few.
    """
    if min(new, kept) < 2:
        raise DataError(
            f"{new:,} training image(s) of new classes and {kept:,} for rehearsal: at least two of each are needed, to "
            "choose how strongly the new classes are fitted. Add images."
        )
    return min(FOLDS, new, kept)


def _folds(count: int, folds: int, seed: int) -> Labels:
    """(N,) the fold of each image, in folds of equal size (to one image)."""
    return np.random.default_rng((seed, 7)).permutation(count) % folds
