"""Scores that say how sure they are: counts, intervals, per-class figures, the confusion matrix.

``Scores`` where each image has one class, ``LabelScores`` where it may bear any number of labels.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy.stats import binomtest
from sklearn.metrics import average_precision_score, confusion_matrix, precision_recall_fscore_support

CROSS_VALIDATION = "cross-validation"
"""Name of the training images as a set that is scored: each by a classifier that did not learn from it."""

SHOWN_FIRST = (CROSS_VALIDATION, "test", "val")
"""Sets by which a run is known, the first of them that it has."""

RESAMPLES = 1000
"""Of the images, for an interval of the mean average precision."""

AT_ONCE = 4_000_000
"""Numbers that are resampled at once."""


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
        name: of the set: "val", "test", "cross-validation", "all".
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

    @property
    def unpredicted(self) -> tuple[str, ...]:
        """Classes that no image was given."""
        named = (sum(column) for column in zip(*self.confusion, strict=True))
        return tuple(own.label for own, count in zip(self.classes, named, strict=True) if not count)

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


@dataclass(frozen=True)
class LabelScore(ClassScore):
    """One label's figures, where an image may bear any number.

    Attributes:
        average_precision: mean, over the images that bear it, of the precision among those ranked as high; 0 where
            none bears it.
        threshold: probability from which on the model gives it.
    """

    average_precision: float
    threshold: float


@dataclass(frozen=True)
class LabelScores:
    """How a classifier did on one named set of images that may bear any number of labels.

    Attributes:
        name: of the set: "val", "test", "cross-validation", "all".
        correct: images of which every label is right.
        count: images.
        accuracy: correct / count.
        low: lower end of the 95 % Wilson interval of the accuracy.
        high: its upper end.
        mean_average_precision: mean of the average precision of the labels that stand in the set (mAP); 0-1.
        map_low: lower end of its 95 % interval, by resampling the images (percentile bootstrap).
        map_high: its upper end.
        micro_f1: F1 of all labels of all images taken together.
        macro_f1: mean of the F1 of the labels that stand in the set.
        log_loss: mean over the images of the sum of their labels' binary cross-entropy, in nats.
        classes: each label's figures.
        unpredicted: labels that no image was given.
    """

    name: str
    correct: int
    count: int
    accuracy: float
    low: float
    high: float
    mean_average_precision: float
    map_low: float
    map_high: float
    micro_f1: float
    macro_f1: float
    log_loss: float
    classes: tuple[LabelScore, ...]
    unpredicted: tuple[str, ...] = ()

    def __str__(self) -> str:
        return f"mAP {self.mean_average_precision:.3f} ({self.map_low:.3f}-{self.map_high:.3f}), n={self.count}"

    @property
    def sentence(self) -> str:
        """The score in words: "val: mAP 91.2 % (95 % interval 89.0-93.1); every label right on 412 of 550 images"."""
        return (
            f"{self.name}: mAP {100 * self.mean_average_precision:.1f} % (95 % interval {100 * self.map_low:.1f}-"
            f"{100 * self.map_high:.1f}); every label right on {self.correct:,} of {self.count:,} images, "
            f"{100 * self.accuracy:.1f} % ({100 * self.low:.1f}-{100 * self.high:.1f})"
        )

    def as_json(self) -> dict[str, Any]:
        """A JSON document of all that is here."""
        return asdict(self)

    @classmethod
    def from_json(cls, document: dict[str, Any]) -> LabelScores:
        """Reads what ``as_json`` gave, also after a journey through JSON."""
        classes = tuple(LabelScore(**entry) for entry in document["classes"])
        return cls(**{**document, "classes": classes, "unpredicted": tuple(document.get("unpredicted", ()))})


AnyScores = Scores | LabelScores


@dataclass(frozen=True)
class GroupScore:
    """How a classifier did on the images of one group: of one camera, site or person.

    Attributes:
        group: its name; "" of images in none.
        correct: images right, of several labels all of them.
        count: images.
        low: lower end of the 95 % Wilson interval of the accuracy.
        high: its upper end.
    """

    group: str
    correct: int
    count: int
    low: float
    high: float


def score_groups(groups: Sequence[str], right: npt.NDArray[np.bool_]) -> tuple[GroupScore, ...]:
    """Each group apart, the worst first.

    Args:
        groups: of N images.
        right: (N,) whether each is right.
    """
    own = np.array(groups)
    found = []
    for name in dict.fromkeys(groups):
        count, correct = int((own == name).sum()), int(right[own == name].sum())
        found.append(GroupScore(name, correct, count, *wilson(correct, count)))
    return tuple(sorted(found, key=lambda score: (score.correct / score.count, score.group)))


@dataclass(frozen=True)
class ClassFigures:
    """One class's figures for a table: None where there is nothing that they could be of.

    Attributes:
        label: its name.
        precision: None where no image was given the label, or none bears it.
        recall: None where no image bears the label.
        f1: likewise.
        support: images that bear the label.
    """

    label: str
    precision: float | None
    recall: float | None
    f1: float | None
    support: int


def class_figures(scores: AnyScores) -> list[ClassFigures]:
    """A row for each class, in the order of the scores."""
    found = []
    for own in scores.classes:
        precision = None if own.label in scores.unpredicted or not own.support else own.precision
        recall, f1 = (own.recall, own.f1) if own.support else (None, None)
        found.append(ClassFigures(own.label, precision, recall, f1, own.support))
    return found


def share_words(share: float | None) -> str:
    """A share as "97.3 %", or "-" where there is no value."""
    return "-" if share is None else f"{100 * share:.1f} %"


def scores_from_json(document: dict[str, Any]) -> AnyScores:
    """Whichever of the two it is."""
    return (LabelScores if "mean_average_precision" in document else Scores).from_json(document)


def shown_first(results: Mapping[str, AnyScores]) -> AnyScores:
    """The score that a run is known by, of results by the name of the set; see ``SHOWN_FIRST``."""
    return next(results[name] for name in SHOWN_FIRST if name in results)


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


def score_labels(
    probabilities: npt.NDArray[np.floating[Any]],
    labels: npt.NDArray[np.int64],
    given: npt.NDArray[np.int64],
    classes: Sequence[str],
    *,
    thresholds: Sequence[float],
    name: str,
) -> LabelScores:
    """Scores N predictions of any number of labels.

    Args:
        probabilities: (N, classes) in [0, 1].
        labels: (N, classes) int64, 1 for each label that the image bears.
        given: (N, classes) int64, 1 for each label that it was given.
        classes: names of the labels.
        thresholds: of the model, for the table.
        name: of the set of images.

    Raises:
        ValueError: N is 0.
    """
    if not len(labels):
        raise ValueError(f"{name}: no images to score")
    hits, named, support = (labels & given).sum(axis=0), given.sum(axis=0), labels.sum(axis=0)
    precision, recall, f1 = (
        hits / np.maximum(named, 1),
        hits / np.maximum(support, 1),
        2 * hits / np.maximum(named + support, 1),
    )
    precisions = [
        float(average_precision_score(labels[:, i], probabilities[:, i])) if support[i] else 0.0
        for i in range(len(classes))
    ]
    there = np.flatnonzero(support > 0)
    asked = int(named.sum() + support.sum())
    correct = int((labels == given).all(axis=1).sum())
    low, high = wilson(correct, len(labels))
    resampled = _resampled_map(probabilities[:, there], labels[:, there]) if len(there) else np.zeros(1)
    chances = np.clip(np.where(labels > 0, probabilities, 1 - probabilities), 1e-12, 1)
    return LabelScores(
        name=name,
        correct=correct,
        count=len(labels),
        accuracy=correct / len(labels),
        low=low,
        high=high,
        mean_average_precision=float(np.mean([precisions[i] for i in there])) if len(there) else 0.0,
        map_low=float(np.quantile(resampled, 0.025)),
        map_high=float(np.quantile(resampled, 0.975)),
        micro_f1=float(2 * hits.sum() / max(1, asked)),
        macro_f1=float(np.mean(f1[there])) if len(there) else 0.0,
        log_loss=float(-np.log(chances).sum(axis=1).mean()),
        classes=tuple(
            LabelScore(
                label,
                float(precision[i]),
                float(recall[i]),
                float(f1[i]),
                int(support[i]),
                precisions[i],
                float(thresholds[i]),
            )
            for i, label in enumerate(classes)
        ),
        unpredicted=tuple(label for label, count in zip(classes, named, strict=True) if not count),
    )


def _resampled_map(
    probabilities: npt.NDArray[np.floating[Any]], labels: npt.NDArray[np.int64]
) -> npt.NDArray[np.float64]:
    """(RESAMPLES,) mean average precision of as many images, drawn from these with replacement.

    scikit-learn's average precision with whole numbers as weights, of all draws at once: one by one it takes minutes.
    """
    count = len(labels)
    chance = np.random.default_rng(0)
    at_once = max(1, AT_ONCE // count)
    found = []
    for start in range(0, RESAMPLES, at_once):
        draws = min(at_once, RESAMPLES - start)
        times = chance.multinomial(count, np.full(count, 1 / count), size=draws)
        found.append(
            [_average_precisions(own, bears, times) for own, bears in zip(probabilities.T, labels.T, strict=True)]
        )
    precisions = np.concatenate([np.stack(part) for part in found], axis=1)
    drawn = ~np.isnan(precisions)
    return np.asarray((np.nansum(precisions, axis=0) / np.maximum(drawn.sum(axis=0), 1))[drawn.any(axis=0)])


def _average_precisions(
    chances: npt.NDArray[np.floating[Any]], bears: npt.NDArray[np.int64], times: npt.NDArray[np.int64]
) -> npt.NDArray[np.float64]:
    """Average precision of one label for each row of (draws, N) weights; NaN where no image of it was drawn."""
    order = np.argsort(-chances, kind="stable")
    ends = np.flatnonzero(np.diff(chances[order], append=-1.0))
    hits = np.cumsum(times[:, order] * bears[order], axis=1)[:, ends]
    ranks = np.maximum(np.cumsum(times[:, order], axis=1)[:, ends], 1)
    total = hits[:, -1:]
    gained = np.diff(hits, axis=1, prepend=0)
    with np.errstate(invalid="ignore"):
        return np.asarray((gained * (hits / ranks)).sum(axis=1) / np.where(total > 0, total, np.nan)[:, 0])
