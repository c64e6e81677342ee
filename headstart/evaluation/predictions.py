"""Predictions on an evaluated set of images, with the true labels."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from headstart.data.duplicates import connected_parts
from headstart.data.label_cells import SEPARATOR, join_labels
from headstart.errors import RunError
from headstart.evaluation.metrics import AnyScores, GroupScore, score, score_groups, score_labels
from headstart.files import csv_text, read_rows
from headstart.training.losses import Parts, is_multi_label
from headstart.trust.thresholds import cross_fitted_labels, labels_above

MANY_CLASSES = 200
"""Number of classes above which those that do not occur are left out of a set's metrics."""


@dataclass(frozen=True)
class Evaluated:
    """Predictions and metrics on one evaluated set of N images.

    Attributes:
        scores: the metrics.
        paths: N paths.
        labels: (N,) int64, the true classes; of multi-label data (N, classes), 0 or 1.
        given: the predicted classes or labels, likewise.
        probabilities: (N, classes) float64, 0-1.
        classes: names of the classes.
        outliers: (N,) float64, see ``outliers.OodDetector``; None where they are not known.
        groups: names of the groups that the images belong to, "" for none; None where the data have no groups.
    """

    scores: AnyScores
    paths: tuple[str, ...]
    labels: npt.NDArray[np.int64]
    given: npt.NDArray[np.int64]
    probabilities: npt.NDArray[np.float64]
    classes: tuple[str, ...]
    outliers: npt.NDArray[np.float64] | None = None
    groups: tuple[str, ...] | None = None

    @property
    def right(self) -> npt.NDArray[np.bool_]:
        """(N,) whether each prediction is correct; of multi-label data, whether all labels are."""
        same = self.labels == self.given
        return np.asarray(same.all(axis=1) if is_multi_label(self.labels) else same)

    @property
    def together(self) -> Parts | None:
        """(N,) numbers of the groups, for cross-fitting; an image without a group is one. None without groups."""
        return None if self.groups is None else connected_parts(range(len(self.groups)), self.groups, ())

    @property
    def by_group(self) -> tuple[GroupScore, ...]:
        """Accuracy of each group, the lowest first; empty if the data have no groups."""
        return () if self.groups is None else score_groups(self.groups, self.right)

    def mistakes(self) -> list[int]:
        """Positions of the wrong predictions, most confident first; multi-label: by the most confident wrong label."""
        if is_multi_label(self.labels):
            surest = np.where(self.labels > 0, 1 - self.probabilities, self.probabilities)
            sure = np.where(self.labels != self.given, surest, -1.0).max(axis=1)
            wrong = np.flatnonzero(sure >= 0)
        else:
            sure = self.probabilities[np.arange(len(self.given)), self.given]
            wrong = np.flatnonzero(self.given != self.labels)
        return [int(place) for place in wrong[np.argsort(-sure[wrong], kind="stable")]]

    def names_of(self, answers: npt.NDArray[np.int64]) -> list[str]:
        """``labels`` or ``given`` as names; of multi-label data, the cells of a table's column "labels"."""
        if is_multi_label(answers):
            return join_labels([[self.classes[i] for i in image_labels.nonzero()[0]] for image_labels in answers])
        return [self.classes[i] for i in answers]


def evaluate_predictions(
    name: str,
    paths: Sequence[str],
    labels: npt.NDArray[np.int64],
    probabilities: npt.NDArray[np.float64],
    classes: tuple[str, ...],
    *,
    thresholds: Sequence[float] | None = None,
    chose: bool = False,
    together: Parts | None = None,
) -> Evaluated:
    """Computes the metrics of N predictions.

    Of more than ``MANY_CLASSES`` classes, those that are neither true nor predicted for any image are left out.

    Args:
        name: of the evaluated set.
        paths: N.
        labels: see ``Evaluated``.
        probabilities: (N, classes).
        classes: the names.
        thresholds: the model's threshold of each label if an image may have any number of labels; None otherwise.
        chose: whether the thresholds were chosen on these images. Then they are cross-fitted: each fifth of the images
            gets the thresholds that are best for the others.
        together: (N,) numbers of parts (groups, near copies) that these fifths do not divide.
    """
    if thresholds is not None:
        given = labels_above(thresholds, probabilities)
        if chose:
            given = cross_fitted_labels(probabilities, labels, together=together)
        label_scores = score_labels(probabilities, labels, given, classes, thresholds=thresholds, name=name)
        return Evaluated(label_scores, tuple(paths), labels, given, probabilities, classes)
    if len(classes) > MANY_CLASSES:
        occur = np.union1d(labels, probabilities.argmax(axis=1))
        labels, probabilities = np.searchsorted(occur, labels), probabilities[:, occur]
        classes = tuple(classes[i] for i in occur)
    given = probabilities.argmax(axis=1)
    scores = score(probabilities, labels, classes, name=name)
    return Evaluated(scores, tuple(paths), labels, given, probabilities, classes)


def short_scores(evaluated: Iterable[Evaluated]) -> dict[str, dict[str, Any]]:
    """Scores by set for a model file: without those of each class and the confusion matrix."""
    return {
        part.scores.name: {k: v for k, v in part.scores.as_json().items() if k not in ("classes", "confusion")}
        for part in evaluated
    }


def predictions_csv(evaluated: Sequence[Evaluated]) -> str:
    """The table ``predictions.csv``, a row for each evaluated image.

    Columns: path, split, label, predicted, probability (of the predicted class), group (if the data have groups),
    outlier (the outlier score, may be empty), and ``p:NAME``, the probability of each class. Of multi-label data:
    labels in place of label, and no probability.
    """
    multi_label = any(is_multi_label(part.labels) for part in evaluated)
    classes = tuple(dict.fromkeys(name for part in evaluated for name in part.classes))
    grouped = any(part.groups is not None for part in evaluated)
    rows = []
    for part in evaluated:
        places = [classes.index(name) for name in part.classes]
        answers = zip(part.names_of(part.labels), part.names_of(part.given), strict=True)
        odd = [""] * len(part.paths) if part.outliers is None else [repr(score) for score in part.outliers.tolist()]
        groups = [[group] for group in part.groups or [""] * len(part.paths)] if grouped else [[]] * len(part.paths)
        for path, names, p, outlier, group in zip(part.paths, answers, part.probabilities, odd, groups, strict=True):
            cells = [""] * len(classes)
            for place, chance in zip(places, p.tolist(), strict=True):
                cells[place] = repr(chance)
            rows.append(
                [
                    path,
                    part.scores.name,
                    *names,
                    *([] if multi_label else [repr(float(p.max()))]),
                    *group,
                    outlier,
                    *cells,
                ]
            )
    columns = ["labels", "predicted"] if multi_label else ["label", "predicted", "probability"]
    columns += [*(["group"] if grouped else []), "outlier"]
    return csv_text([["path", "split", *columns, *(f"p:{name}" for name in classes)], *rows])


def read_predictions(
    file: Path, classes: Sequence[str], *, thresholds: Sequence[float] | None = None
) -> list[Evaluated]:
    """Reads a table of ``predictions_csv`` and computes its metrics.

    Args:
        file: the table.
        classes: names of the model's classes.
        thresholds: the model's threshold of each label, of multi-label data.

    Raises:
        RunError: the file does not exist, or is damaged.
    """
    try:
        rows = read_rows(file)
        names = [name for name in classes if rows and f"p:{name}" in rows[0]]
        found = []
        for split in dict.fromkeys(row["split"] for row in rows):
            part = [row for row in rows if row["split"] == split]
            found.append(_read_part(split, part, [c for c in names if part[0][f"p:{c}"]], thresholds))
        return found
    except (OSError, KeyError, ValueError, TypeError) as error:
        raise RunError(f"{file}: damaged, or not the predictions of a run ({error}).") from error


def _read_part(
    split: str, rows: list[dict[str, str]], classes: Sequence[str], thresholds: Sequence[float] | None
) -> Evaluated:
    paths, names = [row["path"] for row in rows], tuple(classes)
    probabilities = np.array([[float(row[f"p:{name}"]) for name in names] for row in rows])
    number = {name: i for i, name in enumerate(names)}
    if thresholds is None:
        labels = np.array([number[row["label"]] for row in rows])
        part = Evaluated(
            score(probabilities, labels, names, name=split),
            tuple(paths),
            labels,
            probabilities.argmax(1),
            probabilities,
            names,
        )
    else:
        labels, given = np.zeros(probabilities.shape, np.int64), np.zeros(probabilities.shape, np.int64)
        for i, row in enumerate(rows):
            for numbers, cell in ((labels, row["labels"]), (given, row["predicted"])):
                numbers[i, [number[name] for name in cell.split(SEPARATOR) if name]] = 1
        scores = score_labels(probabilities, labels, given, names, thresholds=thresholds, name=split)
        part = Evaluated(scores, tuple(paths), labels, given, probabilities, names)
    if "group" in rows[0]:
        part = replace(part, groups=tuple(row["group"] for row in rows))
    odd = [row["outlier"] for row in rows]
    return replace(part, outliers=np.array(odd, dtype=np.float64)) if all(odd) else part
