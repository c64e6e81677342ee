"""Confusion matrix of the report: a table whose cells show their images on click."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from headstart.evaluation.metrics import Scores
from headstart.evaluation.predictions import Evaluated
from headstart.reports.report_page import PathsShown

MAX_COLUMNS = 40
"""Maximum number of classes for a confusion matrix."""

CELL_IMAGES = 60
"""Maximum number of images per cell; predictions.csv has the rest."""


@dataclass(frozen=True)
class ConfusionCell:
    """A cell of the confusion matrix.

    Attributes:
        label: the true class.
        predicted: the predicted class.
        count: number of images.
        share: fraction of the images of the true class, 0-1; sets the shade of the cell.
        is_correct: whether the two classes are the same.
    """

    label: str
    predicted: str
    count: int
    share: float
    is_correct: bool


def confusion_rows(part: Evaluated) -> list[list[ConfusionCell]]:
    """One row per true class; empty for multi-label data or more than ``MAX_COLUMNS`` classes."""
    if not isinstance(part.scores, Scores) or len(part.classes) > MAX_COLUMNS:
        return []
    return [
        [ConfusionCell(label, part.classes[j], count, count / max(1, sum(row)), i == j) for j, count in enumerate(row)]
        for i, (label, row) in enumerate(zip(part.classes, part.scores.confusion, strict=True))
    ]


def cell_images(part: Evaluated, tiles: dict[str, int], paths_shown: PathsShown) -> dict[str, list[list[Any]]]:
    """The images of each cell, most confident first: "label-predicted" (class numbers) -> [tile, path, probability]."""
    cells: dict[str, list[list[Any]]] = {}
    for i in np.argsort(-part.probabilities.max(axis=1), kind="stable").tolist():
        images = cells.setdefault(f"{part.labels[i]}-{part.given[i]}", [])
        if len(images) < CELL_IMAGES:
            probability = round(float(part.probabilities[i, part.given[i]]), 4)
            images.append([tiles.get(part.paths[i], -1), paths_shown(part.paths[i]), probability])
    return cells
