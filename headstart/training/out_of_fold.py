"""Out-of-fold predictions: what a classifier says of training images that it did not learn from (cross-validation)."""

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
from headstart.training.probe import Features
from headstart.trust.ood import Scores


@dataclass(frozen=True)
class OutOfFold:
    """Predictions of M training images, each by a classifier that was fitted without it.

    Attributes:
        places: (M,) int64 ascending, which of the training images; all but those that are alone of their class.
        logits: (M, classes) float64, before any temperature.
        folds: number of parts that were left out in turn.
        distances: (M,) float64, in typical distances, see ``outliers.held_out_distances``; None where the backbone
            stays as it is: then distances among training images are like those of any other image.
    """

    places: npt.NDArray[np.int64]
    logits: npt.NDArray[np.float64]
    folds: int
    distances: Scores | None = None


def in_order(folds: Folds, parts: Sequence[npt.NDArray[Any]]) -> npt.NDArray[Any]:
    """(M, ...) rows of the judged images of each fold, in the order of ``judged_places``."""
    return np.asarray(np.concatenate(parts)[np.argsort(np.concatenate([judge for _, judge in folds]))])


def of_frozen_features(
    fitted: Fitted, features: Features, folds: Folds, *, progress: Progress | None = None
) -> OutOfFold:
    """Of a classifier on frozen features.

    Args:
        fitted: its settings; it is fitted anew without each fold.
        features: (N, D) float32 of the training images, or their maps.
        folds: of these, see ``targets.learnable_folds``.
        progress: told of each fold.
    """
    logits = []
    with (progress or SilentProgress()).task("Cross-validating the classifier", len(folds), unit="folds") as advance:
        for learn, judge in folds:
            logits.append(logits_on(fitted.refit(learn), features[judge]))
            advance(1)
    return OutOfFold(evaluated_images(folds), in_order(folds, logits), len(folds))
