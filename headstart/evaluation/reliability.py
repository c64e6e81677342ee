"""Calibration as it is shown: reliability, calibration error, accuracy against coverage, usual images that are kept."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy.special import logit

from headstart.evaluation.metrics import wilson
from headstart.evaluation.predictions import Evaluated
from headstart.training.losses import is_multi_label, probabilities_of
from headstart.trust.calibration import Calibration, cross_fitted_probabilities
from headstart.trust.ood import INLIER_SHARE

BINS = 15

BEFORE = "val, before"
"""Val by plain probabilities, where a temperature was fitted."""
"""Of equal width, as in the source of ``calibrated_scale``."""

TINY, NEARLY_SURE = 1e-300, 1 - 2**-53
"""What 0 and 1 are taken for, whose logits are infinite."""

Chances = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Bin:
    """Answers whose probabilities lie in (low, high].

    Attributes:
        low: see above.
        high: see above.
        count: of them.
        confidence: mean of their probabilities.
        accuracy: share of them that is right.
    """

    low: float
    high: float
    count: int
    confidence: float
    accuracy: float


@dataclass(frozen=True)
class Reliability:
    """Answers by their probability.

    Attributes:
        name: of the images.
        bins: those that hold answers, ascending.
        error: mean distance of confidence and accuracy over all answers (expected calibration error), 0-1.
    """

    name: str
    bins: tuple[Bin, ...]
    error: float

    def as_json(self) -> dict[str, Any]:
        """A JSON document of all that is here."""
        return asdict(self)


@dataclass(frozen=True)
class UsualKept:
    """How many usual images are taken for usual, beside what "none of these" promises.

    Attributes:
        name: of the images.
        kept: images that are not answered with "none of these".
        count: images.
        low: lower end of the 95 % Wilson interval of their share.
        high: its upper end.
    """

    name: str
    kept: int
    count: int
    low: float
    high: float

    @property
    def sentence(self) -> str:
        """The share beside the promise, in words."""
        interval = f"95 % interval {100 * self.low:.1f}-{100 * self.high:.1f}"
        return (
            f'"none of these" is to keep {100 * INLIER_SHARE:g} % of usual images: of {self.name} it keeps '
            f"{self.kept:,} of {self.count:,}, {100 * self.kept / self.count:.1f} % ({interval})"
        )

    @property
    def warning(self) -> str:
        """What to do where the promise lies outside the interval; "" where it lies inside."""
        if self.low <= INLIER_SHARE <= self.high:
            return ""
        how = (
            "differ from the training images"
            if self.high < INLIER_SHARE
            else "are nearer to the training images than usual"
        )
        return f"Warning: {self.sentence}. These images {how}: check the split."


def usual_kept(calibration: Calibration, evaluated: Sequence[Evaluated]) -> list[UsualKept]:
    """Of test, of val (each fifth by the distances of the others), and of all images that say what is usual.

    Args:
        calibration: of the model.
        evaluated: its predictions; sets other than val and test, and of unknown outlier scores, are left aside.
    """
    found = []
    for part in evaluated:
        if part.outliers is not None and part.scores.name in ("val", "test"):
            found.append((part.scores.name, int((part.outliers <= INLIER_SHARE).sum()), len(part.outliers)))
    judged = sum(count for name, _, count in found if name == "val")
    if calibration.num_inliers > judged:
        own = "the images it did not learn from, each fifth judged by the others,"
        found.insert(0, (own, calibration.num_inliers_accepted, calibration.num_inliers))
    return [UsualKept(name, kept, count, *wilson(kept, count)) for name, kept, count in found]


def reliability(name: str, chances: Chances, right: npt.NDArray[np.bool_]) -> Reliability:
    """Bins of N answers.

    Args:
        name: of the images.
        chances: (N,) probability of each answer, in [0, 1].
        right: (N,) whether it is right.
    """
    places = np.clip(np.ceil(chances * BINS).astype(np.int64) - 1, 0, BINS - 1)
    bins = tuple(
        Bin(i / BINS, (i + 1) / BINS, int(own.sum()), float(chances[own].mean()), float(right[own].mean()))
        for i in range(BINS)
        if (own := places == i).any()
    )
    error = sum(b.count * abs(b.confidence - b.accuracy) for b in bins) / max(1, len(chances))
    return Reliability(name, bins, error)


def reliabilities(calibration: Calibration, evaluated: Sequence[Evaluated]) -> list[Reliability]:
    """Of val before the temperature and after it (each fifth of the images by that of the others), and of test.

    Where no temperature was fitted there is neither a before nor an after.

    Of several labels to an image, each probability of each label is an answer.

    Args:
        calibration: of the model.
        evaluated: its predictions; sets other than val and test are left aside.
    """
    found = []
    for part in evaluated:
        if part.scores.name == "test":
            found.append(reliability("test", *_answers(part, part.probabilities)))
        if part.scores.name == "val":
            multi_label = is_multi_label(part.labels)
            chances = (
                np.clip(part.probabilities, TINY, NEARLY_SURE) if multi_label else np.maximum(part.probabilities, TINY)
            )
            logits = calibration.temperature * (logit(chances) if multi_label else np.log(chances))
            plain = probabilities_of(logits, multi_label=multi_label)
            found.append(reliability(BEFORE if calibration.images else "val", *_answers(part, plain)))
            if calibration.images:
                after = cross_fitted_probabilities(logits, part.labels, together=part.together)
                found.append(reliability("val, after", *_answers(part, after)))
    return found


def _answers(part: Evaluated, chances: Chances) -> tuple[Chances, npt.NDArray[np.bool_]]:
    if is_multi_label(part.labels):
        return chances.ravel(), part.labels.ravel() > 0
    return chances.max(axis=1), chances.argmax(axis=1) == part.labels


def coverage_curve(part: Evaluated) -> tuple[Chances, Chances]:
    """(N,) shares of the images, the surest first, and (N,) the accuracy among them; one class to an image."""
    order = np.argsort(-part.probabilities.max(axis=1), kind="stable")
    right = (part.given == part.labels)[order]
    ranks = np.arange(1, len(right) + 1)
    return ranks / len(right), np.cumsum(right) / ranks
