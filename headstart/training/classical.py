"""Classical classifiers on features: support vector machines, nearest neighbours, nearest class mean.

Each becomes a head like any other. Its scores are scaled by temperature scaling on out-of-fold images, so that they are
calibrated logits. A new classifier is a function here and a line in ``CLASSICAL``.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypedDict, Unpack

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from headstart.errors import DataError
from headstart.import_effects import import_quietly
from headstart.progress import Progress, SilentProgress
from headstart.quiet import quiet
from headstart.training.heads import NeighbourHead, RbfHead, float_tensor, linear_head
from headstart.training.linear_fits import linear_fits
from headstart.training.losses import (
    Folds,
    Labels,
    Parts,
    class_sizes,
    evaluated_images,
    has_other_part,
    learnable_folds,
)
from headstart.training.penalty import CHOOSE_FROM, FOLDS, Features
from headstart.training.probe import NEVER, as_rows, standardised
from headstart.trust.temperature import best_scale, calibrated_losses

LINEAR_C = (1e-4, 1e-3, 1e-2)
"""Values that C of a linear SVM is chosen from; the middle one if there are too few images to choose."""

RBF_C = (1.0, 10.0, 100.0)

NEIGHBOURS = (1, 3, 5, 10, 20, 50)
TEMPERATURES = (0.02, 0.05, 0.1)
NEIGHBOUR_RULE = (10, 0.05)
"""Neighbours and temperature if there are too few images to choose them."""

AT_ONCE = 1024
"""Images per batch that are compared with all others."""

MOST_FOR_RBF = 20_000
"""Maximum number of training images for a kernel of all pairs, which takes 3 GB and hours beyond."""

SVM_ROUNDS = 5000
"""Maximum iterations of liblinear."""

Scores = npt.NDArray[np.float64]
Outside = Callable[[Folds, float], Scores]
"""(folds, C) -> (N, classes with images) out-of-fold scores of the images."""


@dataclass(frozen=True)
class Classical:
    """A fitted classical classifier.

    Attributes:
        head: (N, D) features -> (N, classes) logits.
        reason: why its settings were chosen, a clause.
        settings: with which it can be fitted on other images.
    """

    head: nn.Module
    reason: str
    settings: dict[str, float]


class FitOptions(TypedDict, total=False):
    """Options of every classical classifier; one that does not apply is ignored.

    Attributes:
        balance: weight each class by the inverse of its share; default False.
        seed: of the folds; default 0.
        settings: of an earlier fit, to be used again; default: chosen by cross-validation.
        together: (N,) part of each image; parts are not divided, see ``losses.learnable_folds``.
        progress: receives the number of fits done.
    """

    balance: bool
    seed: int
    settings: dict[str, float] | None
    together: Parts | None
    progress: Progress | None


def fit_svm(features: Features, labels: Labels, *, classes: int, **options: Unpack[FitOptions]) -> Classical:
    """One-vs-rest linear support vector machines (liblinear, squared hinge loss).

    Args:
        features: (N, D) float32.
        labels: (N,) int64 in [0, classes), of at least two classes.
        classes: number of classes; a class without images is never predicted.
        **options: see ``FitOptions``.
    """
    balance, progress = options.get("balance", False), options.get("progress")
    mean, scale, x = standardised(features)
    present, indices = np.unique(labels, return_inverse=True)

    def outside(folds: Folds, c: float) -> Scores:
        out = np.empty((len(x), len(present)))
        for group in linear_fits(x, indices, [learn for learn, _ in folds], loss="squared_hinge", balance=balance):
            group.fit(c)
            scores = group.scores()
            for i, learn in enumerate(group.learn):
                judge = np.setdiff1d(np.arange(len(x)), learn)
                out[judge] = scores[judge, i]
        return out

    chosen, reason = _chosen(outside, labels, LINEAR_C, options)
    machine = import_quietly("sklearn.svm").LinearSVC(
        C=chosen["C"], class_weight="balanced" if balance else None, dual="auto", max_iter=SVM_ROUNDS, random_state=0
    )
    with quiet():
        machine.fit(x, labels)
    if progress is not None and machine.n_iter_ >= SVM_ROUNDS:
        progress.say(
            f"Warning: the support vector machine stopped after {SVM_ROUNDS:,} rounds without converging; its "
            "results may be inaccurate. Choose probe logistic."
        )
    weight, bias = _scaled(chosen["scale"], *as_rows(machine, classes))
    return Classical(linear_head(weight / scale, bias - (weight / scale) @ mean), reason, chosen)


def fit_rbf(features: Features, labels: Labels, *, classes: int, **options: Unpack[FitOptions]) -> Classical:
    """One-vs-rest support vector machines with a Gaussian (RBF) kernel (libsvm).

    The kernel's gamma is 1 / D, for standardised features. Arguments as ``fit_svm``.

    Raises:
        DataError: more than ``MOST_FOR_RBF`` images.
    """
    if len(features) > MOST_FOR_RBF:
        raise DataError(
            f"a Gaussian kernel compares all pairs of images, and there are {len(features):,}; at most "
            f"{MOST_FOR_RBF:,} are practical. Choose probe svm or logistic."
        )
    mean, scale, x = standardised(features)
    machines = _KernelMachines(x, labels, classes, balance=options.get("balance", False))
    chosen, reason = _chosen(_one_by_one(machines.scores, labels), labels, RBF_C, options)
    coefficients, offsets = _scaled(chosen["scale"], *machines.fit(np.arange(len(x)), chosen["C"]))
    support = np.flatnonzero(np.abs(coefficients).max(axis=1) > 0)
    head = RbfHead(
        float_tensor(x[support]),
        float_tensor(mean),
        float_tensor(scale),
        float_tensor(coefficients[support]),
        float_tensor(offsets),
        machines.gamma,
    )
    return Classical(head.eval(), f"{reason}; {len(support):,} support vectors", chosen)


class _KernelMachines:
    """One-vs-rest support vector machines on the kernel of all pairs of images."""

    def __init__(self, x: Features, labels: Labels, classes: int, *, balance: bool) -> None:
        self.labels, self.classes, self.class_weight = labels, classes, "balanced" if balance else None
        self.gamma = 1 / x.shape[1]
        distances = import_quietly("sklearn.metrics.pairwise").euclidean_distances(x, squared=True)
        self.kernel = np.exp(-self.gamma * distances)

    def fit(self, learn: npt.NDArray[np.int64], c: float) -> tuple[Scores, Scores]:
        """(N, classes) coefficients of all images, 0 except for support vectors, and (classes,) offsets."""
        coefficients, offsets = np.zeros((len(self.labels), self.classes)), np.full(self.classes, NEVER)
        labels = self.labels[learn]
        present = np.unique(labels)
        train_kernel, machine_of = self.kernel[np.ix_(learn, learn)], import_quietly("sklearn.svm").SVC
        for label in present[1:] if len(present) == 2 else present:
            machine = machine_of(kernel="precomputed", C=c, class_weight=self.class_weight)
            machine.fit(train_kernel, labels == label)
            coefficients[learn[machine.support_], label] = machine.dual_coef_[0]
            offsets[label] = machine.intercept_[0]
        if len(present) == 2:
            coefficients[:, present] = np.stack([-coefficients[:, present[1]], coefficients[:, present[1]]], 1) / 2
            offsets[present] = -offsets[present[1]] / 2, offsets[present[1]] / 2
        return coefficients, offsets

    def scores(self, learn: npt.NDArray[np.int64], judge: npt.NDArray[np.int64], c: float) -> Scores:
        """(n, classes) scores of the images ``judge`` by classifiers that were fitted on ``learn``."""
        coefficients, offsets = self.fit(learn, c)
        return np.asarray(self.kernel[judge] @ coefficients + offsets)


def fit_centroid(features: Features, labels: Labels, *, classes: int, **options: Unpack[FitOptions]) -> Classical:
    """Nearest class mean by the distance of standardised features; arguments as ``fit_svm``."""
    mean, scale, x = standardised(features)

    def fit(learn: npt.NDArray[np.int64]) -> tuple[Scores, Scores]:
        weight, bias = np.zeros((classes, x.shape[1])), np.full(classes, NEVER)
        for label in np.unique(labels[learn]):
            weight[label] = x[learn][labels[learn] == label].mean(axis=0, dtype=np.float64)
            bias[label] = -0.5 * weight[label] @ weight[label]
        return weight, bias

    def scores(learn: npt.NDArray[np.int64], judge: npt.NDArray[np.int64], _c: float) -> Scores:
        weight, bias = fit(learn)
        return x[judge] @ weight.T + bias

    chosen, reason = _chosen(_one_by_one(scores, labels), labels, (1.0,), options)
    weight, bias = _scaled(chosen["scale"], *fit(np.arange(len(x))))
    return Classical(linear_head(weight / scale, bias - (weight / scale) @ mean), reason, chosen)


def fit_neighbours(features: Features, labels: Labels, *, classes: int, **options: Unpack[FitOptions]) -> Classical:
    """Weighted k-nearest neighbours by cosine; k and temperature are chosen by leave-one-out cross-validation.

    With ``together``, the whole part of an image is left out. Arguments as ``fit_svm``.
    """
    settings, together = options.get("settings"), options.get("together")
    x = nn.functional.normalize(torch.from_numpy(features), dim=1)
    indices = torch.from_numpy(labels)

    def head(neighbours: int, temperature: float) -> NeighbourHead:
        return NeighbourHead(x, indices, classes, min(neighbours, len(x) - 1), temperature).eval()

    if settings is not None:
        return Classical(head(int(settings["neighbours"]), settings["temperature"]), "as before", settings)
    if len(x) < CHOOSE_FROM:
        neighbours, temperature = NEIGHBOUR_RULE
        reason = f"{neighbours} neighbours (default: {len(x)} training images are too few to choose the number)"
    else:
        pairs = [(k, t) for k in NEIGHBOURS for t in TEMPERATURES]
        judged = np.ones(len(labels), dtype=bool) if together is None else has_other_part(labels, together)
        if not judged.any():  # every class is one part: single images are left out instead
            together, judged = None, ~judged
        heads = [head(*pair) for pair in pairs]
        outside = _left_out_votes(x, heads, together=together, progress=options.get("progress") or SilentProgress())
        losses = [float(_plain_losses(logits[judged], labels[judged]).mean()) for logits in outside]
        neighbours, temperature = pairs[int(np.argmin(losses))]
        reason = f"{neighbours} neighbours, temperature {temperature:g}, by leave-one-out log loss"
    chosen = {"neighbours": float(neighbours), "temperature": temperature}
    return Classical(head(neighbours, temperature), reason, chosen)


Fit = Callable[..., Classical]
CLASSICAL: dict[str, Fit] = {"svm": fit_svm, "rbf": fit_rbf, "knn": fit_neighbours, "centroid": fit_centroid}
"""Name of ``recipe.probe`` -> function that fits it."""


def _one_by_one(
    scores: Callable[[npt.NDArray[np.int64], npt.NDArray[np.int64], float], Scores], labels: Labels
) -> Outside:
    """Out-of-fold scores from a function (training images, evaluation images, C) -> scores of the latter."""
    present = np.unique(labels)

    def outside(folds: Folds, c: float) -> Scores:
        out = np.empty((len(labels), len(present)))
        for learn, judge in folds:
            out[judge] = scores(learn, judge, c)[:, present]
        return out

    return outside


def _chosen(
    outside: Outside, labels: Labels, grid: tuple[float, ...], options: FitOptions
) -> tuple[dict[str, float], str]:
    """C and the scale of the scores, by the log loss of out-of-fold images."""
    settings = options.get("settings")
    if settings is not None:
        return settings, "as before"
    middle = grid[len(grid) // 2]
    sizes = class_sizes(labels)
    if sizes.max() < 2:
        return {"C": middle, "scale": 1.0}, "default: no class has a second image to choose it on"
    folds = learnable_folds(labels, FOLDS, options.get("seed", 0), together=options.get("together"))
    judged = evaluated_images(folds)
    tried = grid if len(judged) >= CHOOSE_FROM else (middle,)
    targets = np.unique(labels, return_inverse=True)[1][judged]
    results = {}
    progress = options.get("progress") or SilentProgress()
    with progress.task("Choosing the settings", len(tried) * len(folds), unit="fits") as advance:
        for c in tried:
            scores = outside(folds, c)[judged]
            results[c] = float(calibrated_losses(scores, targets).mean()), best_scale(scores, targets)
            advance(len(folds))
    best = min(results, key=lambda c: results[c][0])
    reason = f"scaled by {len(folds)}-fold cross-validation on the training images"
    if len(tried) > 1:
        reason = f"C = {best:g}, chosen from {len(tried)} values; {reason}"
    return {"C": best, "scale": results[best][1]}, reason


def _scaled(scale: float, weight: Scores, bias: Scores) -> tuple[Scores, Scores]:
    return scale * weight, np.where(bias == NEVER, NEVER, scale * bias)


def _left_out_votes(
    x: Tensor, heads: list[NeighbourHead], *, together: Parts | None, progress: Progress
) -> list[Scores]:
    """Leave-one-out: for each head the (N, classes) logits of the images, from images of other parts."""
    part = torch.arange(len(x)) if together is None else torch.from_numpy(together)
    parts: list[list[Scores]] = [[] for _ in heads]
    with progress.task("Comparing images", len(x)) as advance:
        for start in range(0, len(x), AT_ONCE):
            cosines = x[start : start + AT_ONCE] @ x.T
            cosines[part[start : start + AT_ONCE, None] == part] = -2.0
            for found, head in zip(parts, heads, strict=True):
                found.append(head.votes(cosines).double().numpy())
            advance(len(cosines))
    return [np.concatenate(part) for part in parts]


def _plain_losses(logits: Scores, labels: Labels) -> Scores:
    return np.asarray(-logits[np.arange(len(labels)), labels])  # the logits are logarithms of probabilities
