"""Prediction: the classes, probabilities and out-of-distribution score that a model gives one image."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

INLIER_SHARE = 0.95
"""Share of in-distribution images that an out-of-distribution detector accepts."""

NONE_OF_THESE = "none of these"
"""Answer for an image that is flagged as out-of-distribution."""

UNSURE = "unsure: ask a person"
"""Answer for an image whose probability is below the model's confidence threshold."""


@dataclass(frozen=True)
class Prediction:
    """Classification of one image.

    Attributes:
        path: path as it was given; "<bytes>", "<image>", "<array>" or "<tensor>" for an image in memory.
        label: the most probable class; None if the image cannot be read.
        probability: probability of ``label``, in [0, 1].
        top: the most probable classes with their probabilities, in descending order.
        error: why the image cannot be read; None if it can.
        labels: multi-label models only: the labels whose probability reaches their threshold, with probabilities, in
            descending order; None for a model that gives each image one class.
        outlier: out-of-distribution score in [0, 1]: the share of in-distribution images that are nearer to the
            training images than this one. None if the model has no detector, or the image cannot be read.
        unsure: whether ``probability`` is below the confidence threshold of selective prediction.

    Examples:
        >>> prediction = hs.load("runs/flowers").predict("rose.jpg")
        >>> prediction.label, [name for name, probability in prediction.top]
        ('roses', ['roses', 'tulips'])
        >>> hs.Prediction("cat.jpg", "roses", 0.97, (("roses", 0.97),), outlier=0.999).answer
        'none of these'
    """

    path: str
    label: str | None
    probability: float
    top: tuple[tuple[str, float], ...]
    error: str | None = None
    labels: tuple[tuple[str, float], ...] | None = None
    outlier: float | None = None
    unsure: bool = False

    @property
    def answer(self) -> str | None:
        """The answer to act on: ``label``, ``NONE_OF_THESE`` or ``UNSURE``; None if the image cannot be read.

        For a multi-label model it is ``NONE_OF_THESE`` or "", and ``labels`` holds the labels.
        """
        if self.label is None:
            return None
        if self.outlier is not None and self.outlier > INLIER_SHARE:
            return NONE_OF_THESE
        if self.labels is not None:
            return ""
        return UNSURE if self.unsure else self.label


def unreadable_prediction(path: str, reason: str) -> Prediction:
    """The prediction for an image that cannot be read, with the reason as its ``error``."""
    return Prediction(path, None, 0.0, (), reason)


def make_prediction(
    path: str,
    probabilities: npt.NDArray[np.float64],
    outlier: float,
    *,
    classes: Sequence[str],
    thresholds: Sequence[float] | None = None,
    unsure_below: float = 0.0,
    top: int | None = None,
) -> Prediction:
    """The prediction for one image.

    Args:
        path: of the image, as it was given.
        probabilities: (classes,) in [0, 1].
        outlier: out-of-distribution score in [0, 1]; NaN for none.
        classes: names, in the order of the probabilities.
        thresholds: multi-label models only: probability from which each label is assigned.
        unsure_below: confidence threshold of selective prediction.
        top: number of classes listed; None lists all.
    """
    order = np.argsort(-probabilities, kind="stable")
    best = order[: None if top is None else max(1, top)]
    ranked = tuple((classes[i], float(probabilities[i])) for i in best)
    labels = None
    if thresholds is not None:
        assigned = [i for i in order if probabilities[i] >= thresholds[i]]
        labels = tuple((classes[i], float(probabilities[i])) for i in assigned)
    return Prediction(
        path,
        *ranked[0],
        ranked,
        labels=labels,
        outlier=None if np.isnan(outlier) else float(outlier),
        unsure=ranked[0][1] < unsure_below,
    )
