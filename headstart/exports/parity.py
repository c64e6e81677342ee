"""How an exported file compares with the model that it was made from, and whether that is good enough."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from headstart.evaluation.metrics import wilson
from headstart.exports.subprocess_runner import FilePredictions
from headstart.training.losses import Labels
from headstart.trust.thresholds import labels_above

MARGIN = 1e-3
"""By which an answer must win, over the next class or over its threshold, for the file to have to give the same."""

LARGEST = 1e-3
"""Difference of a probability that a float32 file may show."""

LARGEST_OUTLIER = 0.02
"""Difference of an outlier score, likewise: it is the place among a few hundred usual pictures, and some lie close."""

LOSS = 0.01
"""Share of the pictures that an int8 file may be right in less often."""

Chances = npt.NDArray[np.float64]
Right = npt.NDArray[np.bool_]


@dataclass(frozen=True)
class ReferencePredictions:
    """What is known of the pictures that a file is compared on.

    Attributes:
        paths: N, of the pictures.
        labels: the right answers, see ``training.losses``.
        probabilities: (N, classes) float64 of the model; None where there is only the file.
        outliers: (N,) likewise, NaN where there are none.
        seconds: that the model took from files to answers, in batches.
    """

    paths: tuple[str, ...]
    labels: Labels
    probabilities: Chances | None = None
    outliers: Chances | None = None
    seconds: float = 0.0


@dataclass(frozen=True)
class FullSizeDecoding:
    """What becomes of the answers where another program decodes large JPEGs whole, which Headstart reduces.

    Attributes:
        images: that are concerned.
        same: of them, that get the same answer.
        largest: difference of a probability.
        correct: of them.
        correct_reduced: of them, when they are reduced.
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
        images: that were compared.
        correct: of them; of several labels to an image, with every label right.
        low: of the 95 % interval of the accuracy.
        high: of it.
        bytes: of the file.
        rate: images a second, from files to answers; the model in batches, a file one picture after the other.
        clear: images whose answer wins by more than ``MARGIN``; None where there is no model to compare with.
        same: of them, that get the same answer.
        largest: difference of a probability.
        largest_outlier: difference of an outlier score; None where there are none.
        whole: large JPEGs decoded whole; None where that was not tried, or there are none.
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
    whole: FullSizeDecoding | None = None

    @property
    def accuracy(self) -> float:
        """Share of the pictures that is right."""
        return self.correct / self.images

    def as_json(self) -> dict[str, Any]:
        """A JSON document."""
        return {"name": self.name, "accuracy": self.accuracy} | asdict(self)


def model_format(expected: ReferencePredictions, thresholds: tuple[float, ...] | None, *, size: int) -> FormatResult:
    """The model's own row; ``size`` of its file in bytes."""
    assert expected.probabilities is not None
    right = _right(expected.probabilities, expected.labels, thresholds)
    low, high = wilson(int(right.sum()), len(right))
    return FormatResult("model", len(right), int(right.sum()), low, high, size, len(right) / expected.seconds)


def file_format(name: str, expected: ReferencePredictions, answers: FilePredictions, *, size: int) -> FormatResult:
    """A file's row; ``size`` of it in bytes."""
    thresholds, chances = answers.metadata.thresholds, answers.probabilities
    right = _right(chances, expected.labels, thresholds)
    low, high = wilson(int(right.sum()), len(right))
    compared: dict[str, Any] = {}
    if expected.probabilities is not None:
        clear = _clear(expected.probabilities, thresholds)
        same = _same(expected.probabilities, chances, thresholds)
        compared = {
            "clear": int(clear.sum()),
            "same": int((same & clear).sum()),
            "largest": _largest(expected.probabilities, chances),
        }
        assert expected.outliers is not None
        if not np.isnan(expected.outliers).all():
            compared["largest_outlier"] = _largest(expected.outliers, answers.outliers)
    whole = _whole(expected.labels, answers)
    rate = len(right) / answers.seconds
    return FormatResult(name, len(right), int(right.sum()), low, high, size, rate, **compared, whole=whole)


def parity_failures(one: FormatResult, model: FormatResult, *, precision: str, allow_loss: bool) -> list[str]:
    """Why a file is not good enough, each in words; none where it is.

    Args:
        one: the file's row.
        model: the model's.
        precision: of the file, "float32" or "int8".
        allow_loss: let an int8 file lose any accuracy.
    """
    if precision == "int8":
        lost = (model.correct - one.correct) / one.images
        if lost <= LOSS or allow_loss:
            return []
        return [
            f"it is right in {one.correct:,} of {one.images:,} images and the model in {model.correct:,}, a loss of "
            f"{100 * lost:.1f} points, and {100 * LOSS:g} is allowed (--allow-loss takes it as it is)"
        ]
    assert one.clear is not None
    assert one.same is not None
    assert one.largest is not None
    said = []
    if one.same < one.clear:
        said.append(f"{one.clear - one.same:,} of {one.clear:,} clear answers are others")
    if not one.largest <= LARGEST:
        said.append(f"a probability differs by {one.largest:.1e}, and {LARGEST:.0e} is allowed")
    if one.largest_outlier is not None and not one.largest_outlier <= LARGEST_OUTLIER:
        said.append(f"an outlier score differs by {one.largest_outlier:.1e}, and {LARGEST_OUTLIER:g} is allowed")
    return said


def _given(chances: Chances, thresholds: tuple[float, ...] | None) -> Labels:
    return chances.argmax(axis=1) if thresholds is None else labels_above(thresholds, chances)


def _right(chances: Chances, labels: Labels, thresholds: tuple[float, ...] | None) -> Right:
    """(N,) whether each picture is given its class, or exactly its labels; one without an answer is not."""
    equal = _given(np.nan_to_num(chances), thresholds) == labels
    return np.asarray((equal if thresholds is None else equal.all(axis=1)) & ~np.isnan(chances).any(axis=1))


def _same(one: Chances, two: Chances, thresholds: tuple[float, ...] | None) -> Right:
    return _right(two, _given(one, thresholds), thresholds)


def _clear(chances: Chances, thresholds: tuple[float, ...] | None) -> Right:
    if thresholds is not None:
        return np.asarray((np.abs(chances - np.asarray(thresholds)) > MARGIN).all(axis=1))
    if chances.shape[1] < 2:
        return np.ones(len(chances), dtype=bool)
    second, first = np.sort(chances, axis=1)[:, -2:].T
    return np.asarray(first - second > MARGIN)


def _largest(one: Chances, two: Chances) -> float:
    """Infinite where either lacks a number that the other has."""
    gap = np.abs(one - two)
    return float(np.where(np.isnan(gap), np.inf, gap).max())


def _whole(labels: Labels, answers: FilePredictions) -> FullSizeDecoding | None:
    places = np.flatnonzero(~np.isnan(answers.whole).any(axis=1))
    if not len(places):
        return None
    thresholds, whole, reduced = answers.metadata.thresholds, answers.whole[places], answers.probabilities[places]
    return FullSizeDecoding(
        len(places),
        int(_same(reduced, whole, thresholds).sum()),
        _largest(reduced, whole),
        int(_right(whole, labels[places], thresholds).sum()),
        int(_right(reduced, labels[places], thresholds).sum()),
    )
