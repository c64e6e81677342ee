"""Metrics with 95 % confidence intervals: accuracy, precision, recall, F1, log loss, mAP, the confusion matrix.

``Scores`` if each image has one class, ``LabelScores`` if it may have any number of labels.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from headstart.figures import interval_text, percent_text, share_text

CROSS_VALIDATION = "cross-validation"
"""Name of the training images as an evaluated set: each is predicted by a classifier that did not learn from it."""

SHOWN_FIRST = (CROSS_VALIDATION, "test", "val")
"""Evaluated sets by how much they say of a run; its headline result is of the first that it has."""

RESAMPLES = 1000
"""Bootstrap samples of the images for the interval of the mean average precision."""

AT_ONCE = 4_000_000
"""Numbers that are resampled at once, to bound memory."""

Z_95 = 1.959963984540054
"""Quantile of the normal distribution for a 95 % interval."""


@dataclass(frozen=True)
class ClassScore:
    """Precision, recall and F1 of one class.

    Attributes:
        label: name of the class.
        precision: share of the images predicted as this class that belong to it, 0-1; 0 if none was predicted.
        recall: share of the images of this class that were predicted as it, 0-1; 0 if the set has none.
        f1: harmonic mean of precision and recall, 0-1.
        support: number of images of this class.
    """

    label: str
    precision: float
    recall: float
    f1: float
    support: int


@dataclass(frozen=True)
class Scores:
    """Metrics of a classifier on one evaluated set of images, each of one class.

    Attributes:
        name: of the set: "val", "test", "cross-validation", "all".
        correct: number of correct predictions.
        count: number of images.
        accuracy: correct / count, 0-1.
        low: lower end of the 95 % Wilson interval of the accuracy.
        high: upper end of that interval.
        macro_f1: mean F1 of the classes that have images in the set, 0-1.
        log_loss: mean over the images of -ln(predicted probability of the true class), in nats.
        classes: metrics of each class.
        confusion: [true class][predicted class] -> number of images.
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
        """Classes that were predicted for no image."""
        predicted = (sum(column) for column in zip(*self.confusion, strict=True))
        return tuple(one.label for one, count in zip(self.classes, predicted, strict=True) if not count)

    def __str__(self) -> str:
        return f"accuracy {self.accuracy:.3f} ({self.low:.3f}-{self.high:.3f}), n={self.count}"

    @property
    def sentence(self) -> str:
        """The result in words: "val accuracy 92.4 % (508/550), 95 % CI 89.8-94.3"."""
        return f"{self.name} accuracy {share_text(self.correct, self.count, self.low, self.high)}"

    def as_json(self) -> dict[str, Any]:
        """The attributes as a JSON document."""
        return asdict(self)

    @classmethod
    def from_json(cls, document: dict[str, Any]) -> Scores:
        """The inverse of ``as_json``."""
        classes = tuple(ClassScore(**entry) for entry in document["classes"])
        confusion = tuple(tuple(row) for row in document["confusion"])
        return cls(**{**document, "classes": classes, "confusion": confusion})


@dataclass(frozen=True)
class LabelScore(ClassScore):
    """Metrics of one label, if an image may have any number of labels.

    Attributes:
        average_precision: area under the precision-recall curve, 0-1; 0 if no image has the label.
        threshold: probability from which on the model predicts the label, 0-1.
    """

    average_precision: float
    threshold: float


@dataclass(frozen=True)
class LabelScores:
    """Metrics of a classifier on one evaluated set of images that may have any number of labels.

    Attributes:
        name: of the set: "val", "test", "cross-validation", "all".
        correct: number of images with every label predicted correctly.
        count: number of images.
        accuracy: correct / count (subset accuracy), 0-1.
        low: lower end of the 95 % Wilson interval of the accuracy.
        high: upper end of that interval.
        mean_average_precision: mean average precision (mAP) of the labels that occur in the set, 0-1.
        map_low: lower end of its 95 % interval (percentile bootstrap over the images).
        map_high: upper end of that interval.
        micro_f1: F1 over all labels of all images together, 0-1.
        macro_f1: mean F1 of the labels that occur in the set, 0-1.
        log_loss: mean over the images of the summed binary cross-entropy of their labels, in nats.
        classes: metrics of each label.
        unpredicted: labels that were predicted for no image.
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
        """The result in words: "val mAP 91.2 %, 95 % CI 89.0-93.1; all labels correct 74.9 % (412/550), ..."."""
        return (
            f"{self.name} mAP {percent_text(self.mean_average_precision)}, 95 % CI "
            f"{interval_text(self.map_low, self.map_high)}; all labels correct "
            f"{share_text(self.correct, self.count, self.low, self.high)}"
        )

    def as_json(self) -> dict[str, Any]:
        """The attributes as a JSON document."""
        return asdict(self)

    @classmethod
    def from_json(cls, document: dict[str, Any]) -> LabelScores:
        """The inverse of ``as_json``."""
        classes = tuple(LabelScore(**entry) for entry in document["classes"])
        return cls(**{**document, "classes": classes, "unpredicted": tuple(document.get("unpredicted", ()))})


AnyScores = Scores | LabelScores


@dataclass(frozen=True)
class GroupScore:
    """Accuracy on the images of one group: of one camera, site or person.

    Attributes:
        group: its name; "" for images without a group.
        correct: number of correct predictions; of multi-label data, images with every label correct.
        count: number of images.
        low: lower end of the 95 % Wilson interval of the accuracy.
        high: upper end of that interval.
    """

    group: str
    correct: int
    count: int
    low: float
    high: float


def score_groups(groups: Sequence[str], right: npt.NDArray[np.bool_]) -> tuple[GroupScore, ...]:
    """Accuracy of each group, the lowest first.

    Args:
        groups: group names of N images.
        right: (N,) whether each prediction is correct.
    """
    names = np.array(groups)
    found = []
    for name in dict.fromkeys(groups):
        count, correct = int((names == name).sum()), int(right[names == name].sum())
        found.append(GroupScore(name, correct, count, *wilson(correct, count)))
    return tuple(sorted(found, key=lambda score: (score.correct / score.count, score.group)))


@dataclass(frozen=True)
class ClassFigures:
    """Metrics of one class for a table: None instead of 0 where the metric is undefined.

    Attributes:
        label: name of the class.
        precision: None if no image was predicted as the class, or none belongs to it.
        recall: None if no image belongs to the class.
        f1: likewise.
        support: number of images of the class.
    """

    label: str
    precision: float | None
    recall: float | None
    f1: float | None
    support: int


def class_figures(scores: AnyScores) -> list[ClassFigures]:
    """A row for each class, in the order of the scores."""
    found = []
    for one in scores.classes:
        precision = None if one.label in scores.unpredicted or not one.support else one.precision
        recall, f1 = (one.recall, one.f1) if one.support else (None, None)
        found.append(ClassFigures(one.label, precision, recall, f1, one.support))
    return found


def share_words(share: float | None) -> str:
    """A share as "97.3 %", or "-" if it is undefined."""
    return "-" if share is None else percent_text(share)


def scores_from_json(document: dict[str, Any]) -> AnyScores:
    """``Scores`` or ``LabelScores`` from the output of ``as_json``."""
    return (LabelScores if "mean_average_precision" in document else Scores).from_json(document)


def shown_first(results: Mapping[str, AnyScores]) -> AnyScores:
    """The headline result of a run, see ``SHOWN_FIRST``.

    Args:
        results: name of the evaluated set -> its scores.
    """
    return next(results[name] for name in SHOWN_FIRST if name in results)


def wilson(correct: int, count: int) -> tuple[float, float]:
    """The 95 % Wilson score interval of a share (E. B. Wilson, JASA 22, 1927).

    Args:
        correct: successes, 0 to ``count``.
        count: trials, at least 1.

    Returns:
        (low, high), each in [0, 1]. 18 of 20 gives (0.699, 0.972).
    """
    share, spread = correct / count, Z_95**2 / count
    middle = (share + spread / 2) / (1 + spread)
    half = math.sqrt(share * (1 - share) * spread + spread**2 / 4) / (1 + spread)
    return (0.0 if correct == 0 else middle - half), (1.0 if correct == count else middle + half)


def score(
    probabilities: npt.NDArray[np.floating[Any]],
    labels: npt.NDArray[np.int64],
    classes: Sequence[str],
    *,
    name: str,
) -> Scores:
    """Metrics of N predictions of one class each.

    Args:
        probabilities: (N, classes), rows that sum to 1.
        labels: (N,) int64, the true classes as indices.
        classes: names of the classes.
        name: of the evaluated set.

    Raises:
        ValueError: N is 0.
    """
    if not len(labels):
        raise ValueError(f"{name}: no images to score")
    given = probabilities.argmax(axis=1)
    confusion = np.bincount(labels * len(classes) + given, minlength=len(classes) ** 2).reshape(len(classes), -1)
    support, predicted, found = confusion.sum(1), confusion.sum(0), confusion.diagonal()
    precision, recall, f1 = _precision_recall_f1(found, predicted, support)
    correct = int(found.sum())
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
        confusion=tuple(map(tuple, confusion.tolist())),
    )


def _precision_recall_f1(
    hits: npt.NDArray[np.int64], predicted: npt.NDArray[np.int64], support: npt.NDArray[np.int64]
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """Three arrays of (classes,) float64 from counts of each class; 0 where there is nothing to divide by."""
    return (
        hits / np.maximum(predicted, 1),
        hits / np.maximum(support, 1),
        2 * hits / np.maximum(predicted + support, 1),
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
    """Metrics of N predictions of any number of labels each.

    Args:
        probabilities: (N, classes) in [0, 1].
        labels: (N, classes) int64, 1 for each true label.
        given: (N, classes) int64, 1 for each predicted label.
        classes: names of the labels.
        thresholds: the model's threshold of each label, which the scores list.
        name: of the evaluated set.

    Raises:
        ValueError: N is 0.
    """
    if not len(labels):
        raise ValueError(f"{name}: no images to score")
    by_label = _label_scores(probabilities, labels, given, classes, thresholds)
    present = np.flatnonzero(labels.any(axis=0))
    correct = int((labels == given).all(axis=1).sum())
    low, high = wilson(correct, len(labels))
    resampled = _resampled_map(probabilities[:, present], labels[:, present]) if len(present) else np.zeros(1)
    true_probabilities = np.clip(np.where(labels > 0, probabilities, 1 - probabilities), 1e-12, 1)
    return LabelScores(
        name=name,
        correct=correct,
        count=len(labels),
        accuracy=correct / len(labels),
        low=low,
        high=high,
        mean_average_precision=_mean([by_label[i].average_precision for i in present]),
        map_low=float(np.quantile(resampled, 0.025)),
        map_high=float(np.quantile(resampled, 0.975)),
        micro_f1=float(2 * (labels & given).sum() / max(1, given.sum() + labels.sum())),
        macro_f1=_mean([by_label[i].f1 for i in present]),
        log_loss=float(-np.log(true_probabilities).sum(axis=1).mean()),
        classes=by_label,
        unpredicted=tuple(label for label, count in zip(classes, given.sum(axis=0), strict=True) if not count),
    )


def _label_scores(
    probabilities: npt.NDArray[np.floating[Any]],
    labels: npt.NDArray[np.int64],
    given: npt.NDArray[np.int64],
    classes: Sequence[str],
    thresholds: Sequence[float],
) -> tuple[LabelScore, ...]:
    from sklearn.metrics import average_precision_score

    support = labels.sum(axis=0)
    precision, recall, f1 = _precision_recall_f1((labels & given).sum(axis=0), given.sum(axis=0), support)
    return tuple(
        LabelScore(
            label,
            precision=float(precision[i]),
            recall=float(recall[i]),
            f1=float(f1[i]),
            support=int(support[i]),
            average_precision=float(average_precision_score(labels[:, i], probabilities[:, i])) if support[i] else 0.0,
            threshold=float(thresholds[i]),
        )
        for i, label in enumerate(classes)
    )


def _mean(values: Sequence[float]) -> float:
    return float(np.mean(values)) if values else 0.0


def _resampled_map(
    probabilities: npt.NDArray[np.floating[Any]], labels: npt.NDArray[np.int64]
) -> npt.NDArray[np.float64]:
    """(RESAMPLES,) mean average precision of bootstrap samples.

    Equals scikit-learn's average precision with the draws as sample weights, for all samples at once; one by one it
    takes minutes.
    """
    count = len(labels)
    chance = np.random.default_rng(0)
    at_once = max(1, AT_ONCE // count)
    found = []
    for start in range(0, RESAMPLES, at_once):
        draws = min(at_once, RESAMPLES - start)
        times = chance.multinomial(count, np.full(count, 1 / count), size=draws)
        found.append(
            [
                _average_precisions(label_probabilities, is_positive, times)
                for label_probabilities, is_positive in zip(probabilities.T, labels.T, strict=True)
            ]
        )
    precisions = np.concatenate([np.stack(part) for part in found], axis=1)
    drawn = ~np.isnan(precisions)
    return np.asarray((np.nansum(precisions, axis=0) / np.maximum(drawn.sum(axis=0), 1))[drawn.any(axis=0)])


def _average_precisions(
    probabilities: npt.NDArray[np.floating[Any]], is_positive: npt.NDArray[np.int64], times: npt.NDArray[np.int64]
) -> npt.NDArray[np.float64]:
    """Average precision of one label for each row of (draws, N) weights; NaN if no image with the label was drawn."""
    order = np.argsort(-probabilities, kind="stable")
    ends = np.flatnonzero(np.diff(probabilities[order], append=-1.0))
    hits = np.cumsum(times[:, order] * is_positive[order], axis=1)[:, ends]
    ranks = np.maximum(np.cumsum(times[:, order], axis=1)[:, ends], 1)
    total = hits[:, -1:]
    gained = np.diff(hits, axis=1, prepend=0)
    with np.errstate(invalid="ignore"):
        return np.asarray((gained * (hits / ranks)).sum(axis=1) / np.where(total > 0, total, np.nan)[:, 0])
