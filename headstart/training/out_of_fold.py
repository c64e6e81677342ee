"""Out-of-fold predictions: cross-validated predictions of the training images."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from headstart.progress import Progress, SilentProgress
from headstart.training.fit_head import Fitted
from headstart.training.heads import logits_on
from headstart.training.losses import Folds, evaluated_images
from headstart.training.penalty import Features
from headstart.trust.ood import Scores


@dataclass(frozen=True)
class OutOfFold:
    """Predictions of M training images, each by a classifier that was trained without the image.

    Attributes:
        places: (M,) int64 ascending, indices of the training images; the only image of a class is not included.
        logits: (M, classes) float64, before temperature scaling.
        folds: number of folds.
        distances: (M,) float64, see ``ood.held_out_distances``; None if the backbone is not trained, because distances
            among training images are then like those of other images.
    """

    places: npt.NDArray[np.int64]
    logits: npt.NDArray[np.float64]
    folds: int
    distances: Scores | None = None


def in_order(folds: Folds, parts: Sequence[npt.NDArray[Any]]) -> npt.NDArray[Any]:
    """(M, ...) rows of the evaluated images of each fold, in the order of ``evaluated_images``."""
    return np.asarray(np.concatenate(parts)[np.argsort(np.concatenate([judge for _, judge in folds]))])


def of_frozen_features(
    fitted: Fitted, features: Features, folds: Folds, *, progress: Progress | None = None
) -> OutOfFold:
    """Out-of-fold predictions of a classifier on frozen features.

    Args:
        fitted: the classifier, which is fitted again in each fold with the same settings.
        features: (N, D) float32 of the training images, or their maps.
        folds: see ``losses.learnable_folds``.
        progress: receives the number of folds done.
    """
    logits = []
    with (progress or SilentProgress()).task("Cross-validating the classifier", len(folds), unit="folds") as advance:
        for learn, judge in folds:
            logits.append(logits_on(fitted.refit(learn), features[judge]))
            advance(1)
    return OutOfFold(evaluated_images(folds), in_order(folds, logits), len(folds))
