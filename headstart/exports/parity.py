"""Parity: comparison of an exported file with its model on images, and the tolerances that the file must meet."""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from headstart.evaluation.metrics import wilson
from headstart.exports.subprocess_runner import FilePredictions
from headstart.training.losses import Labels
from headstart.trust.thresholds import labels_above

MARGIN = 1e-3
"""Lead of an answer over the next class, or over its threshold, from which the file must give the same answer."""

MAX_PROBABILITY_DIFFERENCE = 1e-3
"""Largest difference of a probability that a float32 file may have."""

MAX_OUTLIER_DIFFERENCE = 0.02
"""Likewise of an outlier score, which is a rank among a few hundred images, some of them at nearly equal distances."""

MAX_ACCURACY_LOSS = 0.01
"""Accuracy that an int8 or float16 file may lose."""

MAX_HALF_DIFFERENCE = 0.05
"""Largest difference of a probability that a float16 file may have."""

Probabilities = npt.NDArray[np.float64]
Right = npt.NDArray[np.bool_]


@dataclass(frozen=True)
class ReferencePredictions:
    """Labels, and predictions of the model, for the images of a comparison.

    Attributes:
        paths: of the N images.
        labels: true labels, see ``training.losses``.
        probabilities: (N, classes) float64 of the model; None if only the file is there.
        outliers: (N,) outlier scores of the model, NaN without a detector; None if only the file is there.
        seconds: time of the model from image files to predictions, in batches.
    """

    paths: tuple[str, ...]
    labels: Labels
    probabilities: Probabilities | None = None
    outliers: Probabilities | None = None
    seconds: float = 0.0

    def without_outliers(self) -> ReferencePredictions:
        """For a format whose files have no outlier scores."""
        return replace(self, outliers=np.full(len(self.paths), np.nan))


@dataclass(frozen=True)
class FullSizeDecoding:
    """Large JPEGs decoded at full size, as other programs do; Headstart reduces them while decoding.

    Attributes:
        images: number of such images.
        same: of them, images with the same answer.
        largest: largest difference of a probability.
        correct: correct answers at full size.
        correct_reduced: correct answers when reduced.
    """

    images: int
    same: int
    largest: float
    correct: int
    correct_reduced: int


@dataclass(frozen=True)
class FormatResult:
    """A row of the comparison: the model, or a file made from it.

    Attributes:
        name: "model", "onnx", "torch" or "onnx int8".
        images: number of images.
        correct: correct answers; for multi-label data, images with every label right.
        low: lower bound of the accuracy's 95 % Wilson interval.
        high: upper bound.
        bytes: size of the file.
        rate: images per second from files to predictions; the model in batches, a file one image at a time.
        clear: images whose answer leads by more than ``MARGIN``; None without a model to compare with.
        same: of them, images with the same answer.
        largest: largest difference of a probability.
        largest_outlier: largest difference of an outlier score; None without outlier scores.
        full_size: large JPEGs decoded at full size; None if not tried, or if there are none.
        load_seconds: from the start of a new process until the file was open; None for the model.
    """

    name: str
    images: int
    correct: int
    low: float
    high: float
    bytes: int
    rate: float
    clear: int | None = None
    same: int | None = None
    largest: float | None = None
    largest_outlier: float | None = None
    full_size: FullSizeDecoding | None = None
    load_seconds: float | None = None

    @property
    def accuracy(self) -> float:
        """Share of correct answers."""
        return self.correct / self.images

    def as_json(self) -> dict[str, Any]:
        """A JSON document."""
        return {"name": self.name, "accuracy": self.accuracy} | asdict(self)


def model_format(expected: ReferencePredictions, thresholds: tuple[float, ...] | None, *, size: int) -> FormatResult:
    """The row of the model; ``size`` of its file in bytes."""
    assert expected.probabilities is not None
    right = _right(expected.probabilities, expected.labels, thresholds)
    low, high = wilson(int(right.sum()), len(right))
    return FormatResult("model", len(right), int(right.sum()), low, high, size, len(right) / expected.seconds)


def file_format(name: str, expected: ReferencePredictions, answers: FilePredictions, *, size: int) -> FormatResult:
    """The row of a file; ``size`` in bytes."""
    thresholds, probabilities = answers.metadata.thresholds, answers.probabilities
    right = _right(probabilities, expected.labels, thresholds)
    low, high = wilson(int(right.sum()), len(right))
    compared: dict[str, Any] = {}
    if expected.probabilities is not None:
        clear = _clear(expected.probabilities, thresholds)
        same = _same(expected.probabilities, probabilities, thresholds)
        compared = {
            "clear": int(clear.sum()),
            "same": int((same & clear).sum()),
            "largest": _largest(expected.probabilities, probabilities),
        }
        assert expected.outliers is not None
        if not np.isnan(expected.outliers).all():
            compared["largest_outlier"] = _largest(expected.outliers, answers.outliers)
    full_size = _full_size(expected.labels, answers)
    rate = len(right) / answers.seconds
    compared |= {"full_size": full_size, "load_seconds": answers.load_seconds}
    return FormatResult(name, len(right), int(right.sum()), low, high, size, rate, **compared)


def parity_failures(one: FormatResult, model: FormatResult, *, precision: str, allow_loss: bool) -> list[str]:
    """The tolerances that a file exceeds, in words; empty if it meets all.

    Args:
        one: row of the file.
        model: row of the model.
        precision: of the file, "float32", "float16" or "int8".
        allow_loss: accept any loss of accuracy of an int8 or float16 file.
    """
    if precision != "float32":
        return [] if allow_loss else _losses(one, model, precision)
    assert one.clear is not None
    assert one.same is not None
    assert one.largest is not None
    failures = []
    if one.same < one.clear:
        failures.append(
            f"{one.clear - one.same:,} of {one.clear:,} predictions differ where the model has a clear margin"
        )
    if not one.largest <= MAX_PROBABILITY_DIFFERENCE:
        failures.append(_too_different(one.largest, MAX_PROBABILITY_DIFFERENCE))
    if one.largest_outlier is not None and not one.largest_outlier <= MAX_OUTLIER_DIFFERENCE:
        failures.append(
            f"outlier scores differ by up to {one.largest_outlier:.1e}, more than the allowed "
            f"{MAX_OUTLIER_DIFFERENCE:g}"
        )
    return failures


def _losses(one: FormatResult, model: FormatResult, precision: str) -> list[str]:
    failures, accepted = [], "(allow_loss, --allow-loss, accepts it)"
    lost = (model.correct - one.correct) / one.images
    if lost > MAX_ACCURACY_LOSS:
        failures.append(
            f"its accuracy is {100 * one.accuracy:.1f} % ({one.correct:,}/{one.images:,}), the model's "
            f"{100 * model.accuracy:.1f} %: a loss of {100 * lost:.1f} points; at most {100 * MAX_ACCURACY_LOSS:g} "
            f"is allowed {accepted}"
        )
    if precision == "float16" and one.largest is not None and not one.largest <= MAX_HALF_DIFFERENCE:
        failures.append(f"{_too_different(one.largest, MAX_HALF_DIFFERENCE)} {accepted}")
    return failures


def _too_different(largest: float, allowed: float) -> str:
    return f"probabilities differ by up to {largest:.1e}, more than the allowed {allowed:.0e}"


def _given(probabilities: Probabilities, thresholds: tuple[float, ...] | None) -> Labels:
    return probabilities.argmax(axis=1) if thresholds is None else labels_above(thresholds, probabilities)


def _right(probabilities: Probabilities, labels: Labels, thresholds: tuple[float, ...] | None) -> Right:
    """(N,) bool: whether each image gets its class, or exactly its labels; False for an unreadable image."""
    equal = _given(np.nan_to_num(probabilities), thresholds) == labels
    return np.asarray((equal if thresholds is None else equal.all(axis=1)) & ~np.isnan(probabilities).any(axis=1))


def _same(one: Probabilities, two: Probabilities, thresholds: tuple[float, ...] | None) -> Right:
    return _right(two, _given(one, thresholds), thresholds)


def _clear(probabilities: Probabilities, thresholds: tuple[float, ...] | None) -> Right:
    if thresholds is not None:
        return np.asarray((np.abs(probabilities - np.asarray(thresholds)) > MARGIN).all(axis=1))
    if probabilities.shape[1] < 2:
        return np.ones(len(probabilities), dtype=bool)
    second, first = np.sort(probabilities, axis=1)[:, -2:].T
    return np.asarray(first - second > MARGIN)


def _largest(one: Probabilities, two: Probabilities) -> float:
    """Largest absolute difference; infinite if only one of the two has a number."""
    gap = np.abs(one - two)
    return float(np.where(np.isnan(gap), np.inf, gap).max())


def _full_size(labels: Labels, answers: FilePredictions) -> FullSizeDecoding | None:
    places = np.flatnonzero(~np.isnan(answers.full_size).any(axis=1))
    if not len(places):
        return None
    thresholds, full, reduced = answers.metadata.thresholds, answers.full_size[places], answers.probabilities[places]
    return FullSizeDecoding(
        len(places),
        int(_same(reduced, full, thresholds).sum()),
        _largest(reduced, full),
        int(_right(full, labels[places], thresholds).sum()),
        int(_right(reduced, labels[places], thresholds).sum()),
    )
