"""Prediction: the classes, probabilities and out-of-distribution score that a model gives one image."""

from __future__ import annotations

from dataclasses import dataclass

from headstart.trust.ood import INLIER_SHARE

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
