"""Calibration metrics: reliability, expected calibration error, coverage, and accepted in-distribution images."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy.special import logit

from headstart.evaluation.metrics import wilson
from headstart.evaluation.predictions import Evaluated
from headstart.prediction import INLIER_SHARE
from headstart.training.losses import is_multi_label, probabilities_of
from headstart.trust.calibration import Calibration, cross_fitted_probabilities

BINS = 15
"""Bins of equal width over the predicted probability (Guo et al., 2017)."""

BEFORE = "val, before"
"""Name of val with its probabilities before temperature scaling."""

TINY, NEARLY_SURE = 1e-300, 1 - 2**-53
"""Replacements for the probabilities 0 and 1, whose logits are infinite."""

CROSS_FITTED = "held-out and cross-fitted"
"""Name of val and the out-of-fold training images together, on which the detector was fitted."""

Probabilities = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Bin:
    """One bin of a reliability diagram: predictions whose probability is in (low, high].

    Attributes:
        low: lower bound, 0-1.
        high: upper bound, 0-1.
        count: number of predictions.
        confidence: their mean probability, 0-1.
        accuracy: share of them that is correct, 0-1.
    """

    low: float
    high: float
    count: int
    confidence: float
    accuracy: float


@dataclass(frozen=True)
class Reliability:
    """A reliability diagram (Guo et al., "On calibration of modern neural networks", ICML 2017).

    Attributes:
        name: of the evaluated set.
        bins: bins with predictions, ascending.
        error: expected calibration error: mean distance of confidence and accuracy over all predictions, 0-1.
    """

    name: str
    bins: tuple[Bin, ...]
    error: float

    def as_json(self) -> dict[str, Any]:
        """The attributes as a JSON document."""
        return asdict(self)


@dataclass(frozen=True)
class UsualKept:
    """How many in-distribution images out-of-distribution detection accepts, to compare with its nominal share.

    Attributes:
        name: of the evaluated set.
        kept: number of images that are not answered with "none of these".
        count: number of images.
        low: lower end of the 95 % Wilson interval of their share, 0-1.
        high: upper end of that interval.
    """

    name: str
    kept: int
    count: int
    low: float
    high: float

    @property
    def sentence(self) -> str:
        """The measured and the nominal share in words."""
        return (
            f"Out-of-distribution detection accepts {100 * self.kept / self.count:.1f} % of the {self.name} images "
            f"({self.kept:,}/{self.count:,}), 95 % CI {100 * self.low:.1f}-{100 * self.high:.1f}; "
            f"nominal {100 * INLIER_SHARE:g} %"
        )

    @property
    def warning(self) -> str:
        """What to do if the nominal share is outside the interval; "" if it is inside."""
        if self.low <= INLIER_SHARE <= self.high:
            return ""
        how = "differ from" if self.high < INLIER_SHARE else "are unusually close to"
        return f"Warning: {self.sentence}. These images {how} the training images: check the split."


def usual_kept(calibration: Calibration, evaluated: Sequence[Evaluated]) -> list[UsualKept]:
    """Accepted in-distribution images of val and test, and of all images that the detector was fitted on.

    Images that the detector was fitted on are scored by cross-fitting: each fifth uses the distances of the others.

    Args:
        calibration: of the model.
        evaluated: its predictions; sets other than val and test, and sets without outlier scores, are left out.
    """
    found = []
    for part in evaluated:
        if part.outliers is not None and part.scores.name in ("val", "test"):
            found.append((part.scores.name, int((part.outliers <= INLIER_SHARE).sum()), len(part.outliers)))
    judged = sum(count for name, _, count in found if name == "val")
    if calibration.num_inliers > judged:
        found.insert(0, (CROSS_FITTED, calibration.num_inliers_accepted, calibration.num_inliers))
    return [UsualKept(name, kept, count, *wilson(kept, count)) for name, kept, count in found]


def reliability(name: str, probabilities: Probabilities, right: npt.NDArray[np.bool_]) -> Reliability:
    """The reliability diagram of N predictions.

    Args:
        name: of the evaluated set.
        probabilities: (N,) predicted probability of each prediction, 0-1.
        right: (N,) whether it is correct.
    """
    places = np.clip(np.ceil(probabilities * BINS).astype(np.int64) - 1, 0, BINS - 1)
    bins = tuple(
        Bin(
            i / BINS,
            (i + 1) / BINS,
            int(inside.sum()),
            float(probabilities[inside].mean()),
            float(right[inside].mean()),
        )
        for i in range(BINS)
        if (inside := places == i).any()
    )
    error = sum(b.count * abs(b.confidence - b.accuracy) for b in bins) / max(1, len(probabilities))
    return Reliability(name, bins, error)


def reliabilities(calibration: Calibration, evaluated: Sequence[Evaluated]) -> list[Reliability]:
    """Reliability of val before and after temperature scaling, and of test.

    Val after scaling is cross-fitted: each fifth has the temperature of the others. Without a fitted temperature there
    is one diagram of val. Of multi-label data, each probability of each label is one prediction.

    Args:
        calibration: of the model.
        evaluated: its predictions; sets other than val and test are left out.
    """
    found = []
    for part in evaluated:
        if part.scores.name == "test":
            found.append(reliability("test", *_answers(part, part.probabilities)))
        if part.scores.name == "val":
            multi_label = is_multi_label(part.labels)
            probabilities = (
                np.clip(part.probabilities, TINY, NEARLY_SURE) if multi_label else np.maximum(part.probabilities, TINY)
            )
            logits = calibration.temperature * (logit(probabilities) if multi_label else np.log(probabilities))
            plain = probabilities_of(logits, multi_label=multi_label)
            found.append(reliability(BEFORE if calibration.images else "val", *_answers(part, plain)))
            if calibration.images:
                after = cross_fitted_probabilities(logits, part.labels, together=part.together)
                found.append(reliability("val, after", *_answers(part, after)))
    return found


def _answers(part: Evaluated, probabilities: Probabilities) -> tuple[Probabilities, npt.NDArray[np.bool_]]:
    """(predicted probabilities, whether each prediction is correct), one for each prediction."""
    if is_multi_label(part.labels):
        return probabilities.ravel(), part.labels.ravel() > 0
    return probabilities.max(axis=1), probabilities.argmax(axis=1) == part.labels


def coverage_curve(part: Evaluated) -> tuple[Probabilities, Probabilities]:
    """Accuracy against coverage (selective prediction), for predictions of one class each.

    Returns:
        (N,) shares of the images, most confident first, and (N,) the accuracy on these; both 0-1.
    """
    order = np.argsort(-part.probabilities.max(axis=1), kind="stable")
    right = (part.given == part.labels)[order]
    ranks = np.arange(1, len(right) + 1)
    return ranks / len(right), np.cumsum(right) / ranks
