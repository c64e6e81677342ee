"""Scores that say how sure they are: counts, Wilson intervals, per-class figures, the confusion matrix."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy.stats import binomtest
from sklearn.metrics import confusion_matrix, precision_recall_fscore_support


@dataclass(frozen=True)
class ClassScore:
    """One class's figures.

    Attributes:
        label: its name.
        precision: share of the images given this label that bear it; 0 where none was given it.
        recall: share of the images that bear this label that were given it; 0 where none bears it.
        f1: harmonic mean of the two.
        support: images that bear the label.
    """

    label: str
    precision: float
    recall: float
    f1: float
    support: int


@dataclass(frozen=True)
class Scores:
    """How a classifier did on one named set of images.

    Attributes:
        name: of the set: "val", "test", "all".
        correct: images given their own label.
        count: images.
        accuracy: correct / count.
        low: lower end of the 95 % Wilson interval of the accuracy.
        high: its upper end.
        macro_f1: mean of the F1 of the classes that have images in the set.
        log_loss: mean over the images of -ln(probability of the right class), in nats.
        classes: each class's figures.
        confusion: [right class][given class] -> images.
    """

    name: str
    correct: int
    count: int
    accuracy: float
    low: float
    high: float
    macro_f1: float
    log_loss: float
    classes: tuple[ClassScore, ...]
    confusion: tuple[tuple[int, ...], ...]

    def __str__(self) -> str:
        return f"accuracy {self.accuracy:.3f} ({self.low:.3f}-{self.high:.3f}), n={self.count}"

    @property
    def sentence(self) -> str:
        """The score in words: "val: 507 of 550 right, 92.2 % (95 % interval 89.6-94.1)"."""
        return (
            f"{self.name}: {self.correct:,} of {self.count:,} right, {100 * self.accuracy:.1f} % "
            f"(95 % interval {100 * self.low:.1f}-{100 * self.high:.1f})"
        )

    def as_json(self) -> dict[str, Any]:
        """A JSON document of all that is here."""
        return asdict(self)

    @classmethod
    def from_json(cls, document: dict[str, Any]) -> Scores:
        """Reads what ``as_json`` gave, also after a journey through JSON."""
        classes = tuple(ClassScore(**entry) for entry in document["classes"])
        confusion = tuple(tuple(row) for row in document["confusion"])
        return cls(**{**document, "classes": classes, "confusion": confusion})


def wilson(correct: int, count: int, confidence: float = 0.95) -> tuple[float, float]:
    """The Wilson score interval of a share.

    Args:
        correct: successes, 0 to ``count``.
        count: trials, at least 1.
        confidence: of the interval, in (0, 1).

    Returns:
        (low, high), each in [0, 1]. 18 of 20 gives (0.699, 0.972).

    Source: E. B. Wilson, "Probable inference, the law of succession, and statistical inference", JASA 22 (1927).
    """
    interval = binomtest(correct, count).proportion_ci(confidence, method="wilson")
    return float(interval.low), float(interval.high)


def score(
    probabilities: npt.NDArray[np.floating[Any]],
    labels: npt.NDArray[np.int64],
    classes: Sequence[str],
    *,
    name: str,
) -> Scores:
    """Scores N predictions.

    Args:
        probabilities: (N, classes), rows that sum to 1.
        labels: (N,) the right classes, as indices.
        classes: their names.
        name: of the set of images.

    Raises:
        ValueError: N is 0.
    """
    if not len(labels):
        raise ValueError(f"{name}: no images to score")
    given = probabilities.argmax(axis=1)
    numbers = np.arange(len(classes))
    precision, recall, f1, support = precision_recall_fscore_support(labels, given, labels=numbers, zero_division=0.0)
    correct = int((given == labels).sum())
    low, high = wilson(correct, len(labels))
    right = probabilities[np.arange(len(labels)), labels]
    return Scores(
        name=name,
        correct=correct,
        count=len(labels),
        accuracy=correct / len(labels),
        low=low,
        high=high,
        macro_f1=float(f1[support > 0].mean()),
        log_loss=float(-np.log(np.clip(right, 1e-12, 1)).mean()),
        classes=tuple(
            ClassScore(label, float(precision[i]), float(recall[i]), float(f1[i]), int(support[i]))
            for i, label in enumerate(classes)
        ),
        confusion=tuple(map(tuple, confusion_matrix(labels, given, labels=numbers).tolist())),
    )
